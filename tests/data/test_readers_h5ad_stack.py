"""Stacks in AnnData files: places in the common frame, heights, sections without expression."""

import dataclasses

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hest_layout import toy_slide

from stfm_jax.data import feature_store
from stfm_jax.data.readers import h5ad, h5ad_group
from stfm_jax.errors import InputError

SIZES = {"S1": 6, "S2": 5, "S3": 7}
HEIGHTS = {"S1": 32.0, "S2": 0.0, "S3": 16.0}
LABELS = np.array([name for name, n in SIZES.items() for _ in range(n)])
LABELS = LABELS[np.random.default_rng(3).permutation(len(LABELS))]
N = len(LABELS)
COUNTS = np.random.default_rng(0).poisson(1.0, (N, 4)).astype(np.float32) + np.eye(N, 4)
FEATURES = np.random.default_rng(1).normal(size=(N, 3)).astype(np.float32)
COORDS = np.random.default_rng(2).uniform(0, 1000, (N, 2))
HEIGHT = np.array([HEIGHTS[name] for name in LABELS])


def _stack(X=COUNTS, **obs):
    """Three sections in one file, spots in no order, features beside them."""
    columns = {"section": LABELS, "z_um": HEIGHT, "patient": "P1", **obs}
    return anndata.AnnData(
        None if X is None else X.copy(),
        obs=pd.DataFrame(columns, index=[f"s{i}" for i in range(N)]),
        var=pd.DataFrame(index=["A", "B", "C", "D"]),
        obsm={"spatial": COORDS.copy(), "features": FEATURES.copy()},
        uns={"spatial_unit": "um", "encoder": "toy"},
    )


def _without(section, value=0.0, X=COUNTS):
    X = X.copy()
    X[section == LABELS] = value
    return X


def _frame(adata):
    adata.obsm["spatial3d"] = np.column_stack([COORDS + 5.0, HEIGHT])
    return adata


def _read(tmp_path, adata, read=h5ad.read_stack_to_predict, **options):
    adata.write_h5ad(tmp_path / "stack.h5ad")
    return read(tmp_path / "stack.h5ad", **options)


