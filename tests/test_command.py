"""The command line answers help and mistakes at once, knows the built-in configs by name."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import tiny

from configs import base, hest_idc
from stfm_jax import builtin, command
from stfm_jax.modes import MODES

HEAVY = ("jax", "flax", "anndata", "sklearn", "pandas", "matplotlib", "stfm_jax.cli")


def python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    """A Python of its own, somewhere else, that knows the library alone."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd="/",
        env={"PYTHONPATH": str(tiny.REPOSITORY), "PATH": ""},
        check=False,
    )


WITHOUT_HEAVY = f"""
import atexit, sys
from stfm_jax import command
heavy = {HEAVY!r}
atexit.register(lambda: print("imported:", [name for name in heavy if name in sys.modules]))
command.main()
"""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help"], 0, [*MODES, "hest_idc", "methods", "predict.input", "base.py"]),
        (["-h"], 0, ["usage: python run.py --config=NAME_OR_FILE"]),
        (["--config=demo", "--workdir=w", "--config.train.epoch=1"], 2, ['"epochs"']),
        (["--config=dmo", "--workdir=w"], 2, ["'dmo'", "Did you mean 'demo'?"]),
        (["--config=demo"], 2, ["--workdir is required"]),
        (["--config=demo", "--workdir=w", "--modes=eval"], 2, ["Did you mean: mode"]),
    ],
)
def test_answers_import_nothing_that_takes_time(arguments, code, words):
    done = python(WITHOUT_HEAVY, *arguments)
    assert done.returncode == code, done.stderr
    said = done.stdout + done.stderr
    assert "imported: []" in said and "Traceback" not in said
    for word in words:
        assert word in said, said


def test_help_lists_every_config_with_what_it_says_of_itself():
    text = command.help_text()
    for name in builtin.names():
        (line,) = [s for s in text.splitlines() if s.split()[:1] == [name]]
        assert builtin.line_of(name) and builtin.line_of(name) in line
    for field in command.OFTEN_CHANGED:
        section = base.get_config()
        for part in field.split("."):
            section = section[part]  # a KeyError: there is no such field


@pytest.mark.parametrize(
    "given", [["--config=hest_idc"], ["--config", "hest_idc"], ["--config=hest:IDC"]]
)
def test_a_name_works_as_the_path_does(given, tmp_path, capfd):
    arguments = [*given, f"--workdir={tmp_path}", "--config.data.dir=/none"]
    assert tiny.command(*arguments) == 2
    assert "/none: expected the data folder there" in capfd.readouterr().err
    assert builtin.get_config("hest_idc") == hest_idc.get_config()


def test_without_a_config_it_is_the_workdirs(tmp_path, capfd):
    path = tmp_path / "config.json"
    stored = {"methods": ["mean"], "data": {"reader": "anndata", "dir": "/none"}}
    path.write_text(json.dumps(stored))
    assert tiny.command("--workdir", str(tmp_path)) == 2
    assert "/none: expected the data folder there" in capfd.readouterr().err
    assert tiny.command(f"--workdir={tmp_path}", "--config.data.task=x") == 2
    assert "belongs to another config" in capfd.readouterr().err
    assert tiny.command(f"--workdir={tmp_path}", "--config.predict.inputs=x") == 2
    assert 'Did you mean "input"' in capfd.readouterr().err
    path.write_text("{")
    assert tiny.command(f"--workdir={tmp_path}", "--mode=predict") == 2
    assert capfd.readouterr().err.startswith(f"error: {path}: expected a JSON file")


def test_another_package_of_that_name_is_left_alone(tmp_path):
    """`configs` is a name that others have too."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("mine = 1")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import configs
from stfm_jax import builtin
made = builtin.get_config("holotea_demo")
assert made.methods[-1] == "holotea", made.methods
assert sys.modules["configs"] is configs and configs.mine == 1
import configs as again
assert again is configs
"""
    assert python(code).returncode == 0, python(code).stderr


def test_a_config_of_ones_own_may_build_on_ours(tmp_path):
    """Also where no folder `configs` is at hand."""
    own = tmp_path / "own.py"
    own.write_text(
        "from configs import demo\n\n\ndef get_config():\n"
        "    config = demo.get_config()\n    config.seed = 7\n    return config\n"
    )
    code = """
import sys
from absl import flags
from stfm_jax import command
command.parse(sys.argv)
print(command._CONFIG.value.seed, command._CONFIG.value.methods[-1])
"""
    done = python(code, f"--config={own}", "--workdir=w")
    assert done.stdout.split() == ["7", "stflow"], done.stderr
