"""Embeddings that TRIDENT, CLAM and HEST's code wrote: on spots, and as spots themselves."""

import dataclasses

import h5py
import numpy as np
import pytest
from hest_layout import toy_slide

from stfm_jax.data import embeddings
from stfm_jax.data.readers import inputs
from stfm_jax.errors import InputError

SIDE, UM_PER_PX = 512, 0.25
OPTIONS = inputs.Options(um_per_px=UM_PER_PX)


def _slide():
    """Spots in pixels of level 0, on a lattice of 400 pixels."""
    slide = toy_slide()
    return dataclasses.replace(
        slide,
        coords_in=slide.coords_um / UM_PER_PX,
        spatial_unit="pixel",
        features=None,
        encoder=None,
    )


def _corners(slide):
    return np.round(slide.coords_in - SIDE / 2).astype(np.int64)


def trident(path, slide, features, **attributes):
    """As `extract_patch_features` of TRIDENT saves them: no barcodes, no batch axis."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        made = file.create_dataset("features", data=features)
        made.attrs.update({"name": slide.name, "savetodir": "somewhere", **attributes})
        coords = file.create_dataset("coords", data=_corners(slide))
        coords.attrs.update(
            {
                "patch_size": 256,
                "patch_size_level0": SIDE,
                "level0_magnification": 40,
                "target_magnification": 20,
                "overlap": 0,
                "name": slide.name,
                "savetodir": "somewhere",
            }
        )
    return path


def clam(path, slide, features):
    """As CLAM's extract_features_fp: chunked float32 and int32, no attributes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in (("features", features), ("coords", _corners(slide).astype(np.int32))):
            shape = (None, *values.shape[1:])
            file.create_dataset(name, data=values, maxshape=shape, chunks=(1, *values.shape[1:]))
    return path


def test_trident_is_matched_by_place(tmp_path):
    slide, features = _slide(), toy_slide().features
    order = np.random.default_rng(0).permutation(20)[:15]
    folder = tmp_path / "20x_256px_0px_overlap/features_uni_v1"
    path = trident(folder / "A1.h5", slide.subset(order), features[order])
    stored = embeddings.open_stored(path)
    assert stored.encoder == "uni_v1" and stored.barcodes is None and stored.side_px == SIDE
    found = embeddings.align(slide, stored)
    kept = np.sort(order)
    np.testing.assert_array_equal(found.barcodes, slide.barcodes[kept])
    np.testing.assert_array_equal(np.asarray(found.features), features[kept])
    named = trident(tmp_path / "b.h5", slide, features, encoder="conch_v1")
    assert embeddings.open_stored(named).encoder == "conch_v1"


def test_trident_is_an_input_itself(tmp_path):
    slide, features = _slide(), toy_slide().features
    path = trident(tmp_path / "features_uni_v1/A1.h5", slide, features)
    found = inputs.read_to_predict(path, OPTIONS)
    np.testing.assert_array_equal(found.coords_in, slide.coords_in)
    np.testing.assert_allclose(found.coords_um, slide.coords_um)
    np.testing.assert_array_equal(np.asarray(found.features), features)
    assert (found.name, found.encoder, found.spatial_unit) == ("A1", "uni_v1", "pixel")
    assert found.barcodes[0] == "144x144"
    with pytest.raises(InputError, match=r"how many micrometres .*--config\.predict\.um_per_px"):
        inputs.read_to_predict(path, inputs.Options())
    second = trident(tmp_path / "features_conch/A1.h5", slide, features[:, :2])
    both = inputs.read_to_predict(f"{path},{second}", OPTIONS)
    assert both.encoder == "uni_v1+conch" and both.widths == (5, 2)


def test_clam_says_no_size_and_is_asked_for_it(tmp_path):
    slide, features = _slide(), toy_slide().features
    path = clam(tmp_path / "h5_files/A1.h5", slide, features)
    with pytest.raises(InputError, match=r"predict\.patch_px \(neighbouring patches are 400 apart"):
        inputs.read_to_predict(path, OPTIONS)
    given = dataclasses.replace(OPTIONS, patch_px=float(SIDE))
    found = inputs.read_to_predict(path, given)
    np.testing.assert_array_equal(found.coords_in, slide.coords_in)
    np.testing.assert_array_equal(np.asarray(found.features), features)
    (stored,) = inputs.open_embeddings(path, float(SIDE))
    np.testing.assert_array_equal(np.asarray(embeddings.align(slide, stored).features), features)
    with h5py.File(path, "r+") as file:  # as CLAM's patch files say it
        size = {"patch_size": 256, "patch_level": 1, "downsample": np.array([2.0, 2.0])}
        file["coords"].attrs.update(size)
    np.testing.assert_array_equal(inputs.read_to_predict(path, OPTIONS).coords_in, slide.coords_in)


