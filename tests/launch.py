"""`run.py` as one of several processes on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import tiny

TWO_DEVICES = "--xla_force_host_platform_device_count=2"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start(*argv: str, xla: str = TWO_DEVICES) -> subprocess.Popen:
    """`python run.py ARGV` on devices of its own."""
    return subprocess.Popen(
        [sys.executable, "run.py", *argv],
        cwd=tiny.REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla},
    )


def start_two(*argv: str) -> list[subprocess.Popen]:
    """Two processes of two devices each that work together."""
    flags = ("--distributed", f"--coordinator=localhost:{free_port()}", "--num_processes=2")
    return [start(*argv, *flags, f"--process_id={i}") for i in range(2)]


def ended(process: subprocess.Popen, timeout: float = 300) -> tuple[int, str]:
    """Exit code, and what it said."""
    try:
        return process.wait(timeout), process.stderr.read()
    finally:
        process.kill()
