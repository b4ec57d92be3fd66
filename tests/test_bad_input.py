"""Bad input: one message behind `error:`, exit code 2, nothing half-written. One table for all."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import tiny
from hest_layout import write_embeddings, write_task
from PIL import Image

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
Change = Callable[[anndata.AnnData], Any]


@dataclasses.dataclass(frozen=True)
class World:
    """A place of its own for each case: data in every layout, and a finished experiment."""

    root: Path
    trained: Any

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def work(self) -> Path:
        return self.root / "work"

    def copied(self) -> dict:
        """Three slides as .h5ad files."""
        shutil.copytree(self.trained.data, self.data)
        return {"data__dir": str(self.data)}

    def edited(self, change: Change, name: str = "P1_S2") -> dict:
        """As `copied`, one file changed."""
        fields = self.copied()
        _edit(self.data / f"{name}.h5ad", change)
        return fields

    def damaged(self, change: Callable[[bytes], bytes]) -> dict:
        """As `copied`, the bytes of one file changed."""
        return self.copied() | _rewrite(self.data / "P1_S2.h5ad", change)

    def hest(self, change: Callable[[Path, Path], Any] = lambda *_: None) -> dict:
        """HEST-bench's layout; `change` gets the task's folder and that of the embeddings."""
        sections = tiny.slides(3)
        genes = list(sections[0].genes[:8])
        task = write_task(self.data, "IDC", sections, genes, patches=False)
        write_embeddings(self.root / "embed", "IDC", "uni_v1", sections)
        change(task, self.root / "embed" / "IDC" / "uni_v1" / "fp32")
        return {
            "data__reader": "hest",
            "data__dir": str(self.data),
            "data__task": "IDC",
            "encoder__name": "uni_v1",
            "encoder__dir": str(self.root / "embed"),
        }

    def her2st(self, change: Callable[[Path], Any] = lambda _: None) -> dict:
        """her2st's layout with two sections of 36 spots and images."""
        for name in ("A1", "A2"):
            _write_her2st(self.data, name)
        change(self.data)
        return {
            "data__reader": "her2st",
            "data__dir": str(self.data),
            "encoder__name": "stain_texture",
            "encoder__patch_um": 100.0,
        }

    def predict(self, change: Change = lambda _: None, **fields) -> dict:
        """The slide that was not trained on, changed, as input of --mode=predict."""
        given = self.root / "in.h5ad"
        shutil.copy(self.trained.unseen, given)
        _edit(given, change)
        output = str(self.root / "out.h5ad")
        data = {"data__dir": str(self.trained.data)}
        return data | {"predict__input": str(given), "predict__output": output} | fields

    def retrained(self, change: Callable[[Path], Any], **fields) -> dict:
        """A copy of the finished experiment with something wrong in it."""
        shutil.copytree(self.trained.workdir, self.work)
        change(self.work)
        return self.predict(**fields)


def _edit(path: Path, change: Change) -> None:
    adata = anndata.read_h5ad(path)
    changed = change(adata)
    (changed if isinstance(changed, anndata.AnnData) else adata).write_h5ad(path)


def _rewrite(path: Path, change: Callable[[bytes], bytes]) -> dict:
    path.write_bytes(change(path.read_bytes()))
    return {}


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def empty(_: bytes) -> bytes:
    return b""


def noise(_: bytes) -> bytes:
    return b"no such thing\n\0\1" * 40


