"""The table of retrieved spots: against a loop, its order, and what it leaves out."""

import numpy as np
import pytest

from stfm_jax.data.retrieval import Placed, Reach, Retrieved, retrieve
from stfm_jax.predict import why
from stfm_jax.runtime.files import read_csv, write_csv

KNOWN = [True, False, False, True]


def stack(sizes=(40, 35, 50, 30)):
    rng = np.random.default_rng(0)
    return [
        Placed(f"S{i}", rng.uniform(0, 1000, (n, 2)), 16.0 * i, rng.standard_normal((n, 5)))
        for i, n in enumerate(sizes)
    ]


def named(sections):
    return [np.array([f"{s.name}_{j}" for j in range(len(s.coords_um))]) for s in sections]


def by_loop(sections, target, spot, retrieved):
    """Everything from coordinates and features, by name of the retrieved spot."""
    own, rows = sections[target], {}
    columns = (retrieved.section[spot], retrieved.spot[spot], retrieved.weight[spot])
    for s, j, w in zip(*columns, strict=True):
        if w == 0:
            continue
        other = sections[s]
        dx, dy = other.coords_um[j] - own.coords_um[spot]
        dz = other.z_um - own.z_um
        h, g = own.features[spot], other.features[j]
        rows[f"{other.name}_{j}"] = {
            "section": other.name,
            "dx_um": pytest.approx(dx, abs=1e-3),
            "dy_um": pytest.approx(dy, abs=1e-3),
            "dz_um": pytest.approx(dz),
            "distance_um": pytest.approx(np.sqrt(dx**2 + dy**2 + dz**2), rel=1e-5),
            "image_cosine": pytest.approx(h @ g / np.sqrt(h @ h) / np.sqrt(g @ g)),
            "weight": pytest.approx(w),
            "has_expression": KNOWN[s],
        }
    return rows


@pytest.mark.parametrize(("target", "spot"), [(1, 0), (2, 49), (0, 7)])
def test_equals_a_loop(target, spot):
    sections = stack()
    found = retrieve(sections, target, range(4), Reach(sections=2, candidates=6, kept=5))
    rows = why.table(sections, named(sections), target, spot, found, KNOWN)
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["weight"] for row in rows] == sorted((r["weight"] for r in rows), reverse=True)
    expected = by_loop(sections, target, spot, found)
    for row in rows:
        assert {k: v for k, v in row.items() if k not in ("rank", "barcode")} == expected.pop(
            row["barcode"]
        )
    assert not expected


def test_the_heaviest_comes_first_and_padding_not_at_all():
    sections = stack()
    retrieved = Retrieved(
        section=np.array([[0, 2, 0, 0]], np.int32),
        spot=np.array([[3, 4, 5, 0]], np.int32),
        offset_um=np.ones((1, 4, 3), np.float32),
        weight=np.array([[0.2, 0.5, 0.3, 0.0]], np.float32),
    )
    rows = why.table(sections, named(sections), 1, 0, retrieved, KNOWN)
    assert [row["barcode"] for row in rows] == ["S2_4", "S0_5", "S0_3"]


def test_the_rows_are_a_csv(tmp_path):
    sections = stack()
    found = retrieve(sections, 1, range(4), Reach(candidates=6, kept=4))
    rows = why.table(sections, named(sections), 1, 3, found, KNOWN)
    write_csv(tmp_path / "why.csv", rows)
    read = read_csv(tmp_path / "why.csv")
    assert list(read[0]) == [
        *("rank", "section", "barcode", "dx_um", "dy_um", "dz_um"),
        *("distance_um", "image_cosine", "weight", "has_expression"),
    ]
    assert [float(row["weight"]) for row in read] == [row["weight"] for row in rows]
    assert sum(row["weight"] for row in rows) == pytest.approx(1, abs=1e-6)


def test_features_of_length_zero_are_like_nothing():
    sections = stack()
    sections[1].features[0] = 0.0
    found = retrieve(sections, 1, range(4), Reach(candidates=6, kept=4))
    rows = why.table(sections, named(sections), 1, 0, found, KNOWN)
    assert [row["image_cosine"] for row in rows] == [0.0] * 4
