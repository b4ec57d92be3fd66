"""Nothing of the user's is lost or silently changed, and no name leads out of its folder.

A table, a row a case: each ends as the plain file does, to 1e-6, or with one `error:` line, exit
code 2, and every file as it was.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import tiny
from bad_input import assert_message

import stfm_jax as stfm
from stfm_jax.data.readers import h5ad

pytestmark = pytest.mark.filterwarnings(
    "ignore:the load_module:DeprecationWarning", "ignore:Glyph", "ignore:.*constrained_layout"
)
ODD = ("P1$_$2", "G12/B12", "<script>alert(1)</script>", "../../x", "x" * 300, "a\nb")
SPLIT = {"data__reader": "anndata", "data__num_genes": 2, "coarsen__group": "2x2",
         "srast__trained_on": 20, "srast__pool": 8}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Kinds:
    """Experiments that take a second each: of slides, of a stack, of splits; with odd genes."""

    root: Path
    slide: Path  # a slide that was not trained on, its features in it
    settings: dict[str, dict]

    def config(self, kind: str, **overrides):
        return tiny.config(**{**self.settings[kind], **overrides})

    def workdir(self, kind: str) -> Path:
        return self.root / f"work_{kind}"


@pytest.fixture(scope="session")
def kinds(tmp_path_factory) -> Kinds:
    root = tmp_path_factory.mktemp("lost")
    sections = tiny.slides()
    odd = [dataclasses.replace(s, genes=np.array([*ODD, *s.genes[len(ODD) :]])) for s in sections]
    for name, slides in (("plain", sections[:3]), ("odd", odd[:3])):
        tiny.write(root / name, slides)
    h5ad.write(sections[3], root / "slide.h5ad")
    h5ad.write(odd[3], root / "odd.h5ad")
    ridge = {"methods": ("ridge",), "data__num_genes": 25}
    made = Kinds(
        root,
        root / "slide.h5ad",
        {
            "plain": {"data__dir": str(root / "plain"), **ridge},
            "odd": {"data__dir": str(root / "odd"), **ridge},
            "stack": {"data__dir": str(root / "odd"), "methods": ("neighbour_copy",),
                      "data__num_genes": 25, "stack__kept": 6, "stack__candidates": 5},
            "split": {"data__dir": str(root / "plain"), "methods": ("uniform",), **SPLIT},
        },
    )  # fmt: skip
    for kind in made.settings:
        assert tiny.run(made.config(kind), made.workdir(kind)) == 0
    return made


class World:
    """A folder of its own for a case: `in.h5ad`, and whatever the case puts there."""

    def __init__(self, kinds: Kinds, root: Path):
        self.kinds, self.root = kinds, root
        self.input = root / "in.h5ad"
        shutil.copy(kinds.slide, self.input)

    def predict(self, kind: str = "plain", **fields) -> int:
        given = {"predict__input": str(self.input), "predict__output": str(self.root / "out.h5ad")}
        config = self.kinds.config(kind, **given | fields)
        return tiny.run(config, self.kinds.workdir(kind), "predict")

    def values(self, name: str = "out.h5ad") -> np.ndarray:
        return anndata.read_h5ad(self.root / name).X

    def put(self, name: str, text: str = "the user's") -> str:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    def copy(self, name: str) -> str:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.input, path)
        return str(path)


@pytest.fixture
def world(kinds, tmp_path):
    return World(kinds, tmp_path)


@pytest.fixture(scope="session")
def plain(kinds, tmp_path_factory) -> np.ndarray:
    """What the plain file gives."""
    world = World(kinds, tmp_path_factory.mktemp("plain"))
    assert world.predict() == 0
    shutil.copy(world.root / "out.h5ad", kinds.root / "plain.h5ad")
    return world.values()


def linked(world: World, how) -> dict:
    """The picture of the output is the image under another name."""
    how(world.put("image.png"), world.root / "out.png")
    return {"predict__image": str(world.root / "image.png"), "predict__overwrite": True}


def image_beside(world: World, image: str, output: str) -> dict:
    return {"predict__image": world.put(image), "predict__output": str(world.root / output)}


def parents(world: World, **fields) -> dict:
    """Parents and a file of children, of which the output is made."""
    slide = tiny.slides(1)[0]
    h5ad.write(dataclasses.replace(slide, features=None, encoder=None), world.input)
    return fields


def cohort(world: World, **fields) -> dict:
    return {
        "predict__input": str(world.root / "in"),
        "predict__output": str(world.root / "out"),
    } | fields


def table(world: World, *names: str) -> dict:
    lines = [f'"{world.input}","{name}"' for name in names]
    path = world.put("list.csv", "\n".join(["input,name", *lines]) + "\n")
    return {"predict__input": path, "predict__output": str(world.root / "out")}


def beside(path: str) -> dict:
    return {"predict__output": str(Path(path).parent)}


def stack_of(world: World) -> dict:
    """Three sections, the middle one without counts."""
    for i, slide in enumerate(tiny.slides(3)):
        genes = np.array([*ODD, *slide.genes[len(ODD) :]])
        bare = dict(counts=None, genes=None) if i == 1 else dict(genes=genes)
        made = dataclasses.replace(slide, z_um=16.0 * i, **bare)
        h5ad.write(made, world.root / "in" / f"S{i}.h5ad")
    given = {"predict__input": str(world.root / "in"), "predict__html": False}
    return given | {"predict__output": str(world.root / "out" / "volume.h5ad")}


def stack_with_the_users_picture(world: World) -> dict:
    fields = stack_of(world)
    for gene in anndata.read_h5ad(world.root / "in" / "S0.h5ad").var_names:
        if not set(gene) & set("/\\\n") and len(gene) < 100 and not gene.startswith("."):
            world.put(f"out/volume_{gene}.png")
    return fields


REFUSED = {
    # what is put there (and which fields point to it): words of the message; kind of experiment
    "the image has the name of the map": (
        lambda w: image_beside(w, "section7.png", "section7.h5ad"),
        ["--config.predict.output", "map", "section7.png", "--config.predict.image"],
    ),
    "the image but for letter case": (
        lambda w: image_beside(w, "SECTION7.PNG", "section7.h5ad"),
        ["map", "--config.predict.image"],
    ),
    "the map is a symbolic link to the image": (lambda w: linked(w, os.symlink), ["map"]),
    "the map is a hard link to the image": (lambda w: linked(w, os.link), ["map"]),
    "the input by another way": (
        lambda w: {"predict__output": str(w.root / "none" / ".." / "in.h5ad")},
        ["prediction", "--config.predict.input"],
    ),
    "regions in the place of the GeoJSON": (
        lambda w: {"predict__regions": w.put("out.geojson"), "predict__geojson": True},
        ["GeoJSON", "--config.predict.regions"],
    ),
    "regions in the place of their table": (
        lambda w: {"predict__regions": w.put("out_regions.csv"), "predict__overwrite": True},
        ["table of regions", "--config.predict.regions"],
    ),
    "embeddings in the place of the store": (
        lambda w: {"predict__embeddings": w.put("out.zarr/.zgroup").removesuffix("/.zgroup"),
                   "predict__spatialdata": True},
        ["SpatialData", "--config.predict.embeddings"],
    ),
    "one of several embeddings": (
        lambda w: {"predict__embeddings": f"{w.put('a.h5')}, {w.copy('out.h5ad')}"},
        ["prediction", "--config.predict.embeddings"],
    ),
    "in a store that is read": (
        lambda w: {"predict__input": w.put("in.zarr/.zgroup").removesuffix("/.zgroup"),
                   "predict__output": str(w.root / "in.zarr" / "out.h5ad")},
        ["prediction", "--config.predict.input"],
    ),
    "children in the place of the output": (
        lambda w: parents(w, predict__children=w.copy("out.h5ad"), predict__overwrite=True),
        ["prediction", "--config.predict.children"], "split",
    ),
    "an image of a cohort beside it": (
        lambda w: cohort(w, predict__output=Path(w.put("in/a.png")).parent.as_posix()),
        ["map", "a.png", "a slide of --config.predict.input"],
    ),
    "the table of a cohort as its summary": (
        lambda w: cohort(w, predict__input=w.put("out/summary.csv", f"input\n{w.input}\n")),
        ["summary", "--config.predict.input"],
    ),
    **{
        f"the user's {name}": (
            lambda w, name=name: {"predict__output": w.put(name).replace(name, "out.h5ad"),
                                  "predict__geojson": True, "predict__spatialdata": True},
            [name, "not written by this version of stfm_jax", "--config.predict.overwrite=True"],
        )
        for name in ("out.h5ad", "out.png", "out_report.html", "out.geojson", "out.zarr")
    },
    "the user's AnnData": (
        lambda w: {"predict__output": w.copy("out.h5ad")}, ["out.h5ad", "not written by"]
    ),
    "a folder, for all of overwrite": (
        lambda w: {"predict__output": w.put("out.h5ad/x").removesuffix("/x"),
                   "predict__overwrite": True},
        ["out.h5ad", "never replaced"],
    ),
    "the user's log in a cohort": (
        lambda w: cohort(w, predict__input=str(Path(w.copy("in/a.h5ad")).parent),
                         predict__draws=len(w.put("out/a.log")) and 2),
        ["a.log", "not written by"],
    ),
    "the config of a workdir in a cohort": (
        lambda w: table(w, "config") | beside(w.put("out/config.json")),
        ["config.json", "not written by"],
    ),
    "the user's picture of a gene": (
        stack_with_the_users_picture, ["volume_", ".png", "not written by"], "stack",
    ),
    "a name of 250 bytes": (
        lambda w: {"predict__output": str(w.root / ("o" * 245 + ".h5ad"))},
        ["at most 255", "shorter name"],
    ),
    "a folder of 300 bytes": (
        lambda w: {"predict__output": str(w.root / ("o" * 300) / "out.h5ad")},
        ["File name too long", "another path"],
    ),
    "an input of 300 bytes": (
        lambda w: {"predict__input": str(w.root / ("o" * 300 + ".h5ad"))},
        ["File name too long", "another path"],
    ),
    "NUL in a path": (lambda w: {"predict__output": "a\0.h5ad"}, ["NUL"]),
    **{
        f"a cohort's name {name[:12]!r}": (
            lambda w, name=name: table(w, name), ["list.csv", "becomes that of its files"]
        )
        for name in ("../../x", "a/b", ".hidden", "n" * 300, "a\\b")
    },
    "a cohort's names but for letter case": (lambda w: table(w, "A", "a"), ["'a' more than once"]),
    "a scale of a cohort that is no number": (
        lambda w: cohort(w, predict__input=w.put("list.csv", f"wsi,mpp\n{w.input},wide\n")),
        ["list.csv", "'wide'"],
    ),
    "a count over 2 ** 24": (
        lambda w: parents(w) | edited(w, counted(lambda x: x.__setitem__((0, 0), 2**24 + 1))),
        ["below 16,777,216", "raw counts"], "split",
    ),
    "indices outside of the matrix": (
        lambda w: parents(w) | edited_file(w, outside), ["indices do not fit"], "split",
    ),
}  # fmt: skip


def edited(world: World, change) -> dict:
    adata = anndata.read_h5ad(world.input)
    change(adata)
    adata.write_h5ad(world.input)
    return {}


def edited_file(world: World, change) -> dict:
    with h5py.File(world.input, "r+") as file:
        change(file)
    return {}


def outside(file) -> None:
    file["X/indices"][3] = 10**6


def counted(change):
    def edit(adata):
        dense = adata.X.toarray().astype(np.int64)
        change(dense)
        adata.X = sp.csr_matrix(dense)

    return edit


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_done(world, capfd, case):
    make, words, kind = (*REFUSED[case], "plain")[:3]
    fields = make(world)
    before, folders = tiny.contents(world.root), set(world.root.rglob("*"))
    capfd.readouterr()
    assert world.predict(kind, **fields) == 2
    assert_message(capfd.readouterr().err, words)
    assert tiny.contents(world.root) == before and set(world.root.rglob("*")) == folders


def split_up(adata) -> None:
    """Every count of more than one as 1 and the rest, in reverse order, with zeros between."""
    rows = sp.csr_matrix(adata.X).tocoo()
    more = rows.data > 1
    data = np.concatenate([rows.data - more, np.ones(more.sum()), np.zeros(5)])
    row = np.concatenate([rows.row, rows.row[more], np.arange(5)])
    col = np.concatenate([rows.col, rows.col[more], np.arange(5)])
    order = np.lexsort((-col, row))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=adata.n_obs))])
    adata.X = sp.csr_matrix((data[order], col[order], indptr), shape=adata.shape)
    assert not adata.X.has_canonical_format


def by_columns(adata) -> None:
    adata.X = sp.csc_matrix(adata.X)


def at_home(world: World, monkeypatch) -> dict:
    monkeypatch.setenv("HOME", str(world.root))
    return {"predict__input": "~/in.h5ad", "predict__output": "~/deep/out.h5ad"}


def test_what_is_ours_is_written_again(world, plain):
    for _ in range(2):
        assert world.predict(predict__geojson=False, predict__spatialdata=True) == 0
        np.testing.assert_allclose(world.values(), plain, atol=1e-6)
    assert not list(world.root.glob(".*"))


@pytest.mark.parametrize("name", ["out.h5ad", "out.png", "out_report.html"])
def test_what_is_not_is_replaced_where_it_is_said(world, plain, name):
    world.put(name)
    assert world.predict(predict__overwrite=True) == 0
    np.testing.assert_allclose(world.values(), plain, atol=1e-6)
    assert (world.root / name).read_bytes() != b"the user's"


def test_a_cohort_is_predicted_again_into_its_own_folder(world, plain, capfd):
    """What was predicted is no slide of the cohort, though it lies among them."""
    given = cohort(world, predict__input=str(Path(world.copy("in/a.h5ad")).parent))
    given["predict__output"] = str(world.root / "in" / "predicted")
    for draws in (2, 2, 3):
        assert world.predict(**given, predict__draws=draws) == 0
        np.testing.assert_allclose(world.values("in/predicted/a.h5ad"), plain, atol=1e-6)
    lines = (world.root / "in" / "predicted" / "summary.csv").read_text().splitlines()
    assert len(lines) == 2 and lines[0].endswith("made_by")


def test_home_is_written_out(world, plain, monkeypatch):
    fields = at_home(world, monkeypatch)
    monkeypatch.chdir(world.root)
    assert world.predict(**fields) == 0
    np.testing.assert_allclose(world.values("deep/out.h5ad"), plain, atol=1e-6)
    assert not (world.root / "~").exists()


def test_home_is_written_out_by_the_command(kinds, world, plain, monkeypatch):
    """Of the workdir too, and where it names the config."""
    monkeypatch.setenv("HOME", str(kinds.root))
    output = world.root / "out.h5ad"
    flags = [
        f"--config.predict.{k}={v}" for k, v in (("input", "~/slide.h5ad"), ("output", output))
    ]
    assert tiny.command("--workdir=~/work_plain", "--mode=predict", *flags) == 0
    np.testing.assert_allclose(world.values(), plain, atol=1e-6)


@pytest.mark.parametrize("change", [split_up, by_columns])
def test_training_adds_up_what_is_stored_in_parts(kinds, world, change):
    data = world.root / "data"
    shutil.copytree(kinds.root / "plain", data)
    for path in data.glob("*.h5ad"):
        adata = anndata.read_h5ad(path)
        change(adata)
        adata.write_h5ad(path)
    assert tiny.run(kinds.config("plain", data__dir=str(data)), world.root / "work") == 0
    found, expected = (
        json.loads((w / "metrics.json").read_text())["methods"]["ridge"]["pearson"]["folds"]
        for w in (world.root / "work", kinds.workdir("plain"))
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("change", [split_up, by_columns])
def test_a_split_loses_no_count(world, change):
    """43 as 1 and 42 is split as 43, and the user's own matrix stays as it is."""
    parents(world)
    assert world.predict("split", predict__draws=2) == 0
    expected = world.values()
    adata = anndata.read_h5ad(world.input)
    total = np.asarray(adata.X.sum(axis=0)).ravel()
    edited(world, change)
    assert world.predict("split", predict__draws=2) == 0
    found = anndata.read_h5ad(world.root / "out.h5ad")
    np.testing.assert_allclose(found.X.toarray(), expected.toarray(), atol=1e-6)
    sums = np.asarray(found.X.sum(axis=0)).ravel()
    np.testing.assert_allclose(sums, total[total > 0], rtol=1e-6)
    change(adata)
    before = adata.X.copy()
    model = stfm.load(world.kinds.workdir("split"))
    again = model.predict(adata, draws=2)
    np.testing.assert_allclose(again.X.toarray(), expected.toarray(), atol=1e-6)
    np.testing.assert_array_equal(adata.X.indices, before.indices)
    np.testing.assert_array_equal(adata.X.data, before.data)


