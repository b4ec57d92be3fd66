"""What made this folder: run at commit 0c00b60, with its tests on the path, in an empty folder.

    JAX_DISABLE_MOST_OPTIMIZATIONS=1 JAX_PLATFORMS=cpu \
        XLA_FLAGS=--xla_force_host_platform_device_count=4 \
        PYTHONPATH=CHECKOUT:CHECKOUT/tests python make.py FOLDER

Only what prediction needs is kept, and no path: `data.dir` is "data".
"""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import anndata
import numpy as np
import scipy.sparse as sp
import test_run_srast
import test_run_stack
import tiny
import tiny_stack

from stfm_jax.data.readers import h5ad

SMALL = {
    "model__components": 4,
    "model__image_width": 8,
    "model__width": 8,
    "model__heads": 2,
    "train__epochs": 1,
    "train__select": False,
    "data__num_genes": 4,
}
STACK = {**SMALL, "stack__epochs": 1, "stack__context_width": 4}
SPLIT = {"train__epochs": 1, "train__select": False}


def trained(config, work: Path, kept: Path, **fields) -> None:
    """Trains one fold and the model of all slides, whose folder is kept."""
    assert tiny.run(config(**fields, fold=0), work) == 0
    shutil.copytree(work / "final" / "model", kept / "final" / "model")
    stored = json.loads((work / "config.json").read_text())
    stored["data"]["dir"], stored["fold"] = "data", None
    (kept / "config.json").write_text(json.dumps(stored, indent=1) + "\n")
    for path in kept.rglob("commit_success.txt"):  # which name where they were written
        path.write_text("written\n")


def predicted(config, work: Path, kept: Path, **fields) -> None:
    """What it gives, as arrays."""
    output = work / "out.h5ad"
    assert tiny.run(config(**fields, predict__output=str(output)), work, "predict") == 0
    adata = anndata.read_h5ad(output)

    def dense(x):
        return np.asarray(x.todense() if sp.issparse(x) else x)

    np.savez_compressed(
        kept / "expected.npz",
        X=dense(adata.X),
        obs_names=np.array([str(name) for name in adata.obs_names]),
        var_names=np.array([str(name) for name in adata.var_names]),
        **{f"layers_{name}": dense(values) for name, values in adata.layers.items()},
    )


def main(out: Path, scratch: Path) -> None:
    sections = tiny.slides()
    data = tiny.write(scratch / "slides", sections[:3])
    given, work = out / "stflow" / "in.h5ad", scratch / "stflow"
    trained(tiny.config, work, out / "stflow", data__dir=str(data), **SMALL)
    h5ad.write(sections[3], given)
    fields = {"data__dir": str(data), "predict__input": str(given), "predict__draws": 3}
    predicted(tiny.config, work, out / "stflow", **fields, **SMALL)

    data = tiny.write(scratch / "stack", test_run_stack.moved(tiny.slides()))
    given, work = out / "holotea" / "in", scratch / "holotea"
    trained(tiny_stack.config, work, out / "holotea", data__dir=str(data), **STACK)
    shutil.copytree(work / "sections" / "P1", given)
    fields = {"predict__sections": ("S2",), "predict__html": False}
    fields |= {"data__dir": str(data), "predict__input": str(given)}
    predicted(tiny_stack.config, work, out / "holotea", **fields, **STACK)

    data = tiny.write(scratch / "split", [test_run_srast.section(f"P{i}", i) for i in range(2)])
    given, work = out / "srast" / "in.h5ad", scratch / "srast"
    trained(test_run_srast.config, work, out / "srast", data__dir=str(data), **SPLIT)
    pair = test_run_srast.by_lattice(test_run_srast.section("new", 9).subset(np.arange(72)))
    h5ad.write(dataclasses.replace(pair.low, features=None), given)
    fields = {"data__dir": str(data), "predict__input": str(given)}
    predicted(test_run_srast.config, work, out / "srast", **fields, **SPLIT)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path("scratch").absolute())
