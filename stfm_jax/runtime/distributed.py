"""Several processes that run the same command, each with devices of its own.

All of them read the data and take the same steps; the rows of every batch are shared by all
devices. What is written is the main process's (`runtime.files`), so they need one file system.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
import threading
import time
import zlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from stfm_jax.errors import InputError

_LOG = logging.getLogger("stfm_jax")
_ALONE = threading.Event()
_HEARTBEAT = 60  # seconds without a sign of life after which a process counts as dead
_GRACE = 30  # seconds that JAX would wait longer than we: its own end is a stack trace


def start(
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = 300,
) -> None:
    """Joins the other processes, before anything is computed.

    Args:
      coordinator: `host:port` of process 0; "" as SLURM, a TPU pod, Kubernetes or MPI say.
      num_processes: how many; None as above.
      process_id: which of them this is; None as above.
      timeout: seconds to wait for the others; then the process ends with 2 and a message.

    Raises:
      InputError: settings are missing or contradict one another, or processes have different
        numbers of devices.
    """
    faulthandler.disable()  # where process 0 dies, JAX aborts the others with a reason: enough
    given = (coordinator, num_processes, process_id)
    if any(given) and None in given:
        raise InputError(
            "--distributed: --coordinator=HOST:PORT, --num_processes and --process_id belong "
            f"together, found {coordinator!r}, {num_processes} and {process_id}; or give none of "
            "them under SLURM, on a TPU pod or under MPI."
        )
    if coordinator and not coordinator.rpartition(":")[2].isdigit():
        raise InputError(f"--coordinator must be HOST:PORT, found {coordinator!r}.")
    who = f"process {process_id} of {num_processes}" if coordinator else "this process"
    where = f"the coordinator {coordinator}" if process_id else "the other processes"
    with _deadline(
        timeout,
        f"{who} waited {timeout} s for {where}, which did not answer. Start all "
        f"processes with the same --coordinator and --num_processes, see that process 0 runs and "
        "that its port can be reached, or wait longer by --start_timeout.",
    ):
        try:
            jax.distributed.initialize(
                coordinator or None,
                num_processes,
                process_id,
                initialization_timeout=timeout + _GRACE,
                heartbeat_timeout_seconds=_HEARTBEAT,
            )
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            raise InputError(
                f"--distributed: {' '.join(str(error).split())} Outside SLURM, TPU pods and MPI "
                "give --coordinator=HOST:PORT, --num_processes and --process_id."
            ) from error
    _check_equal_devices()
    _LOG.info(
        "process %d of %d, %d of %d devices",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        jax.device_count(),
    )


def _check_equal_devices() -> None:
    each = np.bincount([d.process_index for d in jax.devices()], minlength=jax.process_count())
    if len(set(each)) > 1:
        raise InputError(
            "every process must have as many devices as every other, found "
            f"{', '.join(f'{n} on process {i}' for i, n in enumerate(each))}; set the same "
            "CUDA_VISIBLE_DEVICES, or the same --gpus-per-task, for all."
        )


@contextlib.contextmanager
def _deadline(seconds: float, message: str) -> Iterator[None]:
    """Ends the process if the block takes longer: it waits in code that cannot be interrupted."""

    def end():
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def is_main() -> bool:
    """Whether this process is the one that writes and reports."""
    return _ALONE.is_set() or jax.process_index() == 0


def several() -> bool:
    """Whether processes share the work; see `alone`."""
    return not _ALONE.is_set() and jax.process_count() > 1


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """While the block runs, every process does work of its own, with its own devices."""
    _ALONE.set()
    try:
        yield
    finally:
        _ALONE.clear()


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if several():
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def main_first(name: str) -> Iterator[None]:
    """The main process goes through the block before the others, which find what it wrote."""
    if not is_main():
        barrier(name)
    yield
    if is_main():
        barrier(name)


def of_main(value: float) -> float:
    """The main process's value, so that all decide alike."""
    if not several():
        return value
    return float(multihost_utils.broadcast_one_to_all(np.float64(value)))


def anywhere(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return bool(multihost_utils.process_allgather(np.bool_(flag)).any()) if several() else flag


def check_alike(what: str, text: str) -> None:
    """Raises InputError where processes were not given the same."""
    if not several():
        return
    digests = multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode())))
    differing = np.flatnonzero(digests != digests[0])
    if len(differing):
        raise InputError(
            f"{what} of process {', '.join(map(str, differing))} differ from those of process 0; "
            "start every process with the same command, versions and data."
        )


def leave(code: int) -> int:
    """Ends a process that failed without waiting for the others, which would wait for it."""
    if code and jax.distributed.is_initialized():
        sys.stderr.flush()
        time.sleep(1.0 if is_main() else 0.0)  # the others may be saying the same; it serves them
        os._exit(code)
    return code
