"""Regions as QuPath writes them, and spots as it reads them."""

import json

import numpy as np
import pytest

from stfm_jax.data import geojson
from stfm_jax.errors import InputError


def square(left, top, side):
    x, y = left, top
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def feature(*rings, name=None, kind=None, multi=False):
    geometry = {"type": "Polygon", "coordinates": list(rings)}
    if multi:
        geometry = {"type": "MultiPolygon", "coordinates": [[ring] for ring in rings]}
    about = {"objectType": "annotation"}
    about |= {"name": name} if name else {}
    about |= {"classification": {"name": kind, "color": [1, 2, 3]}} if kind else {}
    return {"type": "Feature", "id": "x", "geometry": geometry, "properties": about}


def read(path, content):
    path.write_text(json.dumps(content))
    return geojson.read_regions(path)


POINTS = np.array([[50.0, 50.0], [5.0, 5.0], [250.0, 250.0], [450.0, 50.0], [999.0, 999.0]])


def test_holes_parts_names_and_order(tmp_path):
    content = {
        "type": "FeatureCollection",
        "features": [
            feature(square(0, 0, 100), square(40, 40, 20), kind="Tumor"),
            feature(square(200, 200, 100), square(400, 0, 100), name="both", multi=True),
            feature(square(-10, -10, 1000), kind="Tumor"),
            {"type": "Feature", "geometry": {"type": "Point", "coordinates": [3, 3]}},
        ],
    }
    regions = read(tmp_path / "r.geojson", content)
    assert [r.name for r in regions] == ["Tumor 1", "both", "Tumor 2"]
    np.testing.assert_array_equal(regions[0].contains(POINTS), [False, True, False, False, False])
    assert list(geojson.labels(regions, POINTS)) == ["Tumor 2", "Tumor 1", "both", "both", ""]
    bare = read(tmp_path / "b.geojson", [feature(square(0, 0, 100))["geometry"]])
    assert bare[0].name == "region" and bare[0].contains(POINTS).sum() == 2
    several = {"type": "GeometryCollection", "geometries": [bare_geometry(), bare_geometry(400)]}
    (collected,) = read(tmp_path / "c.geojson", several)
    assert collected.contains(POINTS).sum() == 3


def bare_geometry(left=0):
    return feature(square(left, 0, 100))["geometry"]


@pytest.mark.parametrize(
    "content",
    [
        {"type": "FeatureCollection", "features": []},
        {"type": "FeatureCollection"},
        {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]},
        {"type": "Polygon", "coordinates": [[[0, 0], ["a", 1], [1, 0]]]},
        [3],
        "text",
    ],
)
def test_what_is_no_region(tmp_path, content):
    with pytest.raises(InputError, match=r"r\.geojson: expected .*; draw regions in QuPath"):
        read(tmp_path / "r.geojson", content)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(InputError, match=r"none\.geojson: expected regions"):
        geojson.read_regions(tmp_path / "none.geojson")
    (tmp_path / "d.geojson").write_text('{"type": ')
    with pytest.raises(InputError, match=r"d\.geojson: expected regions"):
        geojson.read_regions(tmp_path / "d.geojson")


def test_spots_go_out_and_can_be_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(geojson, "AT_ONCE", 2)
    values = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    path, genes = tmp_path / "s.geojson", ["A", "B", "C"]
    geojson.write_spots(path, POINTS, 10.0, list("vwxyz"), values, genes)
    features = json.loads(path.read_text())["features"]
    assert len(features) == 5 and features[3]["properties"]["objectType"] == "tile"
    assert features[3]["properties"]["measurements"]["B"] == pytest.approx(values[3, 1], rel=1e-3)
    regions = geojson.read_regions(path)
    assert list(geojson.labels(regions, POINTS)) == list("vwxyz")
    assert not regions[0].contains(POINTS[:1] + 5.1).any()
    assert regions[0].contains(POINTS[:1] + 4.9).all()


def test_places_on_the_border_of_an_area_lie_in_it():
    square = geojson.Region("", (np.array([[1.0, 1.0], [3.0, 1.0], [3.0, 3.0], [1.0, 3.0]]),))
    places = np.stack(np.meshgrid(np.arange(5.0), np.arange(5.0)), axis=-1).reshape(-1, 2)
    inside = ((places >= 1) & (places <= 3)).all(axis=1)
    np.testing.assert_array_equal(square.contains(places), inside)
