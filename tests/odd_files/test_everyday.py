"""Files of every day: each gives the plain file's prediction, or one line that helps.

A row a case: what is made of the plain file, what must be said, and, where it is predicted, which
spots of the plain file these are.
"""

from __future__ import annotations

import gzip
import json
import shutil

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import tiny
from bad_input import assert_message, edit
from odd import METHOD, PITCH, SIDE, check_refused, check_same
from PIL import Image, PngImagePlugin

from stfm_jax.data.readers import her2st
from stfm_jax.predict import slide as predict_slide
from stfm_jax.predict import slide_report


def unknown_encodings(place) -> dict:
    """Elements that nobody looks at, as a later anndata, or another tool, may write them."""
    fields = place.slide()
    with h5py.File(fields["predict__input"], "r+") as file:
        for name in ("uns/odd", "obs/odd", "var/odd", "obsm/odd", "layers/odd"):
            file[name] = np.zeros(3)
            file[name].attrs.update({"encoding-type": "of-tomorrow", "encoding-version": "9"})
    return fields


def twice_outside(adata):
    """A barcode of another capture, outside the tissue."""
    more = adata[:5].copy()
    more.obsm["spatial"] = more.obsm["spatial"] + 1e5
    adata.obs["in_tissue"], more.obs["in_tissue"] = 1, 0
    joined = anndata.concat([adata, more])
    joined.uns = adata.uns
    return joined


def outside(adata):
    """Some spots are outside the tissue, it says."""
    adata.obs["in_tissue"] = [*map(int, in_the_tissue(adata.n_obs))]


def in_the_tissue(number: int) -> np.ndarray:
    return np.arange(number) % 3 > 0


def of_scanpy(adata):
    """Visium as scanpy leaves it: no unit, but scale factors; counts are integers of 64 bits."""
    scale = adata.uns["um_per_px"]
    del adata.uns["spatial_unit"], adata.uns["um_per_px"]
    factors = {"spot_diameter_fullres": 65.0 / scale, "tissue_hires_scalef": 0.15}
    about = {"images": {"hires": np.zeros((4, 4, 3))}, "scalefactors": factors, "metadata": {}}
    adata.uns["spatial"] = {"V1": about}


def as_arrays(adata):
    """Written from R: scalars are arrays of one."""
    for key in ("spatial_unit", "um_per_px", "encoder"):
        adata.uns[key] = np.array([adata.uns[key]])


def as_arrays_um(adata):
    for key in ("spatial_unit", "encoder"):
        adata.uns[key] = np.array([adata.uns[key]])


def nullable(adata):
    adata.obs["patient"] = pd.array(["P1"] * adata.n_obs, dtype="string")
    adata.obs["in_tissue"] = pd.array([True] * adata.n_obs, dtype="boolean")
    anndata.settings.allow_write_nullable_strings = True


def in_millimetres(adata):
    adata.uns["um_per_px"] = adata.uns["um_per_px"] / 1000


def folder(place) -> dict:
    return place.slide(predict__embeddings=str(place.root))


def first(number: int):
    return lambda adata: adata[:number].copy()


def with_text(path, pixels):
    """A PNG with a description of 3 MB and a large profile of its colours."""
    about = PngImagePlugin.PngInfo()
    about.add_text("description", "tissue " * 450_000, zip=True)
    Image.fromarray(pixels).save(path, pnginfo=about, icc_profile=bytes(2_000_000))


def image(name: str, change, **fields):
    """The image as another file; `change` writes pixels [h, w, 3] to a path."""

    def make(place):
        path = place.root / name
        change(path, np.asarray(Image.open(place.model.image)))
        return place.slide(predict__image=str(path), **fields)

    return make


def without_last_rows(path, pixels):
    Image.fromarray(pixels[:, : PITCH * SIDE - 1]).save(path)


def beyond(adata):
    """A spot of 36 lies beyond the image."""
    adata.obsm["spatial"][5] = (900, 40)


