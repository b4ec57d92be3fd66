"""The report beside a predicted slide: what it says; and that nothing foreign is trusted."""

from __future__ import annotations

import html.parser
import shutil

import anndata
import numpy as np
import pytest
import tiny

from stfm_jax.predict import slide_report
from stfm_jax.predict.file import predict_file
from stfm_jax.runtime.files import read_csv
from stfm_jax.trained import load_model


@pytest.fixture(scope="module")
def model(trained):
    return load_model(trained.config(), trained.workdir)[0]


@pytest.fixture(scope="module")
def predicted(trained, model, tmp_path_factory):
    """An output with its picture, without a report."""
    folder = tmp_path_factory.mktemp("predicted")
    fields = {"input": str(trained.unseen), "output": str(folder / "out.h5ad"), "report": False}
    fields = {f"predict__{name}": value for name, value in fields.items()} | {"predict__draws": 2}
    predict_file(trained.config(**fields), model, model_folder(trained))
    assert not list(folder.glob("*.html"))
    return folder / "out.h5ad"


def model_folder(trained):
    return tiny.place(trained.workdir, None) / "model"


class Seen(html.parser.HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


def report(predicted, model, tmp_path, warned=(), name="out"):
    for suffix in (".h5ad", ".png"):
        shutil.copy(predicted.with_suffix(suffix), tmp_path / f"{name}{suffix}")
    output = tmp_path / f"{name}.h5ad"
    slide_report.write(output, model, list(warned), output.with_suffix(".png"))
    return (tmp_path / f"{name}_report.html").read_text()


def test_it_says_what_there_is_to_know(trained, model, predicted, tmp_path):
    text = report(predicted, model, tmp_path, ["the tissue is small"])
    seen = Seen(text)
    said = " ".join(seen.text)
    rows = [row for row in read_csv(trained.workdir / "per_gene.csv") if row["method"] == "stflow"]
    scores = {}
    for row in rows:
        scores.setdefault(row["gene"], []).append(float(row["pearson"]))
    best = max(model.genes.scored, key=lambda gene: np.mean(scores[gene]))
    assert f"{best} {np.mean(scores[best]):.2f}" in said
    assert "the tissue is small" in said and "Not for clinical use" in said
    assert f"encoder {tiny.ENCODER}" in said and "3 slides of 1 patient" in said
    assert seen.tags.count("img") == 2


def test_nothing_is_loaded_run_or_believed(model, predicted, tmp_path):
    evil = "<script>alert(1)</script><img src='http://x/y.png'>"
    adata = anndata.read_h5ad(predicted)
    adata.uns["stfm"]["image"] = evil
    other = tmp_path / "evil"
    other.mkdir()
    adata.write_h5ad(other / "out.h5ad")
    shutil.copy(predicted.with_suffix(".png"), other / "out.png")
    text = report(other / "out.h5ad", model, tmp_path, [evil], name="a<b>")
    seen = Seen(text)
    assert "script" not in seen.tags and "link" not in seen.tags
    assert all(address.startswith("data:image/png;base64,") for address in seen.addresses)
    assert " ".join(seen.text).count("<script>alert(1)</script>") == 3
    assert "default-src 'none'" in text


def test_without_scores_picture_or_distance(model, predicted, tmp_path):
    adata = anndata.read_h5ad(predicted)
    adata.var["expected_folds"] = 0
    del adata.obs["distance"], adata.uns["stfm"]["distance_ratio"]
    adata.write_h5ad(tmp_path / "out.h5ad")
    slide_report.write(tmp_path / "out.h5ad", model, [], None)
    text = (tmp_path / "out_report.html").read_text()
    assert "<img" not in text and "came without its scores by gene" in text
    assert "the method does not measure it" in text


@pytest.mark.parametrize("ratio, warned", [(0.9, False), (1.4, False), (3.0, True)])
def test_how_far_a_slide_is(model, predicted, tmp_path, ratio, warned):
    adata = anndata.read_h5ad(predicted)
    adata.uns["stfm"] |= {"distance_ratio": ratio, "distance_usual": 1.2, "distance_stranger": 1.5}
    adata.write_h5ad(tmp_path / "out.h5ad")
    slide_report.write(tmp_path / "out.h5ad", model, [], None)
    text = (tmp_path / "out_report.html").read_text()
    assert f"The slide is {ratio:.2f} times as far" in text and 'alt="map of the distance' in text
    assert ("Do not trust" in text) == warned == ('<p class="warning">' in text)
