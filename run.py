"""Trains, scores and applies a method: parses flags and dispatches; the logic is in stfm_jax.

python run.py --config=configs/NAME.py --workdir=W [--mode=train|eval|predict|embed]
    [--config.FIELD=VALUE ...]
"""

import os
import re
import sys

from absl import app, flags
from ml_collections import config_flags

from stfm_jax import cli
from stfm_jax.runtime import distributed
from stfm_jax.runtime.compilation import enable_cache

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything of the experiment is written.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes (README).")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0; else detected.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many; else detected.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which this is; else detected.")
_START_TIMEOUT = flags.DEFINE_integer("start_timeout", 300, "Seconds to wait for the others.")
_MODE = flags.DEFINE_enum("mode", "train", cli.MODES, "What to do.")


def _refuse(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _parse(argv: list[str]) -> list[str]:
    """Flag and config mistakes end with one message and exit code 2, which absl's own do not."""
    try:
        rest = flags.FLAGS(argv)
        for flag in (_CONFIG, _WORKDIR):
            if flag.value is None:
                _refuse(f"--{flag.name} is required; {__doc__.splitlines()[2].strip()}")
        _ = _CONFIG.value.seed  # a config file that is missing says so at its first use only
    except flags.Error as error:
        _refuse(str(error).splitlines()[0])
    except Exception as error:  # whatever the config file's own Python raises
        _refuse(_config_message(argv, error))
    if len(rest) > 1:
        _refuse(f"unexpected argument {rest[1]!r}; flags look like --config.FIELD=VALUE.")
    return rest


def _config_path(argv: list[str]) -> str:
    """What was given as --config=PATH or --config PATH, the last time it was."""
    path = "--config"
    for i, argument in enumerate(argv):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            path = value if equals else "".join(argv[i + 1 : i + 2])
    return path


def _config_message(argv: list[str], error: Exception) -> str:
    """Says that there is no config, which field it lacks, or what went wrong in its file."""
    path = _config_path(argv)
    if not os.path.isfile(path.split(":")[0]):
        return f"{path}: expected a config file there, found none; see configs/."
    if isinstance(error, KeyError | AttributeError):
        absent = re.search(r"\w+", str(error))
        hint = re.search(r'Did you mean "\w+"', str(error))
        for argument in argv:
            field, _, value = argument.lstrip("-").partition("=")
            if field == "config.method":
                return (
                    "--config.method: is gone; --config.methods names the rows of the table, as in "
                    f"--config.methods=ridge,{value or 'stflow'}, and the last of them predicts."
                )
            if field.startswith("config.") and absent and absent.group() in field.split("."):
                hint = f"{hint.group()}?" if hint else "configs/base.py lists them all."
                return f"--{field}: the config has no such field. {hint}"
    reason = " ".join(str(error).split())
    return f"{path}: this config fails with {type(error).__name__}: {reason}"


def _run() -> None:
    enable_cache()
    if _DISTRIBUTED.value:
        distributed.start(
            _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _START_TIMEOUT.value
        )
    cli.run(_CONFIG.value, _WORKDIR.value, _MODE.value)


def main(_: list[str]) -> int:
    return distributed.leave(cli.guarded(_run))


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
