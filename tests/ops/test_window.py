"""Windows of a lattice: the spots that belong there, whatever its turn, order, gaps and jitter."""

import numpy as np
import pytest

from stfm_jax.ops.window import lattice_window

SIDE = 5
STEPS = {"square": [[100.0, 0.0], [0.0, 100.0]], "hex": [[100.0, 0.0], [50.0, 75.0 * 3**0.5]]}


def lattice(kind, rng, jitter=0.0, turn=0.3):
    """Places, each spot's index [n, 2] and the steps; a fifth of the spots is missing."""
    index = np.stack(np.meshgrid(np.arange(9), np.arange(7)), axis=-1).reshape(-1, 2)
    index = rng.permutation(index)[: 4 * len(index) // 5]
    cos, sin = np.cos(turn), np.sin(turn)
    steps = np.array(STEPS[kind]) @ np.array([[cos, sin], [-sin, cos]])
    return index @ steps + rng.uniform(-jitter, jitter, index.shape), index, steps


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("jitter", [0.0, 12.0])
def test_cells_hold_the_spots_of_the_lattice(kind, jitter):
    coords, index, steps = lattice(kind, np.random.default_rng(0), jitter)
    around, there = lattice_window(coords, steps, SIDE)
    spot_at = {tuple(cell): i for i, cell in enumerate(index)}
    offsets = [(a, b) for a in range(-2, 3) for b in range(-2, 3)]
    for i, cell in enumerate(index):
        expected = [spot_at.get((cell[0] + a, cell[1] + b), -1) for a, b in offsets]
        np.testing.assert_array_equal(np.where(there[i], around[i], -1), expected)
    assert not there.all() and (around[~there] == 0).all()


def test_scattered_spots_are_in_the_middle_of_their_own_windows():
    coords = np.random.default_rng(1).uniform(0.0, 1000.0, (80, 2))
    around, there = lattice_window(coords, np.array(STEPS["square"]), SIDE)
    np.testing.assert_array_equal(around[:, SIDE**2 // 2], np.arange(80))
    assert there[:, SIDE**2 // 2].all() and 0.2 < there.mean() < 1.0
