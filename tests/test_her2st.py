"""Real tissue from end to end: her2st as released, and as a HEST-bench folder. Slow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
from hest_layout import write_embeddings, write_task
from real_tissue import her2st_root

from configs import base
from stfm_jax.data.coarsen import by_lattice
from stfm_jax.data.expression import (
    gene_counts,
    most_expressed_genes,
    most_variable_counts,
    most_variable_genes,
)
from stfm_jax.data.readers import her2st
from stfm_jax.encoders.embed import embedded
from stfm_jax.encoders.encoder import StainTexture
from stfm_jax.models import table
from stfm_jax.models.method import Genes, Request
from stfm_jax.models.srast.method import SRastSettings, State
from stfm_jax.ops import simplex
from stfm_jax.runtime.devices import make_mesh
from stfm_jax.score import split as split_scores

REPOSITORY = Path(__file__).resolve().parents[1]
ROOT = her2st_root()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(ROOT is None, reason="her2st is absent (set STFM_HER2ST)"),
]
SHORT = ("--config.train.epochs=25", "--config.model.width=32", "--config.model.blocks=1")


def run(*arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    done = subprocess.run(
        [sys.executable, "run.py", *arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


@pytest.fixture(scope="module")
def sections(tmp_path_factory):
    """C2, C3 and C4 with features of the built-in encoder."""
    slides = [her2st.read(ROOT, name) for name in ("C2", "C3", "C4")]
    cache = tmp_path_factory.mktemp("features")
    return cache, embedded(slides, [StainTexture(fields_um=(200.0,))], cache)


def test_her2st_is_learned_and_a_section_predicted(sections, tmp_path):
    """Trained on C2 and C3 alone, STFlow beats ridge on C4, which it is given as a file."""
    cache, slides = sections
    work = tmp_path / "work"
    common = (
        "--config=configs/her2st_stflow.py",
        f"--workdir={work}",
        f"--config.data.dir={ROOT}",
        "--config.data.sections=('C2','C3','C4')",
        f"--config.encoder.dir={cache}",
        "--config.encoder.patch_um=200.0",
        *SHORT,
    )
    run(*common, "--config.fold=2")
    methods = json.loads((work / "metrics.json").read_text())["methods"]

    def score(method, metric="pearson"):
        return methods[method][metric]["mean"]

    assert score("stflow") > score("ridge") > 0.4
    assert score("stflow_draw", "moran") > score("stflow", "moran")
    assert 0.7 < score("stflow_draw", "coverage80") < 0.9

    from stfm_jax.data.readers import h5ad

    h5ad.write(slides[2], tmp_path / "C4.h5ad")
    run(
        *common,
        "--mode=predict",
        "--config.fold=2",
        f"--config.predict.input={tmp_path / 'C4.h5ad'}",
        f"--config.predict.output={tmp_path / 'out.h5ad'}",
    )
    predicted = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert predicted.shape == (slides[2].num_spots, 50)
    assert np.isfinite(predicted.X).all() and (predicted.layers["std"] > 0).all()


def test_the_hest_config_runs_on_a_folder_in_its_layout(sections, tmp_path):
    """configs/hest_idc.py, unchanged but for size, on her2st sections written as HEST-bench is."""
    _, slides = sections
    write_task(tmp_path / "bench", "IDC", slides, most_variable_genes(slides, 50))
    write_embeddings(tmp_path / "embeddings", "IDC", "uni_v1", slides)
    run(
        "--config=configs/hest_idc.py",
        f"--workdir={tmp_path / 'work'}",
        f"--config.data.dir={tmp_path / 'bench'}",
        f"--config.encoder.dir={tmp_path / 'embeddings'}",
        "--config.fold=0",
        *SHORT[1:],
        "--config.train.epochs=3",
    )
    metrics = json.loads((tmp_path / "work" / "metrics.json").read_text())
    assert metrics["folds"][0]["test"] == [slides[0].name]
    assert metrics["methods"]["stflow"]["pearson"]["mean"] > 0.3


def test_counts_are_split_better_than_by_interpolation_on_another_tumour():
    """SRast's mean, fitted on C with other genes, on D1: above every trivial split."""
    train = [by_lattice(her2st.read(ROOT, name)) for name in ("C2", "C4", "C6")]
    pool = most_expressed_genes([pair.low for pair in train], 200)
    scored = most_variable_counts([pair.high for pair in train], pool, 50)
    others = [gene for gene in pool if gene not in set(scored)]
    fitted = SRastSettings().flow.training_set(train, [others] * 3).fitted
    pair = by_lattice(her2st.read(ROOT, "D1"))
    low, true = gene_counts(pair.low, scored), gene_counts(pair.high, scored)
    request = Request(Genes(tuple(scored), ()), 0, 0, 0, make_mesh(1))
    rows = {}
    for name in base.SPLIT:
        state = State(fitted, {}, 0) if name == "srast" else None
        rows[name] = np.zeros(true.shape)
        for part in table.build(name, base.get_config()).predict(state, pair, request):
            mask = part.children >= 0
            at = part.children[mask], np.repeat(part.pairs.gene, mask.sum(axis=1))
            rows[name][at] = simplex.split(part.counts, part.mean, mask)[mask]
    scores = {name: split_scores.score([pair], [low], [row], [true]) for name, row in rows.items()}
    assert scores["srast"]["mass_error"] < 1e-6
    for name in ("pearson_log1p", "ratio"):
        best = max(score[name] for row, score in scores.items() if row != "srast")
        assert scores["srast"][name] > best, scores
