"""The command line: parses flags, answers help and mistakes at once, and dispatches.

    python run.py --config=NAME_OR_FILE --workdir=W [--mode=train|eval|predict|embed|export]
        [--config.FIELD=VALUE ...]

Without --config it is the one that the workdir holds. `python -m stfm_jax` is the same where the
library is installed. What takes time to import is imported when there is something to do.
"""

from __future__ import annotations

import os
import re
import sys
from difflib import get_close_matches

from absl import app, flags
from ml_collections import config_flags

from stfm_jax import builtin
from stfm_jax.errors import InputError
from stfm_jax.modes import MODES
from stfm_jax.runtime import pages

USAGE = (
    "python run.py --config=NAME_OR_FILE --workdir=W "
    f"[--mode={'|'.join(MODES)}] [--config.FIELD=VALUE ...]"
)
OFTEN_CHANGED = {
    "methods": "rows of the table, as in ridge,stflow; the last one predicts",
    "data.dir": "where the data set lies",
    "data.normalization": "log1p | log1p_cp10k",
    "seeds": "every fold once for each, as in 0,1,2; the first one's model predicts",
    "fold": "one fold only",
    "train.epochs": "at most",
    "encoder.name": "stain_texture | efficientnet_lite0 | precomputed | a name of HEST's, ...",
    "encoder.weights": "folder of a downloaded encoder, which encoder.name names",
    "predict.input": "the file to predict",
    "predict.output": "the .h5ad file to write",
    "predict.method": "which method predicts",
}

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything of the experiment is written.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0; else detected.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many; else detected.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which this is; else detected.")
_START_TIMEOUT = flags.DEFINE_integer("start_timeout", 300, "Seconds to wait for the others.")
_MODE = flags.DEFINE_enum("mode", "train", list(MODES), "What to do.")


def help_text() -> str:
    """Modes, built-in configs and the fields that people change."""

    def table(rows: dict[str, str]) -> list[str]:
        width = max(map(len, rows))
        return [f"  {name:<{width}}  {said}" for name, said in rows.items()]

    configs = {name: builtin.line_of(name) for name in builtin.names()}
    return "\n".join(
        [
            f"usage: {USAGE}",
            "\nmodes:",
            *table(MODES),
            "\nbuilt-in configs (--config=NAME, or a file of your own):",
            *table(configs),
            "\nfields that are often changed (--config.FIELD=VALUE); all of them: "
            f"{builtin.folder() / 'base.py'}",
            *table(OFTEN_CHANGED),
        ]
    )


def _refuse(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def parse(argv: list[str]) -> list[str]:
    """Flags of a command; mistakes end with one message and exit code 2, which absl's do not."""
    if any(argument in ("-h", "-help", "--help", "--helpfull") for argument in argv[1:]):
        print(help_text())
        sys.exit(0)
    builtin.make_importable()
    try:
        argv = [argv[0], *_with_paths(_with_config(argv[1:]))]
        rest = flags.FLAGS(argv)
        for flag in (_CONFIG, _WORKDIR):
            if flag.value is None:
                _refuse(f"--{flag.name} is required; {USAGE}, or --help.")
        _ = _CONFIG.value.seed  # a config file that is missing says so at its first use only
    except (flags.Error, InputError) as error:
        _refuse(_flag_message(error))
    except Exception as error:  # whatever the config file's own Python raises
        _refuse(_config_message(argv, error))
    if len(rest) > 1:
        _refuse(f"unexpected argument {rest[1]!r}; flags look like --config.FIELD=VALUE.")
    return rest


def _with_config(arguments: list[str]) -> list[str]:
    """The arguments; where none of them is --config, with that of the workdir, if it holds one."""
    workdir = os.path.expanduser(_value(arguments, "workdir"))
    held = os.path.isfile(os.path.join(workdir, "config.json"))
    if _value(arguments, "config") or not held:
        return arguments
    reads = os.path.join(os.path.dirname(__file__), "stored_config.py")
    return [f"--config={reads}:{workdir}", *arguments]


def _with_paths(arguments: list[str]) -> list[str]:
    """The arguments with the path of a built-in config for its name, as in `demo` or `hest:IDC`."""
    out, named = [], False  # whether the argument before was --config alone
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if equals and flag in ("--config", "-config"):
            argument = f"{flag}={_with_path(value)}"
        elif named:
            argument = _with_path(argument)
        named = argument in ("--config", "-config")
        out.append(argument)
    return out


def _with_path(given: str) -> str:
    given = os.path.expanduser(given)
    name, colon, rest = given.partition(":")
    if not re.fullmatch(r"\w+", name) or os.path.isfile(name):
        return given
    return f"{builtin.path_of(name)}{colon}{rest}"


def _flag_message(error: Exception) -> str:
    """What is wrong with a flag; of a config that a file holds what is wrong with that."""
    lines = str(error).strip().splitlines()
    _, raised, said = lines[-1].partition(f"{InputError.__module__}.{InputError.__name__}: ")
    return said if raised else lines[0]


def _value(argv: list[str], flag: str) -> str:
    """What was given as --flag=VALUE or --flag VALUE, the last time it was; "" if never."""
    found = ""
    for i, argument in enumerate(argv):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == flag:
            found = value if equals else "".join(argv[i + 1 : i + 2])
    return found


def _config_message(argv: list[str], error: Exception) -> str:
    """Says that there is no config, which field it lacks, or what went wrong in its file."""
    path = _value(argv, "config") or "--config"
    if not os.path.isfile(path.split(":")[0]):
        return f"{path}: expected a config file there, found none; see configs/, or --help."
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
                said = f"{hint.group()}?" if hint else _nearest(field.removeprefix("config."))
                return f"--{field}: the config has no such field. {said}"
    reason = " ".join(str(error).split())
    return f"{path}: this config fails with {type(error).__name__}: {reason}"


def _nearest(field: str) -> str:
    """The field of configs/base.py that is most like one that is none."""
    known = [name for name, _ in _fields(builtin.get_config("base"))]
    by_leaf = [name for name in known if name.split(".")[-1] == field.split(".")[-1]]
    near = by_leaf or get_close_matches(field, known, 1, 0.75)
    return f"Did you mean {' or '.join(near)}?" if near else "configs/base.py lists them all."


def _fields(section, prefix: str = ""):
    for name, value in section.items():
        if hasattr(value, "items"):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _run() -> None:
    from stfm_jax import cli
    from stfm_jax.runtime import distributed
    from stfm_jax.runtime.compilation import enable_cache

    enable_cache()
    if _DISTRIBUTED.value:
        distributed.start(
            _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _START_TIMEOUT.value
        )
    cli.run(_CONFIG.value, _WORKDIR.value, _MODE.value)


def _dispatch(_: list[str]) -> int:
    from stfm_jax import cli
    from stfm_jax.runtime import distributed

    return distributed.leave(cli.guarded(_run))


def main() -> None:
    """The command's entry: `python run.py`, `python -m stfm_jax`."""
    pages.start_again()
    app.run(_dispatch, flags_parser=parse)
