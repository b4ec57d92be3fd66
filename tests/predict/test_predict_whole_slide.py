"""The image of a slide, predicted: tissue, lattice, features kept beside the output, picture."""

from __future__ import annotations

import dataclasses
import json

import anndata
import numpy as np
import pytest
import tiny
from data.test_tissue import disc, overview
from PIL import Image
from slide_files import write_ome

import stfm_jax as stfm
from stfm_jax import store
from stfm_jax.data import tissue
from stfm_jax.encoders import loading
from stfm_jax.encoders.encoder import Encoder
from stfm_jax.errors import InputError
from stfm_jax.models import table
from stfm_jax.predict import budget, whole_slide
from stfm_jax.predict import slide as predict_slide
from stfm_jax.predict.file import predict_file

UM_PER_PX = 2.0


@dataclasses.dataclass(frozen=True)
class Toy(Encoder):
    """Mean colour of the field in other axes; says that the tiny model was trained on it."""

    name: str = "toy"
    fields_um: tuple[float, ...] = (112.0,)

    identity = tiny.ENCODER
    width = tiny.WIDTH
    um_per_px = (8.0,)
    preprocess = None

    def embed(self, images):
        axes = np.random.default_rng(0).normal(size=(3, self.width)) / 64
        return (images.mean(axis=(1, 2)) @ axes).astype(np.float32)

    def blocks(self, source, spots):
        for part in np.array_split(spots, -(-len(spots) // 50)):
            yield self.embed(source.read(part, self.fields_um[0]))


@pytest.fixture(scope="module")
def model(trained):
    method = table.build("stflow", trained.config())
    return store.load(tiny.place(trained.workdir, None) / "model", method)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(loading, "of_config", lambda section, lacking=None: (Toy(),))


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """An OME pyramid of 3.2 x 2.4 mm at 2 um per pixel, a disc of tissue 1.6 mm wide on it."""
    pixels = np.repeat(np.repeat(overview(), 4, axis=0), 4, axis=1)
    return write_ome(tmp_path_factory.mktemp("slide") / "S1.ome.tif", pixels, UM_PER_PX)


def configured(trained, folder, slide, **overrides):
    fields = {"input": str(slide), "output": str(folder / "out.h5ad"), "draws": 2} | overrides
    return trained.config(**{f"predict__{name}": value for name, value in fields.items()})


def test_a_slide_is_predicted_on_its_tissue(trained, model, slide, tmp_path):
    predict_file(configured(trained, tmp_path, slide), model, trained.workdir)
    assert {p.name for p in tmp_path.iterdir()} == {"out.h5ad", "out.png", "out_report.html"}
    out = anndata.read_h5ad(tmp_path / "out.h5ad")
    about = out.uns["stfm"]
    assert about["image"] == "S1.ome.tif" and about["lattice"] == "hex"
    trained_at = np.median([s["pitch_um"] for s in model.slides.values()])
    assert about["spacing_um"] == pytest.approx(trained_at)
    cell = trained_at**2 * np.sqrt(0.75)
    assert out.n_obs == pytest.approx(np.pi * 800**2 / cell, rel=0.1)
    np.testing.assert_allclose(out.obsm["spatial_um"], out.obsm["spatial"] * UM_PER_PX)
    from_centre = np.linalg.norm(out.obsm["spatial_um"] - (1600, 1200), axis=1)
    assert from_centre.max() < 830
    assert out.obs_names[0] == "x{:.0f}_y{:.0f}".format(*out.obsm["spatial"][0])
    assert out.layers["std"].mean() > 0.05 and len(np.asarray(Image.open(tmp_path / "out.png")))


def test_a_picture_and_a_pyramid_give_the_same(trained, model, slide, tmp_path):
    """And so does the Python face, and the output of one as the input of another run."""
    from stfm_jax.data.images.opening import open_image

    with open_image(slide) as image:
        Image.fromarray(image.read(0, 0, 0, *image.size)).save(tmp_path / "S1.png")
    asked = {"spacing_um": 150.0, "lattice": "square"}
    for name, path in (("deep", slide), ("flat", tmp_path / "S1.png")):
        folder = tmp_path / name
        given = configured(trained, folder, path, um_per_px=UM_PER_PX, **asked)
        predict_file(given, model, trained.workdir)
    deep, flat = (anndata.read_h5ad(tmp_path / n / "out.h5ad") for n in ("deep", "flat"))
    np.testing.assert_array_equal(deep.obsm["spatial"], flat.obsm["spatial"])
    spacing = np.diff(np.unique(deep.obsm["spatial_um"][:, 0]))
    assert spacing.max() == pytest.approx(150, abs=UM_PER_PX)
    np.testing.assert_allclose(deep.X, flat.X, atol=0.05)
    assert np.corrcoef(deep.X.ravel(), flat.X.ravel())[0, 1] > 0.99
    called = stfm.load(trained.workdir).predict(slide, draws=2, **asked)
    np.testing.assert_allclose(called.X, deep.X, atol=1e-4)


def test_a_run_that_stopped_goes_on_with_its_features(trained, model, slide, tmp_path, monkeypatch):
    config, read = configured(trained, tmp_path, slide), []
    embedded = Toy.embed
    monkeypatch.setattr(Toy, "embed", lambda self, x: read.append(len(x)) or embedded(self, x))

    def broken(*_, **__):
        raise RuntimeError("power cut")

    monkeypatch.setattr(whole_slide.predict_slide, "predict", broken)
    with pytest.raises(RuntimeError, match="power cut"):
        predict_file(config, model, trained.workdir)
    (kept,) = tmp_path.iterdir()
    assert kept.is_dir() and sum(read) > 0
    monkeypatch.undo()
    monkeypatch.setattr(Toy, "blocks", broken)
    monkeypatch.setattr(loading, "of_config", lambda section, lacking=None: (Toy(),))
    predict_file(config, model, trained.workdir)
    assert {p.name for p in tmp_path.iterdir()} == {"out.h5ad", "out.png", "out_report.html"}


def bad(message):
    return pytest.raises(InputError, match=message)


def test_what_cannot_be_predicted_leaves_nothing(trained, model, slide, tmp_path, monkeypatch):
    def run(path=slide, **overrides):
        predict_file(configured(trained, tmp_path, path, **overrides), model, trained.workdir)

    with bad("between 0.05 and 20, found 40"):
        run(um_per_px=40.0)
    flat = tmp_path / "flat.png"
    Image.fromarray(overview()).save(flat)
    with bad(r"flat\.png: expected the file to say its micrometres.*--config\.predict\.um_per_px"):
        run(flat)
    with bad("no tissue"):
        run(flat, um_per_px=8.0, tissue_threshold=3.0)
    with bad(r"lattice must be one of square, hex"):
        run(lattice="round")
    with bad("spacing_um must be at least 1"):
        run(spacing_um=0.5)
    with bad("none of the spots, 9000 um apart"):
        run(spacing_um=9000.0)
    with bad(r"leave --config\.predict\.image"):
        run(image=str(slide))
    with bad("no such file"):
        run(tmp_path / "none.svs")
    free = type("Usage", (), {"free": 10_000})
    monkeypatch.setattr(budget.shutil, "disk_usage", lambda _: free)
    with bad("are free"):
        run()
    assert {p.name for p in tmp_path.iterdir()} == {"flat.png"}


def test_an_odd_spacing_is_said_and_old_models_take_visium_s(trained, model, caplog):
    options = trained.config(predict__spacing_um=9.0).predict
    with caplog.at_level("WARNING", "stfm_jax"):
        assert whole_slide.spacing_um(options, model) == 9.0
    assert "spots 9 um apart were asked for" in caplog.text
    old = dataclasses.replace(model, slides={"a": {"spots": 3, "patient": ""}})
    assert whole_slide.spacing_um(trained.config().predict, old) == whole_slide.SPACING_UM


def test_the_mask_is_the_disc(slide):
    from stfm_jax.data.images.opening import open_image

    found = tissue.find(open_image(slide), UM_PER_PX)
    wanted = disc(150, 200, 100)
    assert (found.mask & wanted).sum() / (found.mask | wanted).sum() > 0.95


def drawn(path):
    """The left half of the slide, in pixels of level 0."""
    half = [[0, 0], [800, 0], [800, 1200], [0, 1200], [0, 0]]
    about = {"classification": {"name": "Tumor"}}
    geometry = {"type": "Polygon", "coordinates": [half]}
    path.write_text(json.dumps({"type": "Feature", "geometry": geometry, "properties": about}))
    return str(path)


def test_regions_and_spots_as_geojson(trained, model, slide, tmp_path):
    regions = drawn(tmp_path / "half.geojson")
    given = configured(trained, tmp_path / "out", slide, regions=regions, geojson=True)
    predict_file(given, model, trained.workdir)
    out = anndata.read_h5ad(tmp_path / "out" / "out.h5ad")
    assert set(out.obs["region"]) == {"Tumor"} and out.obsm["spatial"][:, 0].max() <= 800
    spots = json.loads((tmp_path / "out" / "out.geojson").read_text())["features"]
    assert [spot["properties"]["name"] for spot in spots] == list(out.obs_names)
    first = spots[0]["properties"]["measurements"]
    np.testing.assert_allclose([first[g] for g in out.var_names], out.X[0], rtol=1e-3)
    table = (tmp_path / "out" / "out_regions.csv").read_text().splitlines()
    assert table[0].startswith("region,spots,") and table[1].startswith(f"Tumor,{out.n_obs},")
    called = stfm.load(trained.workdir).predict(slide, draws=2, regions=regions)
    assert list(called.obs_names) == list(out.obs_names)
    np.testing.assert_allclose(called.X, out.X, atol=1e-5)


def test_regions_of_a_slide_with_counts_are_scored(trained, model, tmp_path):
    given = anndata.read_h5ad(trained.unseen)
    given.obsm["spatial"] = np.asarray(given.obsm["spatial"]) / 2
    given.uns |= {"spatial_unit": "pixel", "um_per_px": 2.0}
    given.write_h5ad(tmp_path / "in.h5ad")
    regions = drawn(tmp_path / "half.geojson")
    config = configured(trained, tmp_path, tmp_path / "in.h5ad", regions=regions)
    predict_slide.predict(*predict_slide.read_input(config, model), config, trained.workdir)
    out = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert 0 < out.n_obs < given.n_obs and (out.obsm["spatial"][:, 0] <= 800).all()
    assert (tmp_path / "out_regions.csv").read_text().startswith("region,spots,pearson,")
    far = (tmp_path / "half.geojson").read_text().replace("800", "1").replace("1200", "1")
    (tmp_path / "far.geojson").write_text(far)
    config = configured(
        trained, tmp_path, tmp_path / "in.h5ad", regions=str(tmp_path / "far.geojson")
    )
    with bad(r"far\.geojson: none of the \d+ spots .* drawn on this very image"):
        predict_slide.read_input(config, model)
    config = configured(trained, tmp_path, trained.unseen, regions=regions)
    with bad(r"--config\.predict\.regions: .* expected pixels"):
        predict_slide.read_input(config, model)
