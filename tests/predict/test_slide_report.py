"""The report beside a predicted slide: what it says; and that nothing foreign is trusted."""

from __future__ import annotations

import html.parser
import shutil

import anndata
import numpy as np
import pytest
import tiny

from stfm_jax import store
from stfm_jax.models import table
from stfm_jax.predict import slide_report
from stfm_jax.predict.file import predict_file
from stfm_jax.runtime.files import read_csv


@pytest.fixture(scope="module")
def model(trained):
    method = table.build("stflow", trained.config())
    return store.load(tiny.place(trained.workdir, None) / "model", method)


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


def report(predicted, model, folder, tmp_path, warned=(), name="out"):
    for suffix in (".h5ad", ".png"):
        shutil.copy(predicted.with_suffix(suffix), tmp_path / f"{name}{suffix}")
    slide_report.write(tmp_path / f"{name}.h5ad", model, folder, list(warned))
    return (tmp_path / f"{name}_report.html").read_text()


def test_it_says_what_there_is_to_know(trained, model, predicted, tmp_path):
    text = report(predicted, model, model_folder(trained), tmp_path, ["the tissue is small"])
    seen = Seen(text)
    said = " ".join(seen.text)
    rows = [row for row in read_csv(trained.workdir / "per_gene.csv") if row["method"] == "stflow"]
    scores = {}
    for row in rows:
        scores.setdefault(row["gene"], []).append(float(row["pearson"]))
    best = max(model.genes.scored, key=lambda gene: np.mean(scores[gene]))
    assert f"{best} {np.mean(scores[best]):.2f}" in said
    assert "the tissue is small" in said and "Not for clinical use" in said
    assert f"encoder {tiny.ENCODER}" in said and "3 slides of 1 patients" in said
    assert seen.tags.count("img") == 1


def test_nothing_is_loaded_run_or_believed(trained, model, predicted, tmp_path):
    evil = "<script>alert(1)</script><img src='http://x/y.png'>"
    adata = anndata.read_h5ad(predicted)
    adata.uns["stfm"]["image"] = evil
    other = tmp_path / "evil"
    other.mkdir()
    adata.write_h5ad(other / "out.h5ad")
    shutil.copy(predicted.with_suffix(".png"), other / "out.png")
    text = report(other / "out.h5ad", model, model_folder(trained), tmp_path, [evil], name="a<b>")
    seen = Seen(text)
    assert "script" not in seen.tags and "link" not in seen.tags
    assert all(address.startswith("data:image/png;base64,") for address in seen.addresses)
    assert " ".join(seen.text).count("<script>alert(1)</script>") == 3
    assert "default-src 'none'" in text


def test_without_scores_picture_or_moments(trained, model, predicted, tmp_path):
    bare = model_folder(trained).parent / "nowhere" / "a" / "b" / "c" / "d"
    shutil.copy(predicted, tmp_path / "out.h5ad")
    slide_report.write(tmp_path / "out.h5ad", model, bare, [])
    text = (tmp_path / "out_report.html").read_text()
    assert "<img" not in text and "came without its scores by gene" in text


def test_how_far_a_slide_is(model):
    transform = slide_report._transform(model.state)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(400, tiny.WIDTH)) * transform.std
    near = (transform.mean + noise).astype(np.float32)
    assert slide_report.feature_shift(model, near) < 0.1
    far = slide_report.feature_shift(model, near + 3 * transform.std)
    assert far == pytest.approx(3, abs=0.1)
    assert slide_report.feature_shift(model, near[:, :5]) is None
    assert not slide_report._distance_warning(0.5)
    assert "very unlike" in slide_report._distance_warning(far)[0]
