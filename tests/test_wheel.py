"""The wheel works alone: away from the repository, with configs by name."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
import zipfile

import pytest
import tiny

CODE = """
import sys
import stfm_jax as stfm
assert stfm.__file__.startswith(sys.argv[1]), stfm.__file__
import anndata
from stfm_jax import builtin
assert str(builtin.folder()).startswith(sys.argv[1]) and "hest_idc" in builtin.names()
model = stfm.load(sys.argv[2])
print(model.predict(anndata.read_h5ad(sys.argv[3])).shape)
"""


def test_every_folder_is_a_package_of_the_wheel():
    parser = configparser.ConfigParser()
    parser.read(tiny.REPOSITORY / "setup.cfg")
    listed = set(parser["options"]["packages"].split())
    root = tiny.REPOSITORY / "stfm_jax"
    found = {"stfm_jax", "stfm_jax.configs"} | {
        ".".join(("stfm_jax", *path.parent.relative_to(root).parts)) for path in root.rglob("*.py")
    }
    assert listed == found


@pytest.mark.slow
def test_the_wheel_works_alone(trained, tmp_path):
    """Trains by a built-in config's name and predicts, from an empty folder."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = tmp_path / "source"  # pip builds in place, and would leave build/ in the repository
    subprocess.run(["git", "clone", "--quiet", tiny.REPOSITORY, source], check=True)
    subprocess.run([*pip, "wheel", "--no-deps", source, "-w", tmp_path], check=True)
    (wheel,) = tmp_path.glob("stfm_jax-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "stfm_jax/configs/hest_idc.py" in names
    assert not [n for n in names if n.startswith(("configs/", "tests/", "benchmarks/"))]
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    env = {**os.environ, "PYTHONPATH": str(site)}
    flags = [f"--config.{k}={v}" for k, v in tiny.fields(data__dir=trained.data, fold=0).items()]
    work = empty / "work"
    command = [sys.executable, "-m", "stfm_jax", "--config=demo", f"--workdir={work}", *flags]
    done = subprocess.run(command, cwd=empty, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(site), str(work), str(trained.unseen)],
        cwd=empty, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith(", 8)")