def _assert_whole(slides, unmeasured=()):
    """All three sections with their own rows, by height; some without counts."""
    assert [s.section for s in slides] == ["S2", "S3", "S1"]
    assert [s.name for s in slides] == ["stack_S2", "stack_S3", "stack_S1"]
    for slide in slides:
        here = slide.section == LABELS
        assert (slide.z_um, slide.patient) == (HEIGHTS[slide.section], "P1")
        np.testing.assert_array_equal(slide.coords_um, COORDS[here])
        np.testing.assert_array_equal(np.asarray(slide.features), FEATURES[here])
        assert slide.encoder == "toy"
        if slide.section in unmeasured:
            assert slide.counts is None and slide.genes is None
        else:
            np.testing.assert_array_equal(slide.counts.toarray(), COUNTS[here])
            np.testing.assert_array_equal(slide.genes, ["A", "B", "C", "D"])


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_a_stack_to_predict_leaves_its_features_in_the_file(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(h5ad_group, "_DENSE_AT_ONCE", 24)
    monkeypatch.setattr(feature_store, "BLOCK", 4)
    slides = _read(tmp_path, _stack(kind(COUNTS)))
    assert all(isinstance(slide.features, feature_store.StoredFeatures) for slide in slides)
    _assert_whole(slides)


@pytest.mark.parametrize("X", [_without("S3"), sp.csr_matrix(_without("S3"))])
def test_a_section_whose_counts_are_all_zero_was_not_measured(tmp_path, X):
    _assert_whole(_read(tmp_path, _stack(X)), unmeasured=["S3"])


@pytest.mark.parametrize("write", [bool, int, str])
def test_a_file_says_which_sections_were_measured(tmp_path, write):
    """What stands in the others, such as a prediction of ours, is not looked at."""
    said = [write(name != "S3") for name in LABELS]
    _assert_whole(_read(tmp_path, _stack(_without("S3", 0.5), measured=said)), unmeasured=["S3"])
    _assert_whole(_read(tmp_path, _stack(measured=said)), unmeasured=["S3"])


def test_counts_in_a_layer_go_before_x(tmp_path):
    adata = _stack(np.log1p(COUNTS))
    adata.layers["counts"], adata.layers["other"] = sp.csr_matrix(_without("S1")), COUNTS
    _assert_whole(_read(tmp_path, adata), unmeasured=["S1"])
    adata.layers["umi"] = adata.layers.pop("counts")
    _assert_whole(_read(tmp_path, adata, counts_layer="umi"), unmeasured=["S1"])
    with pytest.raises(InputError, match=r"layers\['raw'\], found layers other, umi;"):
        _read(tmp_path, adata, counts_layer="raw")


def test_a_stack_of_images_alone(tmp_path):
    _assert_whole(_read(tmp_path, _stack(None)), unmeasured=SIZES)
    adata = _stack(None)[:, :0].copy()
    _assert_whole(_read(tmp_path, adata), unmeasured=SIZES)
    _assert_whole(_read(tmp_path, adata, counts_layer="umi"), unmeasured=SIZES)


def test_one_section_is_a_list_of_one(tmp_path):
    adata = _stack()[LABELS == "S2"].copy()
    del adata.obs["section"]
    (slide,) = _read(tmp_path, adata)
    assert (slide.name, slide.section, slide.z_um) == ("stack", "", 0.0)
    np.testing.assert_array_equal(slide.counts.toarray(), COUNTS[LABELS == "S2"])


def test_spots_outside_the_tissue_do_not_make_a_section_measured(tmp_path):
    adata = _stack(_without("S1"), in_tissue=1)
    spot = np.flatnonzero(LABELS == "S1")[2]
    adata.X[spot], adata.obs["in_tissue"] = 9.0, np.arange(N) != spot
    slide = _read(tmp_path, adata)[-1]
    assert slide.section == "S1" and slide.counts is None and slide.num_spots == 5
    keep = (LABELS == "S1") & (np.arange(N) != spot)
    np.testing.assert_array_equal(np.asarray(slide.features), FEATURES[keep])


READERS = [h5ad.read_stack, h5ad.read_stack_to_predict]


@pytest.mark.parametrize("read", READERS)
def test_places_in_the_common_frame(tmp_path, read):
    adata = _frame(_stack())
    del adata.obs["z_um"]
    for slide in (slides := _read(tmp_path, adata, read)):
        np.testing.assert_allclose(slide.registered_um, COORDS[slide.section == LABELS] + 5.0)
        np.testing.assert_array_equal(slide.coords_um, COORDS[slide.section == LABELS])
    _assert_whole(slides)
    adata.obs["z_um"] = HEIGHT
    _assert_whole(_read(tmp_path, adata, read))


@pytest.mark.parametrize("read", READERS)
def test_heights_by_section_in_uns(tmp_path, read):
    adata = _stack()
    del adata.obs["z_um"]
    adata.uns["z_um"] = dict(HEIGHTS)
    _assert_whole(_read(tmp_path, adata, read))


@pytest.mark.parametrize("read", [h5ad.read, h5ad.read_to_predict])
def test_a_written_slide_keeps_its_place(tmp_path, read):
    slide = dataclasses.replace(
        toy_slide(), z_um=48.0, section="S3", registered_um=toy_slide().coords_um * 0.5
    )
    h5ad.write(slide, tmp_path / "one.h5ad")
    again = read(tmp_path / "one.h5ad")
    np.testing.assert_allclose(again.registered_um, slide.registered_um)
    assert (again.z_um, again.section) == (48.0, "S3")
    homeless = dataclasses.replace(slide, z_um=None)
    with pytest.raises(InputError, match="places in the frame of its stack, but no z_um"):
        h5ad.write(homeless, tmp_path / "two.h5ad")
    assert not (tmp_path / "two.h5ad").exists()
    h5ad.write(toy_slide(), tmp_path / "three.h5ad")
    assert read(tmp_path / "three.h5ad").registered_um is None


def test_a_folder_is_a_stack_by_height(tmp_path):
    slides = [
        dataclasses.replace(toy_slide(name), z_um=z, patient="P1", section=name.lower())
        for name, z in (("A", 30.0), ("B", 10.0), ("C", 20.0))
    ]
    slides[1] = dataclasses.replace(slides[1], counts=None, genes=None)
    slides[2] = dataclasses.replace(slides[2], counts=slides[2].counts * 0)
    for slide in slides:
        h5ad.write(slide, tmp_path / f"{slide.name}.h5ad")
    found = h5ad.read_folder_to_predict(tmp_path)
    assert [(s.name, s.section, s.z_um) for s in found] == [
        ("B", "b", 10.0),
        ("C", "c", 20.0),
        ("A", "a", 30.0),
    ]
    assert [s.counts is None for s in found] == [True, True, False]
    assert [s.genes is None for s in found] == [True, True, False]
    np.testing.assert_array_equal(found[2].counts.toarray(), slides[0].counts.toarray())
    assert all(isinstance(slide.features, feature_store.StoredFeatures) for slide in found)


def _set(mapping, key, value):
    return lambda adata: getattr(adata, mapping).__setitem__(key, value)


def _change(key, row, column, value):
    def change(adata):
        adata.obsm[key][row, column] = value

    return change


BAD = {
    "height of a spot": (_change("spatial3d", 4, 2, 70.0), "one height for .*found .* to 70 um"),
    "heights differ": (_set("obs", "z_um", HEIGHT + 3.0), "z_um is 35, but .*spatial3d'.* is 32"),
    "two columns": (_set("obsm", "spatial3d", COORDS), r"obsm\['spatial3d'\] .*shape \(\d, 2\)"),
    "NaN place": (_change("spatial3d", 4, 0, np.nan), "with 1 values not finite"),
    "words": (
        lambda a: a.obsm.__setitem__("spatial3d", np.full((N, 3), "x")),
        r"obsm\['spatial3d'\] to be a matrix of numbers",
    ),
    "odd measured": (_set("obs", "measured", "perhaps"), "True or False, found 'perhaps'"),
    "measured in part": (_set("obs", "measured", np.arange(N) % 2), "expected one measured for"),
    "measured, all zero": (
        lambda a: (_set("obs", "measured", True)(a), setattr(a, "X", _without("S3"))),
        r"slide 'stack_S3' .*says that its expression was measured, but it has no counts",
    ),
    "normalised": (lambda a: setattr(a, "X", COUNTS / 2), "raw counts .*obs.'measured'. to False"),
    "NaN counts": (lambda a: setattr(a, "X", _without("S2", np.nan)), "found nan; put them into"),
    "one height in uns": (
        lambda a: (a.obs.pop("z_um"), _set("uns", "z_um", np.arange(3.0))(a)),
        r"z_um must be a number .*several sections give obs\['z_um'\]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_stacks(tmp_path, case):
    change, message = BAD[case]
    adata = _frame(_stack())
    change(adata)
    with pytest.raises(InputError, match=message) as caught:
        _read(tmp_path, adata)
    assert "stack.h5ad" in str(caught.value)


def test_measured_needs_counts(tmp_path):
    with pytest.raises(InputError, match="was measured, but it has no counts"):
        _read(tmp_path, _stack(None, measured=True))


def test_bad_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="none: no such folder"):
        h5ad.read_folder_to_predict(tmp_path / "none")
    with pytest.raises(InputError, match=r"expected one \.h5ad or \.zarr for each section"):
        h5ad.read_folder_to_predict(tmp_path)
    _stack().write_h5ad(tmp_path / "stack.h5ad")
    with pytest.raises(InputError, match=r"stack\.h5ad: .*names 3 \(S2, S3, S1\); split"):
        h5ad.read_folder_to_predict(tmp_path)
    (tmp_path / "stack.h5ad").write_bytes(b"")
    with pytest.raises(InputError, match=r"stack\.h5ad: expected an AnnData file"):
        h5ad.read_folder_to_predict(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.h5ad: no such file"):
        h5ad.read_stack_to_predict(tmp_path / "none.h5ad")
