"""What the documentation tells a reader to type works as it stands."""

from __future__ import annotations

import doctest
import json
import re
import shlex
import shutil
import subprocess
import sys

import anndata
import matplotlib
import numpy as np
import pytest
import tiny

import stfm_jax as stfm
from stfm_jax import api, builtin

PAGES = ["README.md", *(f"docs/{p.name}" for p in (tiny.REPOSITORY / "docs").glob("*.md"))]


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    text = (tiny.REPOSITORY / page).read_text(encoding="utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)


def run_as_pasted(page: str) -> dict:
    """Runs a page's blocks one after the other where we are; returns the names they made."""
    made: dict = {}
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, page, "exec"), made)
        else:
            flags = shlex.split(text.replace("\\\n", " "))
            assert flags[:3] == ["python", "-m", "stfm_jax"], text
            assert tiny.command(*flags[3:]) == 0
    return made


@pytest.mark.slow
def test_the_tutorial(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    made = run_as_pasted("docs/tutorial.md")
    assert list(made["scores"]) == ["mean", "ridge", "kernel_ridge"]
    with open("runs/tutorial/metrics.json") as file:
        rows = json.load(file)["methods"]
    assert set(rows) == {"mean", "ridge", "kernel_ridge", "stflow", "stflow_draw"}
    assert rows["stflow"]["pearson"]["mean"] > 0.2 and np.nanmean(made["pearson"]) > 0.2
    assert 0.5 < made["inside"].mean() <= 1.0
    np.testing.assert_allclose(anndata.read_h5ad("predicted.h5ad").X, made["predicted"].X)
    passed_on = stfm.load("tutorial_model").predict(made["unseen"])
    np.testing.assert_array_equal(passed_on.X, made["predicted"].X)


def test_examples_of_the_python_face(trained, tmp_path, monkeypatch):
    """Docstrings, with a trained workdir as runs/demo and three slides with features."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.workdir, tmp_path / "runs" / "demo")
    shutil.copy(trained.unseen, tmp_path / "runs" / "demo" / "slide.h5ad")
    slides = [anndata.read_h5ad(path) for path in sorted(trained.data.glob("*.h5ad"))]
    given = dict(zip(("first", "second", "third"), slides, strict=True), stfm=stfm)
    finder, runner = doctest.DocTestFinder(recurse=True), doctest.DocTestRunner()
    tried = 0
    for module in (api, builtin):
        for test in finder.find(module, extraglobs=given):
            result = runner.run(test)
            assert not result.failed, f"{test.name}: the example fails (see what is printed)"
            tried += result.attempted
    assert tried >= 9


def commands(page: str) -> list[list[str]]:
    """Flags of each command of ours in a page's blocks; what is left open ([], ...) is left out."""
    text = "\n".join(text for _, text in blocks(page)).replace("\\\n", " ")
    found = re.findall(r"^(?:srun .*)?python (?:run\.py|-m stfm_jax) (.*)$", text, re.M)
    closed = [re.sub(r"\[.*?\]|\.\.\. ", "", flags) for flags in found]
    return [shlex.split(flags, comments=True) for flags in closed if "NAME_OR_FILE" not in flags]


@pytest.mark.parametrize("page", PAGES)
def test_commands_name_what_there_is(page, tmp_path):
    """Modes, configs and fields."""
    code = "import sys; from stfm_jax.command import parse; parse(sys.argv)"
    for given in commands(page):
        named = any(flag.startswith("--config=") for flag in given)
        flags = [f"--workdir={tmp_path}", *([] if named else ["--config=demo"]), *given]
        made = subprocess.run(
            [sys.executable, "-c", code, *flags],
            cwd=tiny.REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, f"{given}: {made.stderr}"


def test_the_method_that_is_shown_is_as_it_stands():
    ((_, diff),) = (block for block in blocks("docs/adding_a_method.md") if block[0] == "diff")
    (path,) = re.findall(r"^\+\+\+ b/(\S+/ridge_reduced\.py)$", diff, re.M)
    added = diff.split(f"+++ b/{path}")[1].split("diff --git")[0]
    shown = [line[1:] for line in added.splitlines() if line.startswith("+")]
    assert shown == (tiny.REPOSITORY / path).read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """To files of the repository and to headings of its pages."""
    path = tiny.REPOSITORY / page
    links = re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
    for link in links:
        if re.match(r"https?:", link):
            continue
        name, _, heading = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{page}: {link}"
        if heading:
            assert heading in headings(target), f"{page}: {link}"


def headings(path) -> set[str]:
    """As they are linked to: small letters, hyphens between words."""
    found = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in found}
