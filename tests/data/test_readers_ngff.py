"""Where elements lie: transformations of NGFF as matrices, by hand."""

import numpy as np
import pytest

from stfm_jax.data.readers.ngff import systems
from stfm_jax.errors import InputError


def step(kind, output="V", axes=None, **values):
    side = {"axes": [{"name": axis} for axis in axes]} if axes else {}
    return {"type": kind, "input": side, "output": {**side, "name": output}, **values}


def matrix(*steps, axes="xy"):
    return systems(steps, axes, "a.zarr")["V"]


def test_kinds_of_steps():
    np.testing.assert_array_equal(matrix(step("identity")), np.eye(3))
    np.testing.assert_array_equal(matrix(step("scale", scale=[2, 3])), np.diag([2, 3, 1]))
    moved = matrix(step("translation", translation=[5, 7]))
    np.testing.assert_array_equal(moved, [[1, 0, 5], [0, 1, 7], [0, 0, 1]])
    turned = matrix(step("affine", affine=[[0, -1, 4], [1, 0, 6], [0, 0, 1]]))
    np.testing.assert_array_equal(turned, [[0, -1, 4], [1, 0, 6], [0, 0, 1]])


def test_other_axes_are_left_out_and_these_are_taken_by_name():
    """As images have them: channel, y, x."""
    for axes, said in (("cyx", None), ("xy", "cyx")):
        scaled = matrix(step("scale", axes=said, scale=[9, 3, 2]), axes=axes)
        np.testing.assert_array_equal(scaled, np.diag([2, 3, 1]))
        values = [[1, 0, 0, 0], [0, 0.5, 2, 6], [0, 3, 4, 5], [0, 0, 0, 1]]
        found = matrix(step("affine", axes=said, affine=values), axes=axes)
        np.testing.assert_array_equal(found, [[4, 3, 5], [2, 0.5, 6], [0, 0, 1]])


def test_a_sequence_is_one_after_the_other():
    parts = [step("scale", scale=[2, 2]), step("translation", translation=[1, 0])]
    found = matrix(step("sequence", transformations=parts))
    np.testing.assert_array_equal(found @ [10, 10, 1], [21, 20, 1])
    found = matrix(step("sequence", transformations=parts[::-1]))
    np.testing.assert_array_equal(found @ [10, 10, 1], [22, 20, 1])


def test_steps_that_lead_nowhere_by_name_are_none():
    """As those of multiscales, whose output is none, or has axes alone."""
    steps = [
        {"type": "scale", "scale": [1, 1]},
        {"type": "identity", "output": {"axes": []}},
        {"type": "identity", "output": "name"},
        step("scale", "W", scale=[4, 4]),
    ]
    assert list(systems(steps, "xy", "a.zarr")) == ["W"]


def test_other_kinds_are_named():
    with pytest.raises(InputError, match=r"a\.zarr: .* and sequence, found 'rotation'"):
        matrix(step("rotation"))
