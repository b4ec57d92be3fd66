"""Solvers that carry a prior draw to data, as free functions.

A `denoiser` maps (x_t, t) to x_1_hat. Every step is one network evaluation; that is what is
counted and reported. The solver that treats the Gaussian part exactly is in `flow.gaussian`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from stfm_jax.flow.path import velocity

Denoiser = Callable[[jax.Array, jax.Array], jax.Array]  # (x_t [n, g], t scalar) -> x_1_hat


def euler(
    denoiser: Denoiser, x_0: jax.Array, times: jax.Array, scan: Callable = jax.lax.scan
) -> jax.Array:
    """Euler steps; the last one returns x_1_hat itself [STFlow].

    Args:
      denoiser: predicts the data.
      x_0: [n, g] prior draw.
      times: [S + 1] ascending from 0 to 1; S evaluations.
      scan: runs the steps: `jax.lax.scan`, or a loop on the host.

    Returns:
      [n, g] draw of x_1.
    """

    def step(x, interval):
        t, t_next = interval
        return x + (t_next - t) * velocity(denoiser(x, t), x, t), None

    x, _ = scan(step, x_0, (times[:-2], times[1:-1]))
    return denoiser(x, times[-2])


def host_scan(step: Callable, carry: jax.Array, intervals: tuple) -> tuple[jax.Array, None]:
    """`jax.lax.scan` of a solver's steps as a loop on the host, for a step that is itself one."""
    for interval in zip(*intervals, strict=True):
        carry, _ = step(carry, interval)
    return carry, None
