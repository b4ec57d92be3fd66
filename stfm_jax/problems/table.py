"""The problems by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stfm_jax.errors import InputError
from stfm_jax.models.method import EXPRESSION, SPLIT, Method
from stfm_jax.problems.expression import Expression
from stfm_jax.problems.problem import Problem
from stfm_jax.problems.split import SplitProblem

PROBLEMS = {EXPRESSION: Expression, SPLIT: SplitProblem}


def problem_of(config: Any, methods: Sequence[Method]) -> Problem:
    """The one problem that methods are for.

    Raises:
      InputError: no method is named, they are of several problems, or a setting may not be.
    """
    found = {method.name: method.problem for method in methods}
    if len(set(found.values())) != 1:
        said = ", ".join(f"{name} ({problem})" for name, problem in found.items()) or "none"
        raise InputError(f"config.methods must be of one problem, found {said}.")
    problem = PROBLEMS[methods[0].problem](config, tuple(methods))
    _ = problem.settings  # checks itself
    return problem