def test_the_largest_count_is_kept_exactly(world):
    parents(world)
    edited(world, counted(lambda x: x.__setitem__((0, 0), 2**24 - 1)))
    assert world.predict("split", predict__draws=2) == 0
    found = anndata.read_h5ad(world.root / "out.h5ad")
    here = (found.obs["parent"] == anndata.read_h5ad(world.input).obs_names[0]).to_numpy()
    for layer in ("draw_0", "draw_1") if found.layers else ():
        assert np.asarray(found.layers[layer][here].sum(axis=0)).ravel()[0] == 2**24 - 1
    assert found.X[here].toarray().astype(np.float64)[:, 0].sum() == 2**24 - 1


def test_scipy_takes_what_a_split_writes(world):
    parents(world)
    assert world.predict("split", predict__draws=2) == 0
    matrix = anndata.read_h5ad(world.root / "out.h5ad").X
    assert matrix.indices.dtype == matrix.indptr.dtype
    for does in ("eliminate_zeros", "tocoo", "sort_indices", "nonzero", "sum_duplicates"):
        getattr(matrix, does)()


def test_genes_are_no_formulas_markup_or_paths(kinds, world, plain):
    """Genes of odd names are predicted as the same genes by plain ones."""
    shutil.copy(kinds.root / "odd.h5ad", world.input)
    assert world.predict("odd", predict__geojson=False) == 0
    found = anndata.read_h5ad(world.root / "out.h5ad")
    same = dict(zip(ODD, tiny.slides(1)[0].genes, strict=False))
    assert set(found.var_names) & set(ODD)
    names = anndata.read_h5ad(kinds.root / "plain.h5ad").var_names
    order = names.get_indexer([same.get(gene, gene) for gene in found.var_names])
    np.testing.assert_allclose(found.X, plain[:, order], atol=1e-6)
    text = (world.root / "out_report.html").read_text()
    assert "<script" not in text
    assert {p.name for p in world.root.iterdir()} == {
        "in.h5ad", "out.h5ad", "out.png", "out_report.html",
    }  # fmt: skip


def test_a_stack_of_odd_genes_stays_in_its_folder(kinds, world):
    fields = stack_of(world)
    for _ in range(2):
        assert world.predict("stack", **fields) == 0
    names = {p.name for p in (world.root / "out").iterdir()}
    assert {"volume.h5ad", "volume.png"} < names and len(names) == 3
    assert {p.name for p in world.root.iterdir()} == {"in", "in.h5ad", "out"}


@pytest.mark.parametrize("name", ["metrics.json", "maps_P1_S1.png", "history.csv", "slide.h5ad"])
def test_a_new_workdir_replaces_nothing(kinds, world, capfd, name):
    world.put(f"work/{name}")
    assert tiny.run(kinds.config("plain"), world.root / "work") == 2
    assert_message(capfd.readouterr().err, [name, "no config.json", "another --workdir"])
    assert [p.name for p in (world.root / "work").iterdir()] == [name]
