"""Odd files: a prediction from one is that from the plain file, or one `error:` line.

The tables are in odd_files/test_*.py.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anndata
import bad_input
import numpy as np
import pandas as pd
import tiny
from PIL import Image

METHOD = "ridge"
SIDE, PITCH = 6, 40  # spots on a side; pixels between them
Make = Callable[["Place"], dict]


@dataclasses.dataclass(frozen=True)
class Model:
    """A fitted method, a plain file, and its prediction."""

    fields: dict  # of the config it was trained with
    work: Path
    slide: Path
    given: dict  # fields that predict the plain file
    plain: anndata.AnnData

    @property
    def image(self) -> Path:
        return Path(self.given["predict__image"])


@dataclasses.dataclass(frozen=True)
class Place:
    """An empty folder for one case."""

    root: Path
    model: Model

    def slide(self, change: Callable[[anndata.AnnData], Any] = lambda _: None, **fields) -> dict:
        """The plain file changed; fields that predict it."""
        path = self.root / "in.h5ad"
        shutil.copy(self.model.slide, path)
        bad_input.edit(path, change)
        return self.model.given | {"predict__input": str(path)} | fields


def predicted(model: Model, output: Path, **fields) -> anndata.AnnData:
    """What the command line writes."""
    assert run(model, output, **fields) == 0
    return anndata.read_h5ad(output)


def run(model: Model, output: Path, **fields) -> int:
    """Exit code of `--mode=predict`; pictures are left out."""
    fields = {"predict__maps": False, "predict__report": False, **model.fields, **fields}
    config = tiny.config(predict__output=str(output), **fields)
    return tiny.run(config, model.work, "predict")


def check_same(model: Model, folder: Path, capfd, make: Make, words: Sequence[str], spots=None):
    """A file is predicted as the plain one is, or as these of its spots, and these words are said.

    Args:
      model: fitted.
      folder: an empty one.
      capfd: the fixture.
      make: the file.
      words: that must be said.
      spots: of the plain file; all, or those that this gives of their number.
    """
    place = Place(folder, model)
    plain = model.plain
    if spots is not None:
        fields = place.slide(lambda adata: adata[spots(adata.n_obs)].copy())
        plain = predicted(model, folder / "plain.h5ad", **fields)
    fields = make(place)
    capfd.readouterr()
    found = predicted(model, folder / "out.h5ad", **fields)
    said = capfd.readouterr().err
    for word in words:
        assert word in said, f"{word!r} is not in: {said}"
    assert found.shape == plain.shape
    assert list(found.var_names) == list(plain.var_names)
    np.testing.assert_allclose(found.X, plain.X, atol=1e-6)


def check_refused(model: Model, folder: Path, capfd, make: Make, words: Sequence[str]):
    """A file is refused with one message that has these words, and nothing is written."""
    fields = make(Place(folder, model))
    before = tiny.contents(folder)
    capfd.readouterr()
    assert run(model, folder / "out.h5ad", **fields) == 2
    bad_input.assert_message(capfd.readouterr().err, list(words))
    assert tiny.contents(folder) == before, "something was written"


def write_pictured(root: Path, names: Sequence[str]) -> dict:
    """Sections in her2st's layout with stained images; the last also as an .h5ad and a PNG.

    Returns fields of a config that trains on them.
    """
    rng = np.random.default_rng(3)
    y, x = np.divmod(np.arange(SIDE * SIDE), SIDE)
    pixels = PITCH * np.column_stack([x + 1, y + 1])
    for folder in ("ST-cnts", "ST-spotfiles", "ST-imgs"):
        (root / folder).mkdir(parents=True)
    for name in names:
        picture, depth = stained(rng)
        counts = rng.poisson(2 + 20 * depth[pixels[:, 1], pixels[:, 0]][:, None], (SIDE**2, 12))
        table = pd.DataFrame(counts, [f"{i}x{j}" for i, j in zip(x, y, strict=True)])
        table.columns = [f"G{i}" for i in range(12)]
        table.to_csv(root / "ST-cnts" / f"{name}.tsv.gz", sep="\t")
        spots = {"x": x, "y": y, "new_x": x, "new_y": y, "pixel_x": pixels[:, 0]}
        spots |= {"pixel_y": pixels[:, 1], "selected": 1}
        selection = root / "ST-spotfiles" / f"{name}_selection.tsv"
        pd.DataFrame(spots).to_csv(selection, sep="\t", index=False)
        Image.fromarray(picture).save(root / "ST-imgs" / f"{name}.png")
    adata = anndata.AnnData(table, obsm={"spatial": pixels.astype(float)})
    adata.X = adata.X.astype(np.float32)
    adata.uns |= {"spatial_unit": "pixel", "um_per_px": 5.0}
    adata.write_h5ad(root / f"{name}.h5ad")
    Image.fromarray(picture).save(root / f"{name}.png")
    return {
        "data__reader": "her2st",
        "data__dir": str(root),
        "encoder__name": "stain_texture",
        "encoder__patch_um": 200.0,
    }


def stained(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Tissue [h, w, 3] uint8 that fills an image but for its edge, and how deep its stain is."""
    side = PITCH * (SIDE + 1)
    rough = rng.random((8, 8))
    depth = np.asarray(Image.fromarray(rough.astype(np.float32)).resize((side, side), 3))
    depth = np.clip(depth + 0.1 * rng.normal(size=depth.shape), 0, 1)
    depth = np.where(depth < 0.05, 0.05, depth)
    inside = np.pad(np.ones((side - 20, side - 20)), 10)
    colours = 255 - (inside * (0.3 + depth))[..., None] * np.array([60.0, 120.0, 50.0])
    return np.clip(np.round(colours), 0, 255).astype(np.uint8), depth * inside
