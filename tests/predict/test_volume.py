"""A stack as one AnnData: order, names, what lies where, and what is refused."""

import dataclasses
import os

import anndata
import numpy as np
import pandas as pd
import pytest

from stfm_jax.data.readers import h5ad
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError
from stfm_jax.predict.volume import SectionResult, section_labels, volume, write_volume, z_order

GENES = ["A", "B", "C"]


def result(name, z_um, n, measured=False, section="", barcodes=None, **changes):
    rng = np.random.default_rng(n)
    coords = rng.uniform(0, 900, (n, 2))
    slide = Slide(
        name=name,
        barcodes=np.array([f"spot{i}" for i in range(n)] if barcodes is None else barcodes),
        coords_um=coords,
        coords_in=coords / 0.5,
        spatial_unit="pixel",
        section=section,
        z_um=z_um,
    )
    mean = rng.gamma(2.0, size=(n, len(GENES)))
    spread = np.zeros_like(mean) if measured else rng.uniform(0.1, 1, mean.shape)
    made = SectionResult(slide, coords + 7.0, measured, mean, spread, mean - spread, mean + spread)
    return dataclasses.replace(made, **changes)


@pytest.fixture
def stack():
    """Sections at z 32, 0 and 16, whose barcodes repeat."""
    return [
        result("apex", 32.0, 6, measured=True),
        result("bottom", 0.0, 5, measured=True),
        result("middle", 16.0, 4),
    ]


def made(sections, **uns):
    return volume(sections, GENES, "log1p", uns)


def test_sections_lie_in_the_order_of_z_and_keep_their_values(stack):
    adata = made(stack)
    assert list(adata.obs["section"].cat.categories) == ["bottom", "middle", "apex"]
    assert adata.obs["z_um"].is_monotonic_increasing and list(adata.var_names) == GENES
    for section in stack:
        part = adata[adata.obs["section"] == section.slide.name]
        np.testing.assert_array_equal(part.X, section.mean.astype(np.float32))
        for name in ("std", "q10", "q90"):
            values = getattr(section, name).astype(np.float32)
            np.testing.assert_array_equal(part.layers[name], values)
            assert adata.layers[name].dtype == np.float32
        np.testing.assert_array_equal(part.obsm["spatial"], section.slide.coords_in)
        np.testing.assert_array_equal(part.obsm["spatial_um"], section.slide.coords_um)
        np.testing.assert_array_equal(part.obsm["spatial3d"][:, :2], section.registered_um)
        assert set(part.obsm["spatial3d"][:, 2]) == set(part.obs["z_um"]) == {section.slide.z_um}
        assert set(part.obs["measured"]) == {section.measured}
        assert list(part.obs["barcode"]) == list(section.slide.barcodes)
        assert set(part.obs["slide"]) == {section.slide.name}
    assert adata.X.dtype == np.float32 and adata.obs["measured"].dtype == bool


def test_names_that_repeat_are_made_as_anndata_concat_makes_them(stack):
    ascending = sorted(stack, key=lambda section: section.slide.z_um)
    parts = {
        section.slide.name: anndata.AnnData(obs=pd.DataFrame(index=section.slide.barcodes))
        for section in ascending
    }
    adata = made(stack)
    assert adata.obs_names.is_unique
    assert list(adata.obs_names) == list(anndata.concat(parts, index_unique="-").obs_names)
    assert adata.obs_names[0] == "spot0-bottom"


def test_names_that_tell_spots_apart_stay_as_they_came():
    one = result("one", 0.0, 2, barcodes=["a", "b"])
    two = result("two", 9.0, 2, barcodes=["c", "d"])
    assert list(made([two, one]).obs_names) == ["a", "b", "c", "d"]


def test_names_are_unique_even_where_dashes_make_two_alike():
    one = result("b-c", 0.0, 2, barcodes=["a", "x"])
    two = result("c", 9.0, 2, barcodes=["a-b", "x"])
    assert made([one, two]).obs_names.is_unique


def test_a_section_is_called_as_its_slides_say_where_that_tells_them_apart():
    slides = [result(f"P_{s}", z, 3, section=s).slide for z, s in enumerate(("S1", "S2"))]
    assert section_labels(slides) == ["S1", "S2"]
    alike = [dataclasses.replace(slide, section="S") for slide in slides]
    assert section_labels(alike) == ["P_S1", "P_S2"]
    none = [slides[0], dataclasses.replace(slides[1], section="")]
    assert section_labels(none) == ["P_S1", "P_S2"]


