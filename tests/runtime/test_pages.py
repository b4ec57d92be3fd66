"""A program starts again once, with what glibc is told at the start."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import tiny

from stfm_jax.runtime import pages

CODE = """
import os, sys
from stfm_jax.runtime import pages
pages._given_to_who_asks = lambda: {given}
print("started", flush=True)
pages.start_again()
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[1:])
"""


def said(given: bool, tunables: str | None = None) -> list[str]:
    env = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    env |= {"PYTHONPATH": str(tiny.REPOSITORY)}
    if tunables is not None:
        env["GLIBC_TUNABLES"] = tunables
    code = CODE.format(given=given)
    command = [sys.executable, "-c", code, "--a", "b c"]
    return subprocess.run(
        command, capture_output=True, text=True, env=env, check=True
    ).stdout.splitlines()


OTHER = "glibc.malloc.check=0"


@pytest.mark.parametrize(
    ("given", "before", "starts", "after"),
    [
        (True, None, 2, "glibc.malloc.hugetlb=1"),
        (True, OTHER, 2, f"{OTHER}:glibc.malloc.hugetlb=1"),
        (True, "glibc.malloc.hugetlb=0", 1, "glibc.malloc.hugetlb=0"),
        (False, None, 1, None),
    ],
)
def test_it_starts_again_once_and_keeps_the_users_word(given, before, starts, after):
    *started, last = said(given, before)
    assert started == ["started"] * starts
    assert last == f"{after} ['--a', 'b c']"


@pytest.mark.parametrize(
    ("libc", "enabled", "given"),
    [
        ("glibc", "always [madvise] never", True),
        ("glibc", "[always] madvise never", False),
        ("glibc", None, False),
        ("", "always [madvise] never", False),
    ],
)
def test_where_it_is_of_use(monkeypatch, tmp_path, libc, enabled, given):
    monkeypatch.setattr(pages.platform, "libc_ver", lambda: (libc, ""))
    monkeypatch.setattr(pages, "_PAGES", tmp_path / "enabled")
    if enabled:
        (tmp_path / "enabled").write_text(enabled)
    assert pages._given_to_who_asks() is given
