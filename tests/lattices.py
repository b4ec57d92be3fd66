"""Points of the two lattices that spots lie on, for tests."""

import numpy as np

STEPS = {  # [2, 2] micrometres, a row for each step
    "square": np.array([[200.0, 0.0], [0.0, 200.0]]),
    "hex": np.array([[100.0, 0.0], [50.0, 50.0 * np.sqrt(3)]]),
}


def points(side: int, lost: float, rng: np.random.Generator) -> np.ndarray:
    """Integer points [n, 2] of a patch of `side` x `side`, some of them lost."""
    index = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
    return index[rng.uniform(size=len(index)) >= lost]
