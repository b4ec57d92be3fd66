"""Files that could be misread: each gives the plain file's prediction, or says what is wrong.

A row a case: what is made of the plain file, what must be said, and, where it is predicted, which
spots of the plain file these are.
"""

from __future__ import annotations

import json
import shutil

import anndata
import h5py
import numpy as np
import pandas as pd
import platform_layouts as layouts
import pytest
import tifffile
import tiny
from anndata.io import read_elem
from bad_input import edit
from odd import Place, check_refused, check_same, predicted
from PIL import Image
from slide_files import write_ome

from stfm_jax.data import embeddings
from stfm_jax.data.readers import h5ad, her2st, inputs, space_ranger, transcripts
from stfm_jax.errors import InputError


def before_encodings(place) -> dict:
    """anndata 0.7: groups that do not say what they are, categories apart."""

    def change(adata):
        adata.obs["patient"] = pd.Categorical(["P9"] * adata.n_obs)

    fields = place.slide(change)
    with h5py.File(fields["predict__input"], "r+") as file:
        for name in ("obs", "var"):
            for key in ("encoding-type", "encoding-version"):
                del file[name].attrs[key]
        codes = file["obs/patient/codes"][()]
        kinds = file["obs/patient/categories"][()]
        del file["obs/patient"]
        file["obs/patient"] = codes
        file["obs/__categories/patient"] = kinds
        file["obs/patient"].attrs["categories"] = file["obs/__categories/patient"].ref
    return fields


def as_records(place) -> dict:
    """anndata before 0.7: tables are arrays of records."""
    fields = place.slide()
    with h5py.File(fields["predict__input"], "r+") as file:
        for name in ("obs", "var"):
            names = [str(each).encode() for each in read_elem(file[name]["_index"])]
            del file[name]
            kind = [("index", f"S{max(map(len, names))}"), ("n_counts", "f4")]
            file[name] = np.array([(each, 1.0) for each in names], kind)
    return fields


def without_names(place) -> dict:
    fields = place.slide()
    with h5py.File(fields["predict__input"], "r+") as file:
        file.move("obs/_index", "obs/barcode")
        del file["obs"].attrs["_index"]
    return fields


