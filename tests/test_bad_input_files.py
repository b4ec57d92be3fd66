"""Bad input: files and folders of the data that are absent, empty or damaged."""

from __future__ import annotations

import gzip
import shutil

import pytest
from bad_input import assert_refused, empty, half, noise, rewrite


def ragged(root):
    with gzip.open(root / "ST-cnts" / "A1.tsv.gz", "wt") as file:
        file.write("\tG1\tG2\n1x1\t1\t2\n1x2\t1\n")


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
        ["data: expected one .h5ad or .zarr per slide"],
    ),
    (
        "a file where the folder should be",
        "train",
        lambda w: (w.data.write_text("") and {}) or {"data__dir": str(w.data)},
        ["data: --config.data.dir is a file, expected a folder"],
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
        lambda w: w.hest(lambda task, _: rewrite(task / "splits" / "train_0.csv", empty)),
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
        lambda w: w.hest(lambda _, embed: rewrite(embed / "P1_S2.h5", empty)),
        ["P1_S2.h5", "0 bytes", "embed the slide anew"],
    ),
    (
        "truncated embeddings",
        "train",
        lambda w: w.hest(lambda _, embed: rewrite(embed / "P1_S2.h5", half)),
        ["P1_S2.h5", "readable HDF5 file"],
    ),
    (
        "damaged gene panel",
        "train",
        lambda w: w.hest(lambda task, _: rewrite(task / "var_50genes.json", half)),
        ["var_50genes.json", "genes"],
    ),
    ("empty h5ad", "train", lambda w: w.damaged(empty), ["P1_S2.h5ad", "0 bytes"]),
    ("truncated h5ad", "train", lambda w: w.damaged(half), ["P1_S2.h5ad", "AnnData file"]),
    ("no h5ad at all", "train", lambda w: w.damaged(noise), ["P1_S2.h5ad", "AnnData file"]),
    (
        "empty jpg",
        "embed",
        lambda w: w.her2st(lambda root: rewrite(root / "ST-imgs" / "A1.jpg", empty)),
        ["A1.jpg", "readable image", "empty or damaged"],
    ),
    (
        "truncated jpg",
        "embed",
        lambda w: w.her2st(lambda root: rewrite(root / "ST-imgs" / "A1.jpg", half)),
        ["A1.jpg", "readable image", "empty or damaged"],
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
        lambda w: w.her2st(lambda root: rewrite(root / "ST-cnts" / "A1.tsv.gz", empty)),
        ["A1.tsv.gz", "empty or damaged"],
    ),
    (
        "truncated tsv",
        "train",
        lambda w: w.her2st(lambda root: rewrite(root / "ST-cnts" / "A1.tsv.gz", half)),
        ["A1.tsv.gz", "empty or damaged"],
    ),
    ("ragged tsv", "train", lambda w: w.her2st(ragged), ["A1.tsv.gz", "damaged"]),
    (
        "damaged spot table",
        "train",
        lambda w: w.her2st(lambda root: rewrite(root / "ST-spotfiles" / "A1_selection.tsv", noise)),
        ["A1_selection.tsv"],
    ),
]


@pytest.mark.parametrize(
    ("mode", "make", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_bad_input(trained, tmp_path, capfd, mode, make, words):
    assert_refused(mode, make, words, trained, tmp_path, capfd)
