"""Two models that were fitted once, and what they make of a plain file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import anndata
import numpy as np
import pytest
import tiny
from odd import METHOD, Model, predicted, write_pictured


@pytest.fixture(scope="session")
def closed(tmp_path_factory) -> Model:
    """Of slides with features in their files; the slide to predict is in pixels, and has counts."""
    root = tmp_path_factory.mktemp("closed")
    sections = tiny.slides()
    tiny.write(root / "data", sections[:3])
    last = sections[3]
    pixels = dataclasses.replace(last, coords_in=last.coords_um / 0.5, spatial_unit="pixel")
    tiny.write(root / "plain", [pixels])
    fields = {"data__dir": str(root / "data"), "methods": (METHOD,)}
    return _fitted(root, fields, root / "plain" / f"{last.name}.h5ad")


@pytest.fixture(scope="session")
def pictured(tmp_path_factory) -> Model:
    """Of slides with images, in her2st's layout; the slide to predict is an .h5ad and a PNG."""
    root = tmp_path_factory.mktemp("pictured")
    fields = write_pictured(root / "data", ("A1", "A2", "A3")) | {"methods": (METHOD,)}
    slide, image = root / "data" / "A3.h5ad", root / "data" / "A3.png"
    return _fitted(root, fields, slide, predict__image=str(image))


def _fitted(root: Path, fields: dict, slide: Path, **given) -> Model:
    assert tiny.run(tiny.config(**fields), root / "work") == 0
    bare = Model(fields, root / "work", slide, given, anndata.AnnData(np.zeros((0, 0))))
    made = predicted(bare, root / "plain.h5ad", predict__input=str(slide), **given)
    return dataclasses.replace(bare, plain=made)