def names_of_two(column: str, kind=str):
    """Half of the spots are of another slide, by a column."""

    def change(adata):
        adata.obs[column] = [kind(1 + (i > adata.n_obs // 2)) for i in range(adata.n_obs)]

    return lambda place: place.slide(change)


def suffixes(form: str):
    """Barcodes of nucleotides with the marks of two samples."""

    def change(adata):
        rng = np.random.default_rng(0)
        cores = ["".join(rng.choice(list("ACGT"), 16)) for _ in range(adata.n_obs)]
        adata.obs_names = [form.format(core, 1 + i % 2) for i, core in enumerate(cores)]

    return lambda place: place.slide(change)


def two_libraries(adata):
    factors = {"spot_diameter_fullres": 100.0, "tissue_hires_scalef": 0.1}
    adata.uns["spatial"] = {"A": {"scalefactors": factors}, "B": {"scalefactors": factors}}


def one_of_two_libraries(adata):
    """As it is left when a joined file is taken apart."""
    two_libraries(adata)
    adata.uns["spatial"]["B"]["scalefactors"] = {"spot_diameter_fullres": 7.0}
    diameter = 65.0 / adata.uns["um_per_px"]
    adata.uns["spatial"]["A"]["scalefactors"] = {"spot_diameter_fullres": diameter}
    adata.obs["library_id"] = pd.Categorical(["A"] * adata.n_obs)


def one_array_twice(adata):
    half = adata.n_obs // 2
    adata.obs["array_row"] = [i % half for i in range(adata.n_obs)]
    adata.obs["array_col"] = [2 * (i % half) for i in range(adata.n_obs)]


def one_over_another(share: float):
    """The same array again, shifted, for some of the spots."""

    def change(adata):
        pitch = 200.0 / adata.uns["um_per_px"]
        x, y = np.divmod(np.arange(adata.n_obs), 9)
        places = pitch * np.column_stack([x, y]).astype(float)
        first = int(adata.n_obs * (1 - share))
        places[first:] = np.add(places[: adata.n_obs - first], (0.2 * pitch, 0.15 * pitch))
        adata.obsm["spatial"] = places

    return lambda place: place.slide(change)


def as_table(first: str, second: str, swapped: bool):
    """`obsm['spatial']` as a DataFrame, its columns x, y or y, x."""

    def change(adata):
        xy = adata.obsm["spatial"]
        yx = xy[:, ::-1] if swapped else xy
        adata.obsm["spatial"] = pd.DataFrame(yx, adata.obs_names, [first, second])

    return lambda place: place.slide(change)


def pixels_in_obs(adata):
    """As scanpy of 2023 named them."""
    adata.obs["pxl_row_in_fullres"], adata.obs["pxl_col_in_fullres"] = adata.obsm["spatial"].T


SAME = [
    # name, what is made, words that are said, spots of the plain file
    ("anndata 0.7, without encodings", before_encodings, [], None),
    ("anndata before 0.7", as_records, [], None),
    ("one library of two", lambda p: p.slide(one_of_two_libraries), [], None),
    (
        "places in a table, rows first",
        as_table("pxl_row_in_fullres", "pxl_col_in_fullres", True),
        [],
        None,
    ),
    ("places in a table, y first", as_table("y", "x", True), [], None),
    ("places in a table, x first", as_table("X", "Y", False), [], None),
    ("places in a table without names", as_table("0", "1", False), [], None),
    (
        "columns that contradict the places",
        lambda p: p.slide(pixels_in_obs),
        ["x and y the other way round than obsm['spatial'], which is taken"],
        None,
    ),
]
REFUSED = [
    # name, what is made, words of the message
    ("a table without names", without_names, ["expected the names of obs in _index"]),
    *(
        (
            f"two slides by {column}",
            names_of_two(column),
            [f"found 2 in obs['{column}'] ('1', '2')"],
        )
        for column in ("library_id", "sample", "batch", "slice_ID", "Slide", "orig.ident")
    ),
    (
        "two slides by a number",
        names_of_two("batch", float),
        ["found 2 in obs['batch'] ('1.0', '2.0')"],
    ),
    (
        "two libraries",
        lambda p: p.slide(two_libraries),
        ["expected one slide, found 2 in uns['spatial'] (A, B)"],
    ),
    ("barcodes of two wells", suffixes("{}-{}"), ["found barcodes of 2 ('-1', '-2' around"]),
    ("barcodes joined by scanpy", suffixes("{}-1-{}"), ["found barcodes of 2 ('-1-1', '-1-2'"]),
    ("barcodes with a prefix", suffixes("S{1}_{0}-1"), ["found barcodes of 2 ('S1_-1', 'S2_-1'"]),
    ("one array over another", one_over_another(0.5), ["two arrays that lie over one another"]),
    ("one array partly over another", one_over_another(0.2), ["two arrays that lie over"]),
    ("one array twice", lambda p: p.slide(one_array_twice), ["array_row, array_col"]),
    (
        "a table of places that says nothing",
        as_table("a", "b", False),
        ["expected the columns x and y in the table obsm['spatial'], found 'a', 'b'"],
    ),
]


def patients(*names):
    """Training slides of these patients."""

    def change(folder):
        for path, name in zip(sorted(folder.glob("*.h5ad")), names, strict=True):
            edit(path, lambda adata, name=name: adata.obs.__setitem__("patient", name))

    return change


def under_another_name(folder, shuffled: bool = False):
    """The third slide is the first, its spots and genes in another order or not."""
    first, _, third = sorted(folder.glob("*.h5ad"))
    shutil.copy(first, third)
    if shuffled:
        edit(third, lambda adata: adata[::-1, ::-1].copy())
    edit(third, lambda adata: adata.obs.__setitem__("section", "S3"))


def beside(*names):
    """Files that other programs left, or ours when it was killed."""

    def change(folder):
        for name in names:
            (folder / name).write_bytes(b"\0\5\x16\7 no slide")

    return change


TRAINED = [
    ("names with a dot", beside("._P_S1.h5ad", ".P_S2-x1y2.h5ad", "._P_S1.zarr"), 3, ["3 slides"]),
    # name, what is changed in the folder of three slides, folds, words that are said
    ("patients with spaces", patients("P1", "P1 ", "p2"), 2, ["P1 (P_S1, P_S2); p2 (P_S3)"]),
    ("patients in other case", patients("p1", "P2", "P1"), 2, ["P_S1, P_S3"]),
    ("patients as numbers", patients("1", "1.0", "2"), 2, ["'1', '1.0' are taken for one"]),
    ("patients not told", patients("nan", "None", ""), 3, ["not told of P_S1, P_S2, P_S3"]),
    ("one slide under two names", under_another_name, 2, ["'P_S3'", "under another name"]),
    (
        "one slide in another order",
        lambda folder: under_another_name(folder, shuffled=True),
        2,
        ["'P_S3'", "under another name, and left out"],
    ),
]


@pytest.mark.parametrize(
    ("change", "folds", "words"), [case[1:] for case in TRAINED], ids=[case[0] for case in TRAINED]
)
def test_folds(closed, tmp_path, capfd, change, folds, words):
    data = tmp_path / "data"
    shutil.copytree(closed.fields["data__dir"], data)
    for path in data.glob("*.h5ad"):
        path.rename(data / path.name.replace("P1_", "P_"))
    change(data)
    config = tiny.config(**closed.fields | {"data__dir": str(data)})
    assert tiny.run(config, tmp_path / "work") == 0
    said = capfd.readouterr().err
    for word in ["patients: ", *words]:
        assert word in said, f"{word!r} is not in: {said}"
    assert len(json.loads((tmp_path / "work/metrics.json").read_text())["folds"]) == folds


@pytest.mark.parametrize(
    ("make", "words", "spots"), [case[1:] for case in SAME], ids=[case[0] for case in SAME]
)
def test_predicted_as_the_plain_file(closed, tmp_path, capfd, make, words, spots):
    check_same(closed, tmp_path, capfd, make, words, spots)


def image(name: str, change):
    """The image as another file; `change` writes pixels [h, w, 3] to a path."""

    def make(place):
        path = place.root / name
        change(path, np.asarray(Image.open(place.model.image)))
        return place.slide(predict__image=str(path))

    return make


def transparent(grey: bool = False, mixed: bool = False):
    """Writes pixels that are white where they are transparent, though their colours are black."""

    def write(path, pixels):
        glass = (pixels == 255).all(axis=-1)
        alpha = np.where(glass, 0, 255).astype(np.uint8)
        rgba = np.dstack([np.where(glass[..., None], 0, pixels), alpha])
        if path.suffix == ".tif":
            kind = "assocalpha" if mixed else "unassalpha"
            tifffile.imwrite(path, rgba, photometric="rgb", extrasamples=[kind])
        else:
            Image.fromarray(rgba).save(path)

    return write


def turned(path, pixels):
    """As stored they are the plain ones, whatever viewers make of them."""
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, photometric="rgb", extratags=[(274, 3, 1, 6, True)])
        return
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(path, exif=exif)


def planes(path, pixels):
    tifffile.imwrite(path, np.moveaxis(pixels, -1, 0), photometric="minisblack", metadata=None)


def scaled(factor: float, um_per_px: float = 5.0):
    """Places of an image that was scaled."""

    def change(adata):
        adata.obsm["spatial"] = adata.obsm["spatial"] * factor
        adata.uns["um_per_px"] = um_per_px

    return change


PICTURES = [
    # name, what is made, words that are said
    ("three grey pages", image("a.ome.tif", lambda p, x: write_ome(p, x, planes=True)), []),
    ("three grey pages without OME", image("a.tif", planes), []),
    ("transparent glass", image("a.png", transparent()), []),
    ("transparent glass in a TIFF", image("a.tif", transparent()), []),
    ("transparent glass mixed with black", image("a.tif", transparent(mixed=True)), []),
    ("a TIFF to be shown turned", image("a.tif", turned), ["shown turned (orientation 6)"]),
    ("a PNG to be shown turned", image("a.png", turned), ["shown turned (orientation 6)"]),
]
SAID = [
    # name, what is made, words that are said, whatever is predicted
    (
        "a grey image",
        image("a.png", lambda p, x: Image.fromarray(x).convert("L").save(p)),
        ["a.png is grey; expected the colours of H&E"],
    ),
    (
        "a grey image in three channels",
        image("a.png", lambda p, x: Image.fromarray(x[..., [1, 1, 1]]).save(p)),
        ["a.png is grey"],
    ),
    (
        "places of an image that was scaled down",
        lambda p: p.slide(scaled(0.25, 20.0)),
        ["spots reach to (60, 60), the tissue", "scaled down"],
    ),
    (
        "micrometres per pixel that are half",
        lambda p: p.slide(scaled(1.0, 2.5)),
        ["spots lie 100 um apart, those of the training slides 200: micrometres per pixel may be"],
    ),
    (
        "places beside the tissue",
        lambda p: image("a.png", beside_tissue)(p),
        ["of its spots lie on the tissue", "look at the map"],
    ),
]


def beside_tissue(path, pixels):
    """Tissue that lies right of the spots, on a wider slide."""
    glass = np.full_like(pixels, 255)
    Image.fromarray(np.concatenate([glass, pixels], axis=1)).save(path)


@pytest.mark.parametrize(
    ("make", "words"), [case[1:] for case in PICTURES], ids=[case[0] for case in PICTURES]
)
def test_pictures(pictured, tmp_path, capfd, make, words):
    check_same(pictured, tmp_path, capfd, make, words)


@pytest.mark.parametrize(
    ("make", "words"), [case[1:] for case in SAID], ids=[case[0] for case in SAID]
)
def test_what_is_odd_is_said(pictured, tmp_path, capfd, make, words):
    predicted(pictured, tmp_path / "out.h5ad", **make(Place(tmp_path, pictured)))
    said = capfd.readouterr().err
    for word in words:
        assert word in said, f"{word!r} is not in: {said}"


@pytest.mark.parametrize(
    ("make", "words"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_refused(closed, tmp_path, capfd, make, words):
    check_refused(closed, tmp_path, capfd, make, words)


def test_names_with_a_dot_are_never_looked_at(pictured, tmp_path):
    """Of any reader: macOS puts `._NAME` beside every file of a foreign disk."""
    root = tmp_path / "data"
    shutil.copytree(pictured.fields["data__dir"], root)
    plain = her2st.sections(root), her2st.read(root, "A1").patches.path.name
    for path in [*root.rglob("*.*")]:
        if path.is_file():
            path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    assert (her2st.sections(root), her2st.read(root, "A1").patches.path.name) == plain
    slide = layouts.visium_slide()
    outs = layouts.write_visium(tmp_path / "V1/outs", slide)
    image = layouts.write_image(tmp_path / "V1.tif", slide)
    for path in (*[p for p in outs.rglob("*") if p.is_file()], image):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    assert space_ranger.find_image(outs) == image
    found = inputs.read_to_predict(outs, inputs.Options())
    assert set(found.barcodes) == set(slide.barcodes)
    molecules = tmp_path / "molecules"
    molecules.mkdir()
    for name in ("a.csv", "._a.csv", ".b.csv"):
        (molecules / name).write_text("gene,x,y\nA,1,1\n")
    assert list(transcripts.tables(molecules)) == ["a"]


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_a_scale_that_contradicts_the_array_is_said(tmp_path, caplog, scale):
    """Visium's spots are 100 um apart, whether the file says that it is Visium or not."""
    slide = layouts.visium_slide()
    adata = anndata.AnnData(slide.counts, obsm={"spatial": slide.coords_in})
    adata.uns |= {"spatial_unit": "pixel", "um_per_px": slide.um_per_px * scale}
    adata.write_h5ad(tmp_path / "a.h5ad")
    found = h5ad.read(tmp_path / "a.h5ad")
    assert found.um_per_px == pytest.approx(slide.um_per_px * scale)
    assert ("by the distance of neighbouring spots" in caplog.text) == (scale != 1.0)


def test_molecules_are_counted(tmp_path):
    """`MIDCount` = 3 is three molecules, as three rows are."""
    rows = [("A", 1.0, 1.0, 3), ("B", 9.0, 1.0, 1), ("A", 1.5, 1.0, 2)]
    table = pd.DataFrame(rows, columns=["gene", "x", "y", "MIDCount"])
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_parquet(tmp_path / "b.parquet")
    table.loc[table.index.repeat(table["MIDCount"]), ["gene", "x", "y"]].to_csv(
        tmp_path / "c.csv", index=False
    )
    found = [transcripts.read(tmp_path / n, "s", 8.0) for n in ("a.csv", "b.parquet", "c.csv")]
    for slide in found:
        np.testing.assert_array_equal(slide.counts.toarray(), [[5, 0], [0, 1]])
    table.assign(MIDCount=0.5).to_csv(tmp_path / "d.csv", index=False)
    with pytest.raises(InputError, match=r"whole numbers of molecules .*found 0\.5"):
        transcripts.read(tmp_path / "d.csv", "s", 8.0)


def test_barcodes_that_lost_their_zeros(closed, tmp_path, capfd):
    """`007` in one file is `7` in the other, as spreadsheets leave them."""
    adata = anndata.read_h5ad(closed.slide)
    names = [f"{i:03d}" for i in range(adata.n_obs)]
    stored = tmp_path / "features.h5"
    features = np.asarray(adata.obsm["features"])
    short = np.array([name.lstrip("0") or "0" for name in names])
    embeddings.write(stored, features, np.zeros((len(names), 2)), short, tiny.ENCODER)

    def change(adata):
        adata.obs_names = names
        del adata.obsm["features"]

    said = ["names are spelled otherwise, such as '000' for '0', and taken for the same"]
    give = {"predict__embeddings": str(stored)}
    check_same(closed, tmp_path, capfd, lambda place: place.slide(change, **give), said)
