"""Which seeds a config asks for."""

from __future__ import annotations

from typing import Any

from stfm_jax.errors import InputError

MOST = 1 << 32  # scikit-learn takes no larger ones


def seeds_of(config: Any) -> tuple[int, ...]:
    """Seeds that every fold is run with: `config.seeds`, or `config.seed` where there are none.

    Raises:
      InputError: they are no seeds, or one is there twice.
    """
    field, seeds = ("seeds", tuple(config.seeds)) if config.seeds else ("seed", (config.seed,))
    wrong = [seed for seed in seeds if type(seed) is not int or not 0 <= seed < MOST]
    if wrong:
        raise InputError(
            f"config.{field} must be of whole numbers from 0 to {MOST - 1}, found {wrong[0]!r}; "
            "several are written as in --config.seeds=0,1,2."
        )
    if len(set(seeds)) < len(seeds):
        raise InputError(f"config.seeds must differ, found {', '.join(map(str, seeds))}.")
    return seeds


def with_first(config: Any) -> Any:
    """A copy of the config whose `seed` is the first of its seeds, with which it predicts.

    Raises:
      InputError: see `seeds_of`; or `seed` and `seeds` ask for different ones.
    """
    made, first = config.copy_and_resolve_references(), seeds_of(config)[0]
    if config.seed not in (0, first):  # 0: as it was never set
        raise InputError(
            f"config.seed is {config.seed}, but the first of config.seeds is {first}, and that one "
            f"predicts; set --config.seeds={config.seed} for {config.seed} alone."
        )
    with made.unlocked():
        made.seed = first
    return made
