"""Bad input: fields of the config, and the command line itself."""

from __future__ import annotations

from unittest import mock

import pytest
import tiny
from bad_input import assert_message, assert_refused

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

CASES = [
    # name, mode, what is made (and which fields point to it), words of the message
    (
        "unknown reader",
        "train",
        lambda w: {"data__reader": "cosmx"},
        ["data.reader", "hest, her2st, anndata, ", ", simulated", "'cosmx'"],
    ),
    (
        "unknown normalisation",
        "train",
        lambda w: w.copied() | {"data__normalization": "log2"},
        ["data.normalization", "log1p, log1p_cp10k", "'log2'"],
    ),
    (
        "unknown method",
        "train",
        lambda w: w.copied() | {"methods": ("ridge", "stflwo")},
        ["config.methods must be of mean, probe", "found 'stflwo'", "Did you mean 'stflow'?"],
    ),
    (
        "methods of two problems",
        "train",
        lambda w: w.copied() | {"methods": ("ridge", "uniform")},
        ["of one problem, found ridge (expression), uniform (split)"],
    ),
    ("no method", "train", lambda w: w.copied() | {"methods": ()}, ["config.methods", "none"]),
    (
        "fold out of range",
        "train",
        lambda w: w.copied() | {"fold": 3},
        ["config.fold must be from 0 to 2, found 3"],
    ),
    (
        "unknown standardisation",
        "train",
        lambda w: w.copied() | {"data__standardize": "none"},
        ["config.data.standardize", "slide, training", "'none'"],
    ),
    (
        "unknown field of the tissue",
        "train",
        lambda w: {"data__reader": "simulated", "data__tissue__genes": 5},
        ["config.data.tissue has no field 'genes'", "num_sections, spots, num_genes"],
    ),
    (
        "an added gene that is in no slide",
        "train",
        lambda w: w.copied() | {"data__genes": ("GENE001", "GENE0001")},
        ["config.data.genes: no slide has the gene 'GENE0001'; did you mean GENE001"],
    ),
    (
        "labels that are in no slide",
        "train",
        lambda w: w.copied() | {"data__labels_key": "region"},
        ["config.data.labels_key: none of the 3 files", "obs['region']"],
    ),
    (
        "programmes that are not there",
        "train",
        lambda w: w.copied() | {"data__programmes": "/none.gmt"},
        ["/none.gmt: no such file (--config.data.programmes)"],
    ),
    (
        "genes added to a split",
        "train",
        lambda w: w.copied() | {"data__genes": ("GENE001",), "methods": ("uniform",)},
        ["config.data.genes adds genes", "found GENE001; leave it out"],
    ),
    (
        "no epochs",
        "train",
        lambda w: w.copied() | {"train__epochs": 0},
        ["config.train.epochs must be at least 1, found 0"],
    ),
    (
        "a single draw",
        "train",
        lambda w: w.copied() | {"sample__draws": 1},
        ["config.sample.draws must be at least 2, found 1"],
    ),
    (
        "heads that do not divide",
        "train",
        lambda w: w.copied() | {"model__heads": 3},
        ["config.model.width (16)", "config.model.heads (3)"],
    ),
    (
        "more devices than there are",
        "train",
        lambda w: w.copied() | {"devices": 64},
        ["config.devices asks for 64 devices, found", "--xla_force_host_platform_device_count=64"],
    ),
    (
        "segments on several devices",
        "train",
        lambda w: w.copied() | {"devices": 2, "model__attention": "segments"},
        ["config.model.attention=segments works on one device, found 2", "--config.devices=1"],
    ),
]


@pytest.mark.parametrize(
    ("mode", "make", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_bad_input(trained, tmp_path, capfd, mode, make, words):
    assert_refused(mode, make, words, trained, tmp_path, capfd)


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
    (
        "the field that methods replaced",
        [DEMO, "--config.method=holotea"],
        ["--config.method: is gone", "--config.methods=ridge,holotea"],
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
    assert_message(capfd.readouterr().err, words)
    assert not work.exists()


def test_no_workdir(capfd):
    assert tiny.command(DEMO) == 2
    assert_message(capfd.readouterr().err, ["--workdir is required"])


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
    assert_message(err, words)
    assert not (tmp_path / "work").exists()
