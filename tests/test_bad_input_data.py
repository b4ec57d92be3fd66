"""Bad input: slides that can be read, and whose contents will not do."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest
from bad_input import (
    assert_refused,
    edit,
    first_spots,
    narrower,
    other_encoder,
    set_feature,
    without_features,
)
from PIL import Image


def same_barcode(adata):
    adata.obs_names = ["a", "a", *adata.obs_names[2:]]


def set_count(value):
    def change(adata):
        counts = adata.X.toarray().astype(np.float32)
        counts[3, 2] = value
        adata.X = counts

    return change


def without_coordinates(adata):
    del adata.obsm["spatial"]


def without_unit(adata):
    del adata.uns["spatial_unit"]


def in_pixels(adata):
    adata.uns["spatial_unit"] = "pixel"


def on_one_spot(adata):
    adata.obsm["spatial"][7] = adata.obsm["spatial"][3]


def nan_coordinate(adata):
    adata.obsm["spatial"][7, 0] = np.nan


def other_genes(adata):
    adata.var_names = [f"OTHER{i}" for i in range(adata.n_vars)]


def one_gene_less(task, _):
    edit(task / "adata" / "P1_S2.h5ad", lambda adata: adata[:, 1:].copy())


def other_barcodes(_, embed):
    with h5py.File(embed / "P1_S2.h5", "r+") as file:
        file["barcodes"][...] = np.array([[f"q{i}".encode()] for i in range(len(file["coords"]))])


def unselected(root):
    path = root / "ST-cnts" / "A1.tsv.gz"
    table = pd.read_csv(path, sep="\t", index_col=0)
    table.index = [f"9{name}" for name in table.index]
    table.to_csv(path, sep="\t")


def cropped(root):
    with Image.open(root / "ST-imgs" / "A1.jpg") as image:
        image.crop((0, 0, 90, 160)).save(root / "ST-imgs" / "A1.jpg")


def without_image(root):
    (root / "ST-imgs" / "A2.jpg").unlink()


def alone(world) -> dict:
    fields = world.copied()
    for name in ("P1_S2", "P1_S3"):
        (world.data / f"{name}.h5ad").unlink()
    return fields


CASES = [
    # name, mode, what is made (and which fields point to it), words of the message
    (
        "spots outside the image",
        "embed",
        lambda w: w.her2st(cropped),
        ["A1.jpg", "12 of 36 spots lie outside the image of 90 x 160 pixels"],
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
        "a gene absent where it is to be scored",
        "train",
        lambda w: w.edited(lambda adata: adata[:, :12].copy()),
        ["P1_S2", "of 8 genes found; missing GENE0"],
    ),
    (
        "no gene in common",
        "train",
        lambda w: w.edited(other_genes),
        ["no gene is in all slides", "genes like OTHER0", "the same kind of gene names"],
    ),
    (
        "more genes than there are",
        "train",
        lambda w: w.copied() | {"data__num_genes": 1000},
        ["wanted 1000 variable genes, but only"],
    ),
    (
        "more genes than there are, before embedding",
        "embed",
        lambda w: w.her2st() | {"data__num_genes": 1000},
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
        ["P1_S1", "no image to embed, but features", "--config.encoder.name=precomputed"],
    ),
    (
        "no image of the second slide",
        "train",
        lambda w: w.her2st(without_image),
        ["'A2'", "neither features nor an image"],
    ),
    (
        "fewer spots than neighbours",
        "train",
        lambda w: w.edited(first_spots(4)),
        ["P1_S2", "has 4 spots, too few", "--config.model.neighbors"],
    ),
    (
        "fewer spots than neighbours, before embedding",
        "train",
        lambda w: w.her2st() | {"model__neighbors": 9},
        ["'A1'", "has 36 spots, too few", "--config.model.neighbors"],
    ),
    ("no spots", "train", lambda w: w.edited(first_spots(0)), ["P1_S2", "has no spots"]),
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
    (
        "no unit",
        "train",
        lambda w: w.edited(without_unit),
        ["P1_S2", "uns['spatial_unit']", "--config.data.spatial_unit"],
    ),
    (
        "no scale",
        "train",
        lambda w: w.edited(in_pixels),
        ["P1_S2", "uns['um_per_px']", "--config.data.um_per_px"],
    ),
    (
        "no unit of a slide to predict",
        "predict",
        lambda w: w.retrained(lambda _: None) | w.predict(without_unit),
        ["in.h5ad", "uns['spatial_unit']", "--config.predict.spatial_unit"],
    ),
    (
        "one slide alone",
        "train",
        alone,
        ["P1_S1", "at least two"],
    ),
]


@pytest.mark.parametrize(
    ("mode", "make", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_bad_input(trained, tmp_path, capfd, mode, make, words):
    assert_refused(mode, make, words, trained, tmp_path, capfd)
