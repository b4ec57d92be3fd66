"""The mesh of devices that share the rows of a batch, and putting arrays on it."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stfm_jax.errors import InputError
from stfm_jax.ops.tiles import AXIS
from stfm_jax.runtime import distributed
from stfm_jax.runtime.memory import available_memory

PyTree = Any
SHARDED, WHOLE = PartitionSpec(AXIS), PartitionSpec()  # by the leading axis; on every device
SHARDED_DRAWS = PartitionSpec(None, AXIS)  # by the axis after that of the draws


def make_mesh(count: int = 0) -> Mesh:
    """A line of devices, of all processes that share the work (`runtime.distributed`).

    Args:
      count: how many, as many of each process; 0: all there are.

    Raises:
      InputError: there are not so many, or they cannot be divided among the processes.
    """
    shared = distributed.several()
    devices, processes = (
        (jax.devices(), jax.process_count()) if shared else (jax.local_devices(), 1)
    )
    if count > len(devices):
        kind = devices[0].platform
        hint = (
            f" A CPU can be split by XLA_FLAGS=--xla_force_host_platform_device_count={count}."
            if kind == "cpu"
            else ""
        )
        raise InputError(
            f"config.devices asks for {count} devices, found {len(devices)} ({kind}); ask for at "
            f"most {len(devices)}, or 0 for all.{hint}"
        )
    if count % processes:
        raise InputError(
            f"config.devices must be a multiple of the {processes} processes, found {count}."
        )
    of_process = np.array(devices).reshape(processes, -1)
    return Mesh(of_process[:, : count // processes or None].ravel(), (AXIS,))


def memory_of_computations() -> int:
    """Bytes that arrays may still take where computations are done: an accelerator, or the host."""
    found = jax.local_devices()[0].memory_stats() or {}  # of CPUs there are none
    if "bytes_limit" not in found:
        return available_memory()
    return found["bytes_limit"] - found["bytes_in_use"]


def shard(mesh: Mesh, tree: PyTree) -> PyTree:
    """Arrays of the host, cut along their leading axes over the devices."""
    return _put(NamedSharding(mesh, SHARDED), tree)


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """Arrays of the host, the same in every process, on every device."""
    return _put(NamedSharding(mesh, WHOLE), tree)


def _put(sharding: NamedSharding, tree: PyTree) -> PyTree:
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(a):
        a = np.asarray(a)
        return jax.make_array_from_callback(a.shape, sharding, lambda index: a[index])

    return jax.tree.map(put, tree)


def fetch(tree: PyTree) -> PyTree:
    """Arrays of the devices on the host; whole in every process."""

    def get(a):
        if not isinstance(a, jax.Array) or a.is_fully_addressable or a.is_fully_replicated:
            return np.asarray(a)
        return multihost_utils.process_allgather(a, tiled=True)

    return jax.tree.map(get, tree)