def test_ours_are_read_as_tridents_would(tmp_path):
    """The keys and attributes that TRIDENT's own readers ask for; and they are an input, too."""
    slide, features = _slide(), toy_slide().features
    path = tmp_path / "A1.h5"
    embeddings.write(
        path, features, slide.coords_in, slide.barcodes, "toy", side_px=SIDE, um_per_px=UM_PER_PX
    )
    with h5py.File(path) as file:
        assert file["features"].shape == (20, 5) and file["features"].dtype == np.float32
        assert file["coords"].dtype == np.int64
        np.testing.assert_array_equal(file["coords"], _corners(slide))
        said = dict(file["coords"].attrs)
        ratio = said["level0_magnification"] / said["target_magnification"]
        assert said["patch_size"] * ratio == said["patch_size_level0"] == SIDE
        assert said["level0_magnification"] == 40 and file["features"].attrs["name"] == "A1"
    found = inputs.read_to_predict(path, inputs.Options())
    np.testing.assert_array_equal(found.barcodes, slide.barcodes)
    np.testing.assert_allclose(found.coords_um, slide.coords_um)
    assert found.encoder == "toy"


def test_what_earlier_versions_wrote_stays_readable(tmp_path):
    slide, features = _slide(), toy_slide().features
    with h5py.File(tmp_path / "A1.h5", "w") as file:
        file["embeddings"], file["coords"] = features, slide.coords_in
        file["barcodes"] = slide.barcodes.astype("S").reshape(-1, 1)
        file.attrs["encoder"] = "toy_112um"
    found = embeddings.align(slide, embeddings.read(tmp_path / "A1.h5"))
    np.testing.assert_array_equal(found.features, features)
    assert found.encoder == "toy_112um"
    with pytest.raises(InputError, match=r"HEST's layout .*--config\.predict\.embeddings"):
        inputs.read_to_predict(tmp_path / "A1.h5", OPTIONS)


def test_a_leading_axis_of_one_is_taken_off(tmp_path):
    slide, features = _slide(), toy_slide().features
    path = trident(tmp_path / "a.h5", slide, features)
    with h5py.File(path, "r+") as file:
        coords, said = file["coords"][()], dict(file["coords"].attrs)
        del file["features"], file["coords"]
        file["features"], file["coords"] = features[None].astype(np.float16), coords[None]
        file["coords"].attrs.update(said)
    found = embeddings.align(slide, embeddings.open_stored(path))
    np.testing.assert_allclose(found.features, features, atol=2e-3)


def _only_coords(file):
    del file["features"]


def _of_the_slide(file):
    del file["features"]
    file["features"] = np.zeros(5, np.float32)


def _no_patches(file):
    del file["features"], file["coords"]
    file["features"], file["coords"] = np.zeros((0, 5)), np.zeros((0, 2), int)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_only_coords, "coords of patches and no features"),
        (_of_the_slide, r"features of patches \[n, f\], found \(5,\): those of a whole slide"),
        (_no_patches, "has no patches"),
    ],
)
def test_bad_files(tmp_path, spoil, message):
    path = trident(tmp_path / "a.h5", _slide(), toy_slide().features)
    with h5py.File(path, "r+") as file:
        spoil(file)
    with pytest.raises(InputError, match=message):
        inputs.read_to_predict(path, OPTIONS)


def test_a_tensor_and_other_places_say_what_to_do(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"h5_files/<slide>\.h5 beside pt_files"):
        inputs.read_to_predict(tmp_path / "a.pt", OPTIONS)
    slide = _slide()
    moved = dataclasses.replace(slide, coords_in=slide.coords_in + 100)
    stored = embeddings.open_stored(trident(tmp_path / "a.h5", moved, toy_slide().features))
    with pytest.raises(
        InputError, match=r"nearest is 141\.421 pixels away.*predict\.input=.*a\.h5"
    ):
        embeddings.align(slide, stored)
    um = dataclasses.replace(slide, coords_in=slide.coords_um, spatial_unit="um")
    with pytest.raises(InputError, match="but slide 'A1' has micrometres"):
        embeddings.align(um, stored)
