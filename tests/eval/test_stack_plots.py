"""Pictures of a stack: what is on them."""

import numpy as np
import pytest

from stfm_jax.eval.stack_plots import registration_overlay


@pytest.mark.parametrize("num", [2, 5, 9])
def test_overlay_has_both_frames_and_every_pair_of_neighbours(num):
    ticks = 200.0 * np.arange(6)
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    names = [f"S{i}" for i in range(num)]
    before = [grid + 900.0 * i for i in range(num)]
    captions = [f"residual {i} um" for i in range(num - 1)]
    figure = registration_overlay(names, before, [grid] * num, captions, title="stack")
    before_ax, after_ax, *pairs = figure.axes
    assert (before_ax.get_title(), after_ax.get_title()) == ("before", "after")
    assert [ax.get_xlabel() for ax in pairs] == captions
    assert all(a in ax.get_title() for a, ax in zip(names[1:], pairs, strict=True))
    assert len(before_ax.collections) == len(after_ax.collections) == num
    low, high = np.sort(before_ax.get_ylim())
    assert low < 0 and high > 900 * (num - 1) + 1000
    figure.canvas.draw()