CLOSED = [
    # name, what is made, words that are said, spots of the plain file
    ("encodings of tomorrow", unknown_encodings, [], None),
    ("a barcode twice, once outside", lambda p: p.slide(twice_outside), [], None),
    (
        "in_tissue",
        lambda p: p.slide(outside),
        ["outside the tissue"],
        lambda n: np.arange(n) % 3 > 0,
    ),
    ("in_tissue ignored", lambda p: p.slide(outside, predict__in_tissue=False), [], None),
    ("Visium of scanpy", lambda p: p.slide(of_scanpy), [], None),
    ("scalars as arrays of one", lambda p: p.slide(as_arrays), [], None),
    ("nullable columns", lambda p: p.slide(nullable), [], None),
]
PICTURED = [
    ("a PNG with much text", image("a.png", with_text), [], None),
    (
        "a spot beyond the image",
        lambda p: p.slide(beyond),
        ["1 of 36 spots lie beyond the image", "--config.data.strict=True"],
        lambda n: np.arange(n) != 5,
    ),
    ("one spot", lambda p: p.slide(first(1)), [], lambda n: np.arange(n) < 1),
]
REFUSED = [
    ("a folder in its place", folder, ["found a folder"]),
    ("millimetres", lambda p: p.slide(in_millimetres), ["0.0005", "is it in millimetres?"]),
]
PICTURES_REFUSED = [
    (
        "a spot beyond the image, strictly",
        lambda p: p.slide(beyond, data__strict=True),
        ["1 of 36 spots lie outside the image"],
    ),
    (
        "an image over the limit",
        lambda p: p.slide(data__max_image_gib=1e-4),
        ["280 x 280 pixels", "--config.data.max_image_gib allows 0.0001"],
    ),
    (
        "most spots beyond the image",
        image("a.png", without_last_rows),
        ["spots lie outside the image"],
    ),
]


def raw_counts(adata):
    """X normalised, the counts in `.raw`, of all genes in another order."""
    adata.raw = adata[:, ::-1].copy()
    adata.X = np.log1p(np.asarray(adata.X.todense()) * 0.37)


def regained(adata):
    """Counts that went through log1p and back."""
    adata.X = np.expm1(np.log1p(np.asarray(adata.X.todense(), np.float32)))


def renamed(change):
    def rename(adata):
        adata.var_names = [change(name) for name in adata.var_names]

    return rename


def ids(adata):
    """Ensembl ids with versions, symbols in a column."""
    adata.var["gene_symbols"] = list(adata.var_names)
    adata.var_names = [f"ENSG{i:011d}.{i % 9}" for i in range(adata.n_vars)]


def without_symbols(adata):
    ids(adata)
    del adata.var["gene_symbols"]


def fewer_genes(adata):
    return adata[:, :12].copy()


TRAINED = [
    # name, what is changed in the second of three slides, fields, words that are said
    ("counts in .raw", raw_counts, {}, ["counts are those of .raw, X has none"]),
    ("counts regained by expm1", regained, {}, ["off integers by up to", "and rounded"]),
    ("spaces after names of genes", renamed(lambda name: f"{name} "), {}, []),
    ("genes in another case", renamed(str.lower), {}, ["another letter case"]),
    ("Ensembl ids beside symbols", ids, {}, ["gene symbols taken from var['gene_symbols']"]),
    ("scalars as arrays of one", as_arrays_um, {}, []),
    ("nullable columns", nullable, {}, []),
]
NOT_TRAINED = [
    # name, what is changed in the second of three slides, fields, words of the message
    (
        "Ensembl ids without symbols",
        without_symbols,
        {},
        ["no gene is in all slides", "by Ensembl ids", "store the symbols in var['gene_symbols']"],
    ),
    (
        "normalised counts",
        lambda adata: setattr(adata, "X", adata.X * 0.3),
        {},
        ["must be non-negative integers", "layers['counts']"],
    ),
    (
        "in_tissue that is 0 everywhere",
        lambda adata: adata.obs.__setitem__("in_tissue", 0),
        {},
        ["outside the tissue", "--config.data.in_tissue=False"],
    ),
    ("genes that are missing", fewer_genes, {}, ["--config.data.missing_genes=drop"]),
]
CURED = [
    # name of what was refused, what was changed, what the message says to do
    ("in_tissue that is 0 everywhere", NOT_TRAINED[2][1], {"data__in_tissue": False}),
    ("genes that are missing", fewer_genes, {"data__missing_genes": "drop"}),
]


def trained(closed, root, change, **fields) -> int:
    """Exit code of training with the second slide changed."""
    shutil.copytree(closed.fields["data__dir"], root / "data")
    edit(sorted((root / "data").glob("*.h5ad"))[1], change)
    config = tiny.config(**closed.fields | {"data__dir": str(root / "data")} | fields)
    return tiny.run(config, root / "work")


