"""The config that a workdir holds, as a config file: taken where the command names none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stfm_jax import workdir as workdirs


def get_config(workdir: str) -> Any:
    """The workdir's config.

    Raises:
      InputError: there is no experiment, or its config is damaged.
    """
    return workdirs.read_config(Path(workdir))
