"""Methods side by side by the command line: parts, what is reused, the report, what is refused."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil

import numpy as np
import pytest
import tiny

from stfm_jax.runtime.cost import measured
from stfm_jax.score import controls

METHODS = "('mean','ridge','stnet','anchor','stflow')"


def arguments(workdir, data, **overrides) -> list[str]:
    fields = {
        "data.dir": str(data),
        "data.folds": "section",
        "methods": METHODS,
        "train.epochs": 2,
        "sample.draws": 99,
        "compare.normalizations": "('log1p','log1p_cp10k')",
        "compare.controls": True,
    }
    return tiny.arguments(workdir, **(fields | overrides))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("slides"), tiny.slides(3))


@pytest.fixture(scope="module")
def compared(tmp_path_factory, data):
    """A comparison of two parts, done."""
    workdir = tmp_path_factory.mktemp("comparison") / "W"
    assert tiny.command(*arguments(workdir, data)) == 0
    return workdir


@pytest.mark.slow
def test_each_part_is_an_experiment_of_its_own(compared, data, tmp_path):
    """Its figures are those of the same methods trained without a comparison."""
    alone = tmp_path / "alone"
    fields = {"compare.normalizations": "()", "data.normalization": "log1p_cp10k"}
    assert tiny.command(*arguments(alone, data, **fields)) == 0
    mine, theirs = (
        json.loads((folder / "metrics.json").read_text())["methods"]
        for folder in (compared / "log1p_cp10k", alone)
    )
    assert mine == theirs
    whole = json.loads((compared / "metrics.json").read_text())
    assert whole["parts"]["log1p_cp10k"]["methods"] == theirs
    assert set(whole["parts"]) == {"log1p", "log1p_cp10k"}


@pytest.mark.slow
def test_what_is_done_is_reused_and_what_is_new_is_added(compared, data, tmp_path):
    workdir = shutil.copytree(compared, tmp_path / "W")
    kept = {path: path.stat().st_mtime_ns for path in workdir.glob("*/fold_*/*/seed_0/model/*")}
    assert kept
    added = METHODS.replace("'stnet'", "'stnet','ridge_reduced'")
    fields = {"methods": added, "compare.maps": 2, "compare.reference": "ridge"}
    assert tiny.command(*arguments(workdir, data, **fields)) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for part in json.loads((workdir / "metrics.json").read_text())["parts"].values():
        assert "ridge_reduced" in part["methods"]


@pytest.mark.slow
def test_rows_are_ranked_costed_and_set_against_the_reference(compared):
    found = json.loads((compared / "metrics.json").read_text())
    assert list(found["ranks"])[-1] == "mean", "what sees nothing is last"
    part = found["parts"]["log1p"]
    assert set(part["against"]) == {"mean", "ridge", "stnet", "anchor"}
    folds = [np.mean([part["methods"][n]["pearson"]["mean"]]) for n in ("mean", "stflow")]
    assert part["against"]["mean"]["difference"] == pytest.approx(folds[0] - folds[1], abs=1e-6)
    for name in ("mean", "ridge", "stnet", "anchor", "stflow"):
        cost = part["costs"][name]
        assert cost["predict_seconds"] > 0 and cost["numbers"] > 0, name
    assert part["costs"]["anchor"]["numbers"] == part["costs"]["stflow"]["numbers"]
    rows = list(csv.DictReader((compared / "table.csv").open()))
    cell = next(
        r for r in rows if (r["part"], r["row"], r["metric"]) == ("log1p", "ridge", "pearson")
    )
    assert float(cell["mean"]) == part["methods"]["ridge"]["pearson"]["mean"]
    assert "| ridge |" in (compared / "table.md").read_text()


@pytest.mark.slow
def test_controls_stand_apart_from_the_ranked_rows(compared):
    """They know the truth; a score that does not order them is marked, and a note says why."""
    found = json.loads((compared / "metrics.json").read_text())
    assert not set(controls.NAMES) & set(found["ranks"])
    part = found["parts"]["log1p"]
    assert tuple(part["controls"]) == controls.NAMES
    assert not set(controls.NAMES) & (set(part["methods"]) | set(part["against"]))
    assert part["controls"]["truth_smooth"]["pearson"]["mean"] > 0.3
    assert part["controls"]["shuffle_spots"]["gene_structure"]["mean"] == pytest.approx(1.0)
    assert "pearson" not in part["unordered"]
    assert part["unordered"]["gene_structure"][1] == "shuffle_spots"
    rows = list(csv.DictReader((compared / "table.csv").open()))
    kinds = {row["row"]: row["kind"] for row in rows}
    assert {name for name, kind in kinds.items() if kind == "control"} == set(controls.NAMES)
    text = (compared / "table.md").read_text()
    page = html.unescape((compared / "report.html").read_text())
    for said in (text, page):
        for wanted in ("controls: they know the truth", "shuffle_genes"):
            assert wanted in said, wanted
        (mark,) = set(re.findall(r"gene_structure (\[\d\])", said))
        assert f"{mark} gene_structure does not order its controls" in said
        assert not re.search(r"\bpearson \[", said)


@pytest.mark.slow
def test_a_workdir_without_controls_gets_them_and_keeps_the_rest(compared, data, tmp_path):
    workdir = shutil.copytree(compared, tmp_path / "W")
    places = [
        workdir / part / f"fold_{i}" / "controls.json"
        for part in ("log1p", "log1p_cp10k")
        for i in range(3)
    ]
    first = [path.read_text() for path in places]
    places[0].unlink()
    places[1].write_text(json.dumps({"seed": 1, "scores": {}}))  # of another seed
    kept = {path: path.stat().st_mtime_ns for path in workdir.glob("*/fold_*/*/seed_0/*")}
    assert tiny.command(*arguments(workdir, data)) == 0
    assert [path.read_text() for path in places] == first
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    places[2].unlink()
    assert tiny.command(*arguments(workdir, data), "--mode=eval") == 0
    assert [path.read_text() for path in places] == first


@pytest.mark.slow
def test_controls_are_scored_and_shown_where_they_are_asked_for(compared, data, tmp_path):
    workdir = shutil.copytree(compared, tmp_path / "W")
    for path in workdir.glob("log1p/fold_*/controls.json"):
        path.unlink()
    assert tiny.command(*arguments(workdir, data, **{"compare.controls": False})) == 0
    for part in json.loads((workdir / "metrics.json").read_text())["parts"].values():
        assert part["controls"] == part["unordered"] == {}
    assert not list(workdir.glob("log1p/fold_*/controls.json"))


@pytest.mark.slow
def test_slow_methods_run_with_one_seed_and_nothing_is_fitted_to_all_slides(data, tmp_path):
    workdir = tmp_path / "W"
    fields = {
        "methods": "('mean','ridge','stnet')",
        "seeds": "(0,1)",
        "compare.reference": "ridge",
        "compare.normalizations": "('log1p',)",
        "compare.once": "('stnet',)",
        "compare.final": False,
    }
    assert tiny.command(*arguments(workdir, data, **fields)) == 0
    part = workdir / "log1p"
    scored = {path.parent.relative_to(part).as_posix() for path in part.rglob("scores.json")}
    rows = ("mean/seed_0", "ridge/seed_0", "stnet/seed_0", "mean/seed_1", "ridge/seed_1")
    assert scored == {f"fold_{i}/{row}" for i in range(3) for row in rows}
    assert not (part / "final").exists()
    rows = json.loads((workdir / "metrics.json").read_text())["parts"]["log1p"]["methods"]
    of_seeds = {name: rows[name]["pearson"]["seeds"] for name in ("ridge", "stnet")}
    assert None not in of_seeds["ridge"] and of_seeds["stnet"][1] is None
    # What was left out is made by the same command without it.
    assert tiny.command(*arguments(workdir, data, **fields | {"compare.final": True})) == 0
    assert (part / "final" / "stnet" / "seed_0" / "model").exists()


@pytest.mark.slow
def test_the_page_holds_all_it_shows(compared):
    page = (compared / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page
    said = html.unescape(re.sub("<[^>]*>", " ", page))
    for wanted in ("Which method for what", "The most accurate mean is", "Rank", "stnet"):
        assert wanted in said, wanted
    # of each part: accuracy, differences, genes, reliability, maps
    assert page.count("<img") == 10


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data.folds": "published"}, "two folds"),
        ({"compare.normalizations": "('log2',)"}, "log1p, log1p_cp10k, found 'log2'"),
        ({"compare.reference": "ridge_smooth"}, "must be one of the methods"),
        ({"methods": "('ridge','stnett')"}, "Did you mean 'stnet'?"),
        ({"compare.once": "('stnett',)"}, "Did you mean 'stnet'?"),
    ],
)
def test_what_cannot_be_compared_is_refused(data, tmp_path, capsys, changed, said):
    workdir = tmp_path / "W"
    if changed == {"data.folds": "published"}:
        changed = {"data.reader": "simulated", "data.dir": "", "encoder.name": "stain_texture"}
        changed |= {"data.folds": "published", "data.seeds": "(0,1)", "data.test_patients": 1}
        changed |= {"data.tissue.spots": 40, "data.tissue.num_sections": 1}
    assert tiny.command(*arguments(workdir, data, **changed)) == 2
    assert said in capsys.readouterr().err
    assert not workdir.exists()


@pytest.mark.slow
def test_a_comparison_predicts_by_a_part(compared, data, capsys):
    slide = str(next(data.glob("*.h5ad")))
    asked = ("--mode=predict", f"--config.predict.input={slide}")
    assert tiny.command(*arguments(compared, data), *asked) == 2
    assert "--workdir=W/log1p" in capsys.readouterr().err


def test_the_peak_is_that_of_the_block():
    with measured("a") as large:
        held = np.ones(40_000_000)
    del held
    with measured("a") as small:
        pass
    assert large["a_seconds"] > small["a_seconds"] >= 0
    assert large["a_peak_gib"] > small["a_peak_gib"] + 0.2