def _write_her2st(root: Path, name: str) -> None:
    side, pitch = 6, 20
    y, x = np.divmod(np.arange(side * side), side)
    barcodes = [f"{i}x{j}" for i, j in zip(x, y, strict=True)]
    rng = np.random.default_rng(0)
    counts = pd.DataFrame(rng.poisson(3.0, (side**2, 12)), barcodes, [f"G{i}" for i in range(12)])
    spots = {"x": x, "y": y, "new_x": x, "new_y": y}
    pixels = {"pixel_x": pitch * (x + 1), "pixel_y": pitch * (y + 1), "selected": 1}
    for folder in ("ST-cnts", "ST-spotfiles", "ST-imgs"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    counts.to_csv(root / "ST-cnts" / f"{name}.tsv.gz", sep="\t")
    spots = pd.DataFrame(spots | pixels)
    spots.to_csv(root / "ST-spotfiles" / f"{name}_selection.tsv", sep="\t", index=False)
    picture = rng.integers(0, 255, (160, 160, 3), dtype=np.uint8)
    Image.fromarray(picture).save(root / "ST-imgs" / f"{name}.jpg")


# What goes wrong inside a file.


def same_barcode(adata):
    adata.obs_names = ["a", "a", *adata.obs_names[2:]]


def set_count(value):
    def change(adata):
        counts = adata.X.toarray().astype(np.float32)
        counts[3, 2] = value
        adata.X = counts

    return change


def set_feature(value):
    def change(adata):
        adata.obsm["features"][3, 2] = value

    return change


def narrower(adata):
    adata.obsm["features"] = adata.obsm["features"][:, :5]


def without_features(adata):
    del adata.obsm["features"]


def without_coordinates(adata):
    del adata.obsm["spatial"]


def without_unit(adata):
    del adata.uns["spatial_unit"]


def on_one_spot(adata):
    adata.obsm["spatial"][7] = adata.obsm["spatial"][3]


def nan_coordinate(adata):
    adata.obsm["spatial"][7, 0] = np.nan


def first_spots(number):
    return lambda adata: adata[:number].copy()


def no_spots(adata):
    adata.obs = adata.obs[[]]
    return adata[:0].copy()


def other_genes(adata):
    adata.var_names = [f"OTHER{i}" for i in range(adata.n_vars)]


def one_gene_less(task, _):
    _edit(task / "adata" / "P1_S2.h5ad", lambda adata: adata[:, 1:].copy())


def other_barcodes(_, embed):
    with h5py.File(embed / "P1_S2.h5", "r+") as file:
        file["barcodes"][...] = np.array([[f"q{i}".encode()] for i in range(len(file["coords"]))])


def other_encoder(adata):
    adata.uns["encoder"] = "uni_v1"


def unselected(root):
    path = root / "ST-cnts" / "A1.tsv.gz"
    table = pd.read_csv(path, sep="\t", index_col=0)
    table.index = [f"9{name}" for name in table.index]
    table.to_csv(path, sep="\t")


def cropped(root):
    with Image.open(root / "ST-imgs" / "A1.jpg") as image:
        image.crop((0, 0, 90, 160)).save(root / "ST-imgs" / "A1.jpg")


def ragged(root):
    with gzip.open(root / "ST-cnts" / "A1.tsv.gz", "wt") as file:
        file.write("\tG1\tG2\n1x1\t1\t2\n1x2\t1\n")


def biggest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def cut_parameters(work):
    _rewrite(biggest_file(work / "final" / "model" / "params"), half)


def cut(name: str):
    return lambda work: _rewrite(work / "final" / "model" / name, half)


def no_model(work):
    shutil.rmtree(work / "final" / "model")


def narrower_since(world: World) -> dict:
    """The same files, as the config says, embedded anew by something else after training."""
    shutil.copytree(world.trained.workdir, world.work)
    fields = world.copied()
    for path in sorted(world.data.glob("*.h5ad")):
        _edit(path, narrower)
    config = json.loads((world.work / "config.json").read_text())
    config["data"]["dir"] = fields["data__dir"]
    (world.work / "config.json").write_text(json.dumps(config))
    return fields


def bad_config(world: World) -> dict:
    shutil.copytree(world.trained.workdir, world.work)
    _rewrite(world.work / "config.json", half)
    return {"data__dir": str(world.trained.data)}


def workdir_is_a_file(world: World) -> dict:
    world.work.write_text("not a folder")
    return world.copied()


def other_config(world: World) -> dict:
    shutil.copytree(world.trained.workdir, world.work)
    return {"data__dir": str(world.trained.data), "model__width": 32, "train__epochs": 9}


CASES = [
    # name, mode, what is made (and which fields point to it), words of the message
    ("no data folder", "train", lambda w: {}, ["--config.data.dir is not set"]),
    (
        "missing data folder",
        "train",
        lambda w: {"data__dir": str(w.data)},
        ["data: expected the data folder", ".h5ad file per slide"],
    ),
    (
        "missing her2st",
        "train",
        lambda w: {"data__dir": "/none", "data__reader": "her2st"},
        ["/none", "almaan/her2st"],
    ),
    (
        "missing HEST",
        "train",
        lambda w: {"data__dir": "/none", "data__reader": "hest", "data__task": "IDC"},
        ["/none", "gated", "MahmoodLab/hest-bench", "IDC"],
    ),
    (
        "a folder without slides",
        "train",
        lambda w: w.data.mkdir() or {"data__dir": str(w.data)},
        ["data: expected one .h5ad file per slide"],
    ),
    (
        "a file where the folder should be",
        "train",
        lambda w: (w.data.write_text("") and {}) or {"data__dir": str(w.data)},
        ["data: expected the data folder"],
    ),
    (
        "unknown HEST task",
        "train",
        lambda w: w.hest() | {"data__task": "NOPE"},
        ["NOPE: no such folder"],
    ),
    (
        "no splits",
        "train",
        lambda w: w.hest(lambda task, _: shutil.rmtree(task / "splits")),
        ["splits: expected train_0.csv", "hest-bench"],
    ),
    (
        "an empty split",
        "train",
        lambda w: w.hest(lambda task, _: _rewrite(task / "splits" / "train_0.csv", empty)),
        ["train_0.csv", "empty or damaged"],
    ),
    (
        "missing expression",
        "train",
        lambda w: w.hest(lambda task, _: (task / "adata" / "P1_S2.h5ad").unlink()),
        ["P1_S2.h5ad: no such file", "hest-bench"],
    ),
    (
        "missing embeddings",
        "train",
        lambda w: w.hest(lambda _, embed: (embed / "P1_S2.h5").unlink()),
        ["uni_v1", "P1_S2.h5", "--mode=embed"],
    ),
    (
        "empty embeddings",
        "train",
        lambda w: w.hest(lambda _, embed: _rewrite(embed / "P1_S2.h5", empty)),
        ["P1_S2.h5", "0 bytes", "embed the slide again"],
    ),
    (
        "truncated embeddings",
        "train",
        lambda w: w.hest(lambda _, embed: _rewrite(embed / "P1_S2.h5", half)),
        ["P1_S2.h5", "readable HDF5 file"],
    ),
    (
        "damaged gene panel",
        "train",
        lambda w: w.hest(lambda task, _: _rewrite(task / "var_50genes.json", half)),
        ["var_50genes.json", "genes"],
    ),
    ("empty h5ad", "train", lambda w: w.damaged(empty), ["P1_S2.h5ad", "0 bytes"]),
    ("truncated h5ad", "train", lambda w: w.damaged(half), ["P1_S2.h5ad", "AnnData file"]),
    ("no h5ad at all", "train", lambda w: w.damaged(noise), ["P1_S2.h5ad", "AnnData file"]),
    (
        "empty jpg",
        "embed",
        lambda w: w.her2st(lambda root: _rewrite(root / "ST-imgs" / "A1.jpg", empty)),
        ["A1.jpg", "readable JPEG", "empty or damaged"],
    ),
    (
        "truncated jpg",
        "embed",
        lambda w: w.her2st(lambda root: _rewrite(root / "ST-imgs" / "A1.jpg", half)),
        ["A1.jpg", "readable JPEG", "empty or damaged"],
    ),
    (
        "spots outside the image",
        "embed",
        lambda w: w.her2st(cropped),
        ["A1.jpg", "12 of 36 spots lie outside the image of 90 x 160 pixels"],
    ),
    (
        "missing tsv",
        "train",
        lambda w: (
            w.her2st(lambda root: (root / "ST-spotfiles" / "A1_selection.tsv").unlink())
            | {"data__sections": ("A1", "A2")}
        ),
        ["A1_selection.tsv", "no such file", "almaan/her2st"],
    ),
    (
        "empty tsv",
        "train",
        lambda w: w.her2st(lambda root: _rewrite(root / "ST-cnts" / "A1.tsv.gz", empty)),
        ["A1.tsv.gz", "empty or damaged"],
    ),
    (
        "truncated tsv",
        "train",
        lambda w: w.her2st(lambda root: _rewrite(root / "ST-cnts" / "A1.tsv.gz", half)),
        ["A1.tsv.gz", "empty or damaged"],
    ),
    ("ragged tsv", "train", lambda w: w.her2st(ragged), ["A1.tsv.gz", "damaged"]),
    (
        "damaged spot table",
        "train",
        lambda w: w.her2st(
            lambda root: _rewrite(root / "ST-spotfiles" / "A1_selection.tsv", noise)
        ),
        ["A1_selection.tsv"],
    ),
    (
        "barcodes of another section",
        "train",
        lambda w: w.her2st(unselected),
        ["A1.tsv.gz", "none of its 36 spots", "'90x0'"],
    ),
    (
        "barcodes of another slide",
        "train",
        lambda w: w.hest(other_barcodes),
        ["P1_S2", "none of its 50 barcodes", "'q0'"],
    ),
    (
        "duplicate barcodes",
        "train",
        lambda w: w.edited(same_barcode),
        ["P1_S2", "barcodes must be unique, but 'a' occurs 2 times", "obs_names_make_unique"],
    ),
    (
        "a gene of the panel absent",
        "train",
        lambda w: w.hest(one_gene_less),
        ["P1_S2", "7 of 8 genes found; missing GENE001", "missing_genes=drop"],
    ),
    (
        "no gene in common",
        "train",
        lambda w: w.edited(other_genes),
        ["wanted 8 variable genes, but only 0", "--config.data.num_genes"],
    ),
    (
        "more genes than there are",
        "train",
        lambda w: w.copied() | {"data__num_genes": 1000},
        ["wanted 1000 variable genes, but only"],
    ),
    (
        "negative count",
        "train",
        lambda w: w.edited(set_count(-1)),
        ["P1_S2", "non-negative integers", "found -1", "layers['counts']"],
    ),
    (
        "fractional count",
        "train",
        lambda w: w.edited(set_count(0.5)),
        ["P1_S2", "non-negative integers", "found 0.5"],
    ),
    ("NaN count", "train", lambda w: w.edited(set_count(np.nan)), ["P1_S2", "found nan"]),
    (
        "NaN feature",
        "train",
        lambda w: w.edited(set_feature(np.nan)),
        ["P1_S2", "features of 1 spots hold NaN"],
    ),
    (
        "infinite feature",
        "train",
        lambda w: w.edited(set_feature(np.inf)),
        ["P1_S2", "features of 1 spots hold NaN or infinity"],
    ),
    (
        "features of two widths",
        "train",
        lambda w: w.edited(narrower),
        ["12 in P1_S1", "5 in P1_S2", "equally wide"],
    ),
    (
        "features of two encoders",
        "train",
        lambda w: w.edited(other_encoder),
        ["one encoder", "uni_v1 in P1_S2"],
    ),
    (
        "a slide without features",
        "train",
        lambda w: w.edited(without_features),
        ["P1_S2", "has no features", "--config.encoder"],
    ),
    (
        "no image to embed",
        "train",
        lambda w: w.copied() | {"encoder__name": "stain_texture"},
        ["P1_S1", "neither features nor an image"],
    ),
    (
        "fewer spots than neighbours",
        "train",
        lambda w: w.edited(first_spots(4)),
        ["P1_S2", "has 4 spots, too few", "--config.model.neighbors"],
    ),
    ("no spots", "train", lambda w: w.edited(no_spots), ["P1_S2", "no spots"]),
    (
        "coinciding spots",
        "train",
        lambda w: w.edited(on_one_spot),
        ["P1_S2", "2 spots lie on top of another"],
    ),
    (
        "NaN coordinate",
        "train",
        lambda w: w.edited(nan_coordinate),
        ["P1_S2", "1 spots have NaN or infinite coordinates"],
    ),
    (
        "no coordinates",
        "train",
        lambda w: w.edited(without_coordinates),
        ["P1_S2", "obsm['spatial']"],
    ),
    ("no unit", "train", lambda w: w.edited(without_unit), ["P1_S2", "uns['spatial_unit']"]),
    (
        "one slide alone",
        "train",
        lambda w: w.copied() | _gone(w.data, "P1_S2") | _gone(w.data, "P1_S3"),
        ["P1_S1", "at least two"],
    ),
    # fields
    (
        "unknown reader",
        "train",
        lambda w: {"data__reader": "visium"},
        ["data.reader", "hest, her2st, anndata, simulated", "'visium'"],
    ),
    (
        "unknown normalisation",
        "train",
        lambda w: w.copied() | {"data__normalization": "log2"},
        ["data.normalization", "log1p, log1p_cp10k", "'log2'"],
    ),
    ("unknown method", "train", lambda w: w.copied() | {"method": "x"}, ["config.method", "'x'"]),
    (
        "fold out of range",
        "train",
        lambda w: w.copied() | {"fold": 3},
        ["config.fold must be from 0 to 2, found 3"],
    ),
    (
        "no epochs",
        "train",
        lambda w: w.copied() | {"train__epochs": 0},
        ["config.train.epochs", "at least 1"],
    ),
    (
        "heads that do not divide",
        "train",
        lambda w: w.copied() | {"model__heads": 3},
        ["config.model.width (16)", "config.model.heads (3)"],
    ),
    # the workdir
    (
        "workdir of another config",
        "train",
        other_config,
        ["belongs to another config", "model.width is 16 there and 32 here", "--workdir"],
    ),
    ("damaged config.json", "train", bad_config, ["config.json", "--workdir"]),
    ("workdir is a file", "train", workdir_is_a_file, ["work", "another path"]),
    ("eval before train", "eval", lambda w: w.copied(), ["holds no experiment", "--mode=train"]),
    ("predict before train", "predict", lambda w: w.predict(), ["holds no experiment"]),
    # prediction
    (
        "no input",
        "predict",
        lambda w: w.retrained(lambda _: None, predict__input=""),
        ["--config.predict.input=IN.h5ad"],
    ),
    (
        "no output",
        "predict",
        lambda w: w.retrained(lambda _: None, predict__output=""),
        ["--config.predict.output=OUT.h5ad"],
    ),
    (
        "output over the input",
        "predict",
        lambda w: w.retrained(lambda _: None, predict__output=str(w.root / "in.h5ad")),
        ["--config.predict.output", "in.h5ad"],
    ),
    (
        "output of another kind",
        "predict",
        lambda w: w.retrained(lambda _: None, predict__output=str(w.root / "out.png")),
        ["--config.predict.output", ".h5ad", "out.png"],
    ),
    (
        "output in a file's place",
        "predict",
        lambda w: w.retrained(lambda _: None, predict__output=str(w.root / "in.h5ad" / "out.h5ad")),
        ["in.h5ad", "another path"],
    ),
    (
        "missing input",
        "predict",
        lambda w: w.retrained(lambda _: None, predict__input=str(w.root / "none.h5ad")),
        ["none.h5ad: no such file"],
    ),
    (
        "missing image",
        "predict",
        lambda w: w.retrained(lambda _: None, predict__image=str(w.root / "none.jpg")),
        ["'precomputed'", "not built in"],
    ),
    (
        "single draw",
        "predict",
        lambda w: w.retrained(lambda _: None, predict__draws=1),
        ["config.predict.draws must be at least 2"],
    ),
    (
        "another encoder's features",
        "predict",
        lambda w: w.retrained(lambda _: None) | w.predict(other_encoder),
        ["in.h5ad", "'uni_v1'", f"trained on '{tiny.ENCODER}'"],
    ),
    (
        "features of another width",
        "predict",
        lambda w: w.retrained(lambda _: None) | w.predict(narrower),
        ["in.h5ad", "5 wide", "trained on 12"],
    ),
    (
        "NaN feature to predict from",
        "predict",
        lambda w: w.retrained(lambda _: None) | w.predict(set_feature(np.nan)),
        ["in.h5ad", "features of 1 spots hold NaN"],
    ),
    (
        "no features to predict from",
        "predict",
        lambda w: w.retrained(lambda _: None) | w.predict(without_features),
        ["in.h5ad", "no features", tiny.ENCODER, "--config.predict.image"],
    ),
    (
        "too few spots to predict",
        "predict",
        lambda w: w.retrained(lambda _: None) | w.predict(first_spots(4)),
        ["in.h5ad", "has 4 spots", "more than 4"],
    ),
    (
        "a fold that was not trained",
        "predict",
        lambda w: w.retrained(lambda work: shutil.rmtree(work / "fold_1"), fold=1),
        ["fold_1", "no trained model"],
    ),
    ("no model", "predict", lambda w: w.retrained(no_model), ["final", "no trained model"]),
    (
        "truncated model.json",
        "predict",
        lambda w: w.retrained(cut("model.json")),
        ["model.json", "JSON"],
    ),
    (
        "model.json of another kind",
        "predict",
        lambda w: w.retrained(lambda work: (work / "final/model/model.json").write_text("{}")),
        ["model.json", "train again"],
    ),
    (
        "features embedded anew since training",
        "eval",
        narrower_since,
        ["width 12 as in training, found 5"],
    ),
    (
        "truncated fitted.npz",
        "predict",
        lambda w: w.retrained(cut("fitted.npz")),
        ["fitted.npz", "train again"],
    ),
    (
        "truncated parameters",
        "predict",
        lambda w: w.retrained(cut_parameters),
        ["params", "damaged", "train again"],
    ),
    (
        "truncated training checkpoint",
        "train",
        lambda w: w.retrained(
            lambda work: [
                shutil.rmtree(work / "final" / "model"),
                _rewrite(biggest_file(work / "final" / "refit" / "latest"), half),
            ]
        ),
        ["latest", "damaged", "train again"],
    ),
]


def _gone(folder: Path, name: str) -> dict:
    (folder / f"{name}.h5ad").unlink()
    return {}


@pytest.mark.parametrize(
    ("mode", "make", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_bad_input(trained, tmp_path, capfd, mode, make, words):
    world = World(tmp_path, trained)
    config = tiny.config(**make(world))
    before = tiny.contents(tmp_path)
    capfd.readouterr()
    assert tiny.run(config, world.work, mode) == 2
    check_message(capfd.readouterr().err, words)
    assert tiny.contents(tmp_path) == before, "something was written"
    if "work/config.json" not in before and world.work.is_dir():
        assert not list(world.work.rglob("*")), "something was left in a new workdir"


def check_message(err: str, words: list[str]) -> None:
    """One line behind `error:` at the end, with these words; no traceback."""
    assert "Traceback" not in err, err
    *_, last = err.strip().splitlines()
    assert last.startswith("error: ") and err.count("error: ") == 1, err
    for word in words:
        assert word in last, f"{word!r} is not in: {last}"
    assert "np.str_" not in last


def _config_file(text: str):
    return lambda root: (root / "c.py").write_text(text) and [f"--config={root / 'c.py'}"]


DEMO = "--config=configs/demo.py"
COMMANDS = [
    # name, arguments (or what makes them), words; --workdir is added
    (
        "unknown field",
        [DEMO, "--config.foo=1"],
        ["--config.foo: the config has no such field", "configs/base.py"],
    ),
    (
        "unknown field in a section",
        [DEMO, "--config.train.epoch=1"],
        ["--config.train.epoch: the config has no such field", '"epochs"'],
    ),
    ("field of a number", [DEMO, "--config.model.width.x=1"], ["model.width.x"]),
    ("wrong type", [DEMO, "--config.train.epochs=abc"], ["--config.train.epochs=abc", "int"]),
    ("section as a value", [DEMO, "--config.train=1"], ["--config.train=1"]),
    ("unknown mode", [DEMO, "--mode=fit"], ["--mode=fit", "train|eval|predict|embed"]),
    ("unknown flag", [DEMO, "--epochs=1"], ["'epochs'"]),
    ("stray argument", [DEMO, "epochs=1"], ["'epochs=1'", "--config.FIELD=VALUE"]),
    ("no config", [], ["--config is required"]),
    ("missing config", ["--config=configs/none.py"], ["configs/none.py", "see configs/"]),
    ("missing config, spaced", ["--config", "none.py"], ["none.py: expected a config file"]),
    (
        "missing config, overridden",
        ["--config=none.py", "--config.seed=1"],
        ["none.py: expected a config file"],
    ),
    ("config that does not parse", _config_file("def get_config(:"), ["c.py", "SyntaxError"]),
    ("config that does not import", _config_file("import nowhere"), ["c.py", "'nowhere'"]),
    ("config without get_config", _config_file("x = 1"), ["c.py", "get_config"]),
    (
        "config that opens a missing file",
        _config_file("def get_config(): return open('/none/x')"),
        ["c.py", "/none/x"],
    ),
    ("config that is none", _config_file("def get_config(): return 3"), ["c.py"]),
]


@pytest.mark.parametrize(
    ("argv", "words"), [case[1:] for case in COMMANDS], ids=[case[0] for case in COMMANDS]
)
def test_bad_command(tmp_path, capfd, argv, words):
    argv = argv(tmp_path) if callable(argv) else argv
    work = tmp_path / "work"
    with mock.patch("stfm_jax.cli.run", side_effect=AssertionError("it went on")):
        assert tiny.command(*argv, f"--workdir={work}") == 2
    check_message(capfd.readouterr().err, words)
    assert not work.exists()


def test_no_workdir(capfd):
    assert tiny.command(DEMO) == 2
    check_message(capfd.readouterr().err, ["--workdir is required"])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--config.foo=1"], ["--config.foo: the config has no such field"]),
        (
            ["--config.data.reader=anndata", "--config.data.dir=/none"],
            ["/none", "--config.data.dir"],
        ),
    ],
    ids=["flags", "data"],
)
def test_the_process_itself_ends_with_2(tmp_path, argv, words):
    process = tiny.start(DEMO, f"--workdir={tmp_path / 'work'}", *argv)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    check_message(err, words)
    assert not (tmp_path / "work").exists()


def test_a_corrected_command_may_use_the_same_workdir(trained, tmp_path):
    """A slip of the hand in a data folder's name does not claim the workdir."""
    work = tmp_path / "work"
    assert tiny.run(tiny.config(data__dir="/none"), work) == 2
    assert tiny.run(trained.config(fold=0, data__num_genes=1000), work) == 2
    assert tiny.run(trained.config(fold=3), work) == 2
    assert not work.exists()


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")


WRITERS = {
    "config.json": ("pathlib.Path.write_text", "train"),
    "a checkpoint": ("orbax.checkpoint.CheckpointManager.save", "train"),
    "history.csv": ("csv.DictWriter.writerows", "train"),
    "a prediction": ("anndata.AnnData.write_h5ad", "predict"),
    "a picture": ("matplotlib.figure.Figure.savefig", "predict"),
}


@pytest.mark.parametrize(("writer", "mode"), WRITERS.values(), ids=list(WRITERS))
def test_full_disk(trained, tmp_path, capfd, writer, mode):
    """Also no temporary file is left."""
    work = trained.workdir if mode == "predict" else tmp_path / "work"
    made = trained.config(
        fold=0,
        predict__input=str(trained.unseen),
        predict__output=str(tmp_path / "out.h5ad"),
    )
    with mock.patch(writer, full_disk):
        assert tiny.run(made, work, mode) == 2
    check_message(capfd.readouterr().err, ["disk is full", "free some space"])
    left = [p for p in tmp_path.rglob("*") if p.is_file() and p.name.startswith((".", "out.png"))]
    assert not left


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 KiB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_disk_and_the_same_command_with_room(trained, small_disk, capfd):
    """Orbax fails in its own way. With more room the command goes on to the same scores."""
    made = trained.config(fold=0)
    assert tiny.run(made, small_disk / "work") == 2
    check_message(capfd.readouterr().err, ["disk is full", "run the same command again"])
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    assert tiny.run(made, small_disk / "work") == 0
    metrics = json.loads((small_disk / "work" / "metrics.json").read_text())
    expected = trained.metrics["methods"]["stflow"]["pearson"]["folds"][0]
    assert metrics["methods"]["stflow"]["pearson"]["folds"] == [expected]