def test_uns_says_what_is_given_and_the_normalization(stack):
    uns = made(stack, stfm={"method": "holotea"}, normalization="?").uns
    assert uns["stfm"] == {"method": "holotea"} and uns["normalization"] == "log1p"
    assert uns["spatial_unit"] == "pixel"
    um = dataclasses.replace(stack[0].slide, spatial_unit="um")
    assert (
        made([dataclasses.replace(stack[0], slide=um), *stack[1:]]).uns["spatial_unit"] == "mixed"
    )


def test_what_was_written_is_read_again(stack, tmp_path):
    adata = made(stack, stfm={"method": "holotea", "draws": 8})
    path = tmp_path / "new" / "stack.h5ad"
    write_volume(path, adata)
    assert os.listdir(path.parent) == ["stack.h5ad"]
    again = anndata.read_h5ad(path)
    np.testing.assert_array_equal(again.X, adata.X)
    assert again.obs.equals(adata.obs)
    assert list(again.obs["section"].cat.categories) == ["bottom", "middle", "apex"]
    assert again.obs["section"].cat.ordered
    for name in adata.layers:
        np.testing.assert_array_equal(again.layers[name], adata.layers[name])
    for name in ("spatial", "spatial_um", "spatial3d"):
        np.testing.assert_array_equal(again.obsm[name], adata.obsm[name])
    assert again.uns["normalization"] == "log1p" and again.uns["stfm"]["draws"] == 8


def test_a_section_cut_out_of_it_is_a_slide_to_our_reader(stack, tmp_path):
    adata = made(stack)
    adata[adata.obs["section"] == "apex"].write_h5ad(tmp_path / "apex.h5ad")
    slide = h5ad.read_to_predict(tmp_path / "apex.h5ad", um_per_px=0.5)
    assert (slide.section, slide.z_um, slide.spatial_unit) == ("apex", 32.0, "pixel")
    np.testing.assert_allclose(slide.coords_um, stack[0].slide.coords_um)


def test_a_failure_leaves_the_old_file(stack, tmp_path, monkeypatch):
    def fails(self, path, **_):
        path.write_text("half")
        raise RuntimeError("power cut")

    path = tmp_path / "stack.h5ad"
    path.write_text("old")
    monkeypatch.setattr(anndata.AnnData, "write_h5ad", fails)
    with pytest.raises(RuntimeError, match="power cut"):
        write_volume(path, made(stack))
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["stack.h5ad"]


@pytest.mark.parametrize(
    ("name", "shape"),
    [("mean", (4, 2)), ("std", (3, 3)), ("q10", (4,)), ("q90", (4, 4)), ("registered_um", (4, 3))],
)
def test_shapes_that_do_not_fit_are_refused(stack, name, shape):
    stack[2] = dataclasses.replace(stack[2], **{name: np.zeros(shape)})
    with pytest.raises(InputError, match=rf"'middle': expected {name} of shape \(4, .\), found"):
        made(stack)


def test_what_is_no_stack_is_refused(stack):
    lost = dataclasses.replace(stack[1].slide, z_um=None)
    with pytest.raises(InputError, match=r"'bottom': its position .*set obs\['z_um'\]"):
        made([stack[0], dataclasses.replace(stack[1], slide=lost)])
    with pytest.raises(InputError, match=r"'other': lies at z = 16 um as slide 'middle' does"):
        made([*stack, result("other", 16.0, 3)])
    with pytest.raises(InputError, match="two sections of the stack are named 'apex'"):
        made([*stack, result("apex", 48.0, 3)])
    with pytest.raises(InputError, match="at least one section"):
        made([])
    with pytest.raises(InputError, match="'A' occurs more than once"):
        volume(stack, ["A", "A", "C"], "log1p", {})
    stack[0].registered_um[2, 0] = np.nan
    with pytest.raises(InputError, match="'apex': NaN or infinite registered"):
        made(stack)


def test_order_of_slides_by_z(stack):
    assert z_order([section.slide for section in stack]) == [1, 2, 0]