@pytest.mark.parametrize(
    ("change", "fields", "words"), [c[1:] for c in TRAINED], ids=[c[0] for c in TRAINED]
)
def test_trained_as_on_the_plain_file(closed, tmp_path, capfd, change, fields, words):
    assert trained(closed, tmp_path, change, **fields) == 0
    said = capfd.readouterr().err
    for word in words:
        assert word in said, f"{word!r} is not in: {said}"
    found, plain = (
        json.loads((work / "metrics.json").read_text())["methods"][METHOD]
        for work in (tmp_path / "work", closed.work)
    )
    for name, values in plain.items():
        np.testing.assert_allclose(found[name]["folds"], values["folds"], atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("change", "fields", "words"), [c[1:] for c in NOT_TRAINED], ids=[c[0] for c in NOT_TRAINED]
)
def test_not_trained(closed, tmp_path, capfd, change, fields, words):
    capfd.readouterr()
    assert trained(closed, tmp_path, change, **fields) == 2
    assert_message(capfd.readouterr().err, words)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(("change", "fields"), [c[1:] for c in CURED], ids=[c[0] for c in CURED])
def test_advice_cures(closed, tmp_path, change, fields):
    assert trained(closed, tmp_path, change, **fields) == 0


def test_a_prediction_stands_though_its_map_and_score_fail(closed, tmp_path, capfd, monkeypatch):
    """Of a gene whose name is no text for a picture, or counts that cannot be read any more."""

    def fails(*_, **__):
        raise ValueError("ParseSyntaxException: P1$_$2")

    for name in ("_draw_maps", "_measured"):
        monkeypatch.setattr(predict_slide, name, fails)
    monkeypatch.setattr(slide_report, "write", fails)

    def make(place):
        return place.slide(predict__maps=True, predict__report=True)

    said = ["but not its map: ParseSyntaxException: P1$_$2", "but not compared", "not its report"]
    check_same(closed, tmp_path, capfd, make, said)


def of_r(text: str) -> str:
    """As `write.table` writes: quoted, without a corner, so that the header is one short."""
    header, *lines = text.splitlines()
    quoted = ["\t".join(f'"{cell}"' for cell in header.split("\t")[1:])]
    quoted += ["\t".join([f'"{first}"', *rest]) for first, *rest in (x.split("\t") for x in lines)]
    return "\n".join(quoted) + "\n"


def of_r_europe(text: str) -> str:
    """As `write.csv2` writes: `;` between cells, commas in numbers."""
    header, *lines = text.splitlines()
    lines = [f"{first};" + ";".join(f"{c},0" for c in rest) for first, *rest in
             (line.split("\t") for line in lines)]  # fmt: skip
    return "\n".join([header.replace("\t", ";"), *lines]) + "\n"


def trailing_tabs(text: str) -> str:
    return text.replace("\n", "\t\n")


@pytest.mark.parametrize("write", [of_r, of_r_europe, trailing_tabs])
def test_tables_of_r_are_those_of_the_data_set(pictured, tmp_path, write):
    root = tmp_path / "data"
    shutil.copytree(pictured.fields["data__dir"], root)
    plain = her2st.read(root, "A1")
    counts = root / "ST-cnts" / "A1.tsv.gz"
    counts.write_bytes(gzip.compress(write(gzip.decompress(counts.read_bytes()).decode()).encode()))
    spots = root / "ST-spotfiles" / "A1_selection.tsv"
    if write is not of_r_europe:
        named = "\t" + spots.read_text().replace("\n", "\n1\t").removesuffix("1\t")
        spots.write_text(write(named if write is of_r else spots.read_text()))
    found = her2st.read(root, "A1")
    np.testing.assert_array_equal(found.counts.toarray(), plain.counts.toarray())
    np.testing.assert_array_equal(found.coords_um, plain.coords_um)
    assert list(found.barcodes) == list(plain.barcodes)
    assert list(found.genes) == list(plain.genes)


def cases(table):
    return pytest.mark.parametrize(
        list(("make", "words", "spots")[: len(table[0]) - 1]),
        [case[1:] for case in table],
        ids=[case[0] for case in table],
    )


@cases(CLOSED)
def test_predicted_as_the_plain_file(closed, tmp_path, capfd, make, words, spots):
    check_same(closed, tmp_path, capfd, make, words, spots)


@cases(PICTURED)
def test_pictures(pictured, tmp_path, capfd, make, words, spots):
    check_same(pictured, tmp_path, capfd, make, words, spots)


@cases(REFUSED)
def test_refused(closed, tmp_path, capfd, make, words):
    check_refused(closed, tmp_path, capfd, make, words)


@cases(PICTURES_REFUSED)
def test_pictures_refused(pictured, tmp_path, capfd, make, words):
    check_refused(pictured, tmp_path, capfd, make, words)
