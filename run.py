"""Trains, scores and applies a method: parses flags and dispatches; the logic is in stfm_jax.

python run.py --config=configs/NAME.py --workdir=W [--mode=train|eval|predict|embed]
    [--config.FIELD=VALUE ...]
"""

import os
import sys

from absl import app, flags
from ml_collections import config_flags

from stfm_jax import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything of the experiment is written.")
_MODE = flags.DEFINE_enum("mode", "train", cli.MODES, "What to do.")


def _refuse(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _parse(argv: list[str]) -> list[str]:
    """Flag and config mistakes end with one message and exit code 2, which absl's own do not."""
    given = [a.split("=", 1)[1] for a in argv if a.startswith(("--config=", "-config="))]
    if given and not os.path.isfile(given[-1].split(":")[0]):
        _refuse(f"{given[-1]}: expected a config file there, found none; see configs/.")
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        _refuse(f"{error}".splitlines()[0] if str(error) else repr(error))
    if len(rest) > 1:
        _refuse(f"unexpected argument {rest[1]!r}; flags look like --config.FIELD=VALUE.")
    for flag in (_CONFIG, _WORKDIR):
        if flag.value is None:
            _refuse(f"--{flag.name} is required; {__doc__.splitlines()[2].strip()}")
    return rest


def main(_: list[str]) -> int:
    return cli.guarded(lambda: cli.run(_CONFIG.value, _WORKDIR.value, _MODE.value))


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
