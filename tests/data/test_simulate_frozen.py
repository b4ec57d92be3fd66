"""A simulated data set is named by its parameters and seeds, as a file is by its name.

The figures that docs/ tells of such tissue are of what is drawn today. Where it is to change, the
figures below and those in docs/ change with it: `python tests/data/test_simulate_frozen.py` prints
the former.
"""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest

from stfm_jax.data import simulate
from stfm_jax.data.simulate import TissueParams
from stfm_jax.data.simulate_params import DIALS
from stfm_jax.data.simulate_tissue import CELL_TYPES

FIGURES = Path(__file__).with_suffix(".json")
PLAIN = TissueParams(num_sections=1, spots=400, num_genes=12)
MOVED = {"rotation_deg": 180.0, "shift_um": 300.0, "flip": 0.5, "jitter_um": 4.0, "lost": 0.1}
VOLUMES = {
    "square": (PLAIN, 0),
    "hex, of a stranger, moved": (
        dataclasses.replace(PLAIN, lattice="hex", **MOVED, **dict.fromkeys(DIALS, 1.0)),
        1,
    ),
    "bins": (dataclasses.replace(PLAIN, lattice="bins", um_per_px=0.5), 2),
    "random": (dataclasses.replace(PLAIN, lattice="random", mean_count=0.7, pitch_um=60.0), 3),
}


@functools.cache
def volume(name: str) -> simulate.Volume:
    return simulate.volume(*VOLUMES[name])


def image(name: str) -> dict[str, list[float]]:
    """Mean, spread and grain of each colour, where the cells of each type are densest, and of a
    piece that reaches over the tissue's border."""
    slide, truth = volume(name).slides[0], volume(name).truth[0]
    places = {cell.name: int(truth.mixtures[:, i].argmax()) for i, cell in enumerate(CELL_TYPES)}
    if name != "square":  # tiles are dear
        places = {"tumour": places["tumour"]}
    places["border"] = int(slide.coords_um[:, 0].argmin())
    found = {}
    for what, spot in places.items():
        patch = slide.patches.read([spot], 90.0 if what != "border" else 200.0)[0].astype(float)
        grain = [np.abs(np.diff(patch, axis=axis)).mean(axis=(0, 1)) for axis in (0, 1)]
        found[what] = np.concatenate([patch.mean(axis=(0, 1)), patch.std(axis=(0, 1)), *grain])
    return {what: np.round(values, 2).tolist() for what, values in found.items()}


def tissue(name: str) -> dict[str, list[float]]:
    """Means and spreads of what a section is made from, and of what was measured of it."""
    slide, truth = volume(name).slides[0], volume(name).truth[0]
    parts = {
        "coords_um": slide.coords_um, "points_um": truth.points_um, "domains": truth.domains,
        "mixtures": truth.mixtures, "programs": truth.programs, "depth": truth.depth[:, None],
        "mean": truth.mean, "rates": simulate.tissue_rates(volume(name), 0),
        "counts": slide.counts.toarray(),
    }  # fmt: skip
    return {
        what: [float(f"{v:.5g}") for v in np.concatenate([a.mean(axis=0), a.std(axis=0)])]
        for what, a in parts.items()
    }


@pytest.fixture(scope="module", params=VOLUMES)
def name(request) -> str:
    """Of a volume, made once for the tests that ask for it (benchmarks/mutants.py sees which)."""
    volume(request.param)
    return request.param


@pytest.fixture(scope="module")
def figures() -> dict:
    return json.loads(FIGURES.read_text())


def test_sections_are_those_of_the_figures(figures, name):
    found = tissue(name)
    assert set(found) == set(figures[name]["tissue"])
    for what, expected in figures[name]["tissue"].items():
        loose = 0.05 if what == "counts" else 1e-3
        np.testing.assert_allclose(found[what], expected, rtol=loose, atol=loose / 10, err_msg=what)


def test_images_are_those_of_the_figures(figures, name):
    found = image(name)
    assert set(found) == set(figures[name]["image"])
    for what, expected in figures[name]["image"].items():
        np.testing.assert_allclose(found[what], expected, atol=0.06, err_msg=what)


if __name__ == "__main__":
    print(json.dumps({n: {"tissue": tissue(n), "image": image(n)} for n in VOLUMES}))
