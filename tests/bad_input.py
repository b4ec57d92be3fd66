"""Bad input for run.py: places where something is wrong, and what must come of it.

One message behind `error:`, exit code 2, nothing half-written. The tables of what can be wrong are
in test_bad_input_*.py; changes that several of them make are here.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import tiny
from hest_layout import write_embeddings, write_task
from PIL import Image

Change = Callable[[anndata.AnnData], Any]


def assert_refused(
    mode: str, make: Callable[[World], dict], words: list[str], trained, folder: Path, capfd
) -> None:
    """A mode ends with 2, one message with these words, and every file as it was.

    Args:
      mode: of run.py.
      make: puts something wrong into a World and gives the config's fields that point to it.
      words: of the message.
      trained: the fixture.
      folder: an empty one.
      capfd: the fixture.
    """
    world = World(folder, trained)
    config = tiny.config(**make(world))
    before = tiny.contents(folder)
    capfd.readouterr()
    assert tiny.run(config, world.work, mode) == 2
    assert_message(capfd.readouterr().err, words)
    assert tiny.contents(folder) == before, "something was written"
    if "work/config.json" not in before and world.work.is_dir():
        assert not list(world.work.rglob("*")), "something was left in a new workdir"


def assert_message(err: str, words: list[str]) -> None:
    """One line behind `error:` at the end, with these words; no traceback."""
    assert "Traceback" not in err, err
    *_, last = err.strip().splitlines()
    assert last.startswith("error: ") and err.count("error: ") == 1, err
    for word in words:
        assert word in last, f"{word!r} is not in: {last}"
    assert "np.str_" not in last


@dataclasses.dataclass(frozen=True)
class World:
    """A place of its own for each case: data in every layout, and a finished experiment."""

    root: Path
    trained: Any

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def work(self) -> Path:
        return self.root / "work"

    def copied(self) -> dict:
        """Three slides as .h5ad files."""
        shutil.copytree(self.trained.data, self.data)
        return {"data__dir": str(self.data)}

    def edited(self, change: Change, name: str = "P1_S2") -> dict:
        """As `copied`, one file changed."""
        fields = self.copied()
        edit(self.data / f"{name}.h5ad", change)
        return fields

    def damaged(self, change: Callable[[bytes], bytes]) -> dict:
        """As `copied`, the bytes of one file changed."""
        return self.copied() | rewrite(self.data / "P1_S2.h5ad", change)

    def hest(self, change: Callable[[Path, Path], Any] = lambda *_: None) -> dict:
        """HEST-bench's layout; `change` gets the task's folder and that of the embeddings."""
        sections = tiny.slides(3)
        genes = list(sections[0].genes[:8])
        task = write_task(self.data, "IDC", sections, genes, patches=False)
        write_embeddings(self.root / "embed", "IDC", "uni_v1", sections)
        change(task, self.root / "embed" / "IDC" / "uni_v1" / "fp32")
        return {
            "data__reader": "hest",
            "data__dir": str(self.data),
            "data__task": "IDC",
            "encoder__name": "uni_v1",
            "encoder__dir": str(self.root / "embed"),
        }

    def her2st(self, change: Callable[[Path], Any] = lambda _: None) -> dict:
        """her2st's layout with two sections of 36 spots and images."""
        for name in ("A1", "A2"):
            write_her2st(self.data, name)
        change(self.data)
        return {
            "data__reader": "her2st",
            "data__dir": str(self.data),
            "encoder__name": "stain_texture",
            "encoder__patch_um": 100.0,
        }

    def predict(self, change: Change = lambda _: None, **fields) -> dict:
        """The slide that was not trained on, changed, as input of --mode=predict."""
        given = self.root / "in.h5ad"
        shutil.copy(self.trained.unseen, given)
        edit(given, change)
        output = str(self.root / "out.h5ad")
        data = {"data__dir": str(self.trained.data)}
        return data | {"predict__input": str(given), "predict__output": output} | fields

    def retrained(self, change: Callable[[Path], Any], **fields) -> dict:
        """A copy of the finished experiment with something wrong in it."""
        shutil.copytree(self.trained.workdir, self.work)
        change(self.work)
        return self.predict(**fields)


def edit(path: Path, change: Change) -> None:
    """Changes an .h5ad file."""
    adata = anndata.read_h5ad(path)
    changed = change(adata)
    (changed if isinstance(changed, anndata.AnnData) else adata).write_h5ad(path)


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> dict:
    """Changes the bytes of a file; no fields."""
    path.write_bytes(change(path.read_bytes()))
    return {}


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def empty(_: bytes) -> bytes:
    return b""


def noise(_: bytes) -> bytes:
    return b"no such thing\n\0\1" * 40


def set_feature(value: float) -> Change:
    def change(adata):
        adata.obsm["features"][3, 2] = value

    return change


def narrower(adata):
    adata.obsm["features"] = adata.obsm["features"][:, :5]


def without_features(adata):
    del adata.obsm["features"]


def other_encoder(adata):
    adata.uns["encoder"] = "uni_v1"


def first_spots(number: int) -> Change:
    return lambda adata: adata[:number].copy()


def write_her2st(root: Path, name: str) -> None:
    """A section of 36 spots in her2st's layout."""
    side, pitch = 6, 20
    y, x = np.divmod(np.arange(side * side), side)
    barcodes = [f"{i}x{j}" for i, j in zip(x, y, strict=True)]
    rng = np.random.default_rng(list(name.encode()))
    counts = pd.DataFrame(rng.poisson(3.0, (side**2, 12)), barcodes, [f"G{i}" for i in range(12)])
    spots = {"x": x, "y": y, "new_x": x, "new_y": y}
    pixels = {"pixel_x": pitch * (x + 1), "pixel_y": pitch * (y + 1), "selected": 1}
    for folder in ("ST-cnts", "ST-spotfiles", "ST-imgs"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    counts.to_csv(root / "ST-cnts" / f"{name}.tsv.gz", sep="\t")
    spots = pd.DataFrame(spots | pixels)
    spots.to_csv(root / "ST-spotfiles" / f"{name}_selection.tsv", sep="\t", index=False)
    picture = rng.integers(0, 255, (160, 160, 3), dtype=np.uint8)
    Image.fromarray(picture).save(root / "ST-imgs" / f"{name}.jpg")
