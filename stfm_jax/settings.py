"""Settings: fields of the config with their choices and bounds, beside the code they are for.

A `Settings` is a frozen dataclass. Its fields are read from the section of the config that
it names, or from where a field says, and it checks itself when it is made: a wrong value ends with
a message that names the field as the command line does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from stfm_jax.errors import InputError


def setting(
    default: Any, *, at: str = "", one_of: Sequence[str] = (), least: float | None = None
) -> Any:
    """A dataclass field of a `Settings`.

    Args:
      default: the value in configs/base.py (a test compares them).
      at: where it stands in the config; empty: under its own name in the section.
      one_of: the values it may have.
      least: its smallest value.
    """
    metadata = {"at": at, "one_of": tuple(one_of), "least": least}
    return dataclasses.field(default=default, metadata=metadata)


def nested(settings: type[Settings]) -> Any:
    """A dataclass field of a `Settings` that holds another's, read from its own section."""
    return dataclasses.field(default_factory=settings, metadata={"nested": settings})


@dataclasses.dataclass(frozen=True)
class Settings:
    """Fields of one section of the config; raises InputError for a value that may not be."""

    SECTION: ClassVar[str] = ""

    def __post_init__(self):
        for field in _plain_fields(self):
            value, name = getattr(self, field.name), path(self, field)
            choices, least = field.metadata["one_of"], field.metadata["least"]
            if choices and value not in choices:
                raise InputError(
                    f"config.{name} must be one of {', '.join(choices)}, found {value!r}."
                )
            if least is not None and value < least:
                raise InputError(f"config.{name} must be at least {least}, found {value}.")

    @classmethod
    def of(cls, config: Any) -> Settings:
        """The settings that a config describes; sequences become tuples."""
        values = {f.name: _frozen(value_at(config, path(cls, f))) for f in _plain_fields(cls)}
        parts = {
            f.name: f.metadata["nested"].of(config)
            for f in dataclasses.fields(cls)
            if "nested" in f.metadata
        }
        return cls(**values, **parts)


def recast(kind: type, value: Any, **changes: Any) -> Any:
    """A dataclass of another kind with the fields that both have; others by `changes`."""
    names = {f.name for f in dataclasses.fields(kind)} & {f.name for f in dataclasses.fields(value)}
    return kind(**{name: getattr(value, name) for name in names} | changes)


def paths(settings: type[Settings]) -> frozenset[str]:
    """Where all fields of some settings stand in the config, those of nested ones too."""
    own = {path(settings, field) for field in _plain_fields(settings)}
    parts = (f.metadata.get("nested") for f in dataclasses.fields(settings))
    return frozenset(own.union(*(paths(part) for part in parts if part)))


def _plain_fields(settings: Settings | type[Settings]) -> list[dataclasses.Field]:
    return [f for f in dataclasses.fields(settings) if "nested" not in f.metadata]


def path(settings: Settings | type[Settings], field: dataclasses.Field) -> str:
    """Where a field stands in the config, as in `model.width`."""
    section = f"{settings.SECTION}." if settings.SECTION else ""
    return field.metadata["at"] or section + field.name


def value_at(config: Any, name: str) -> Any:
    """The value of a config at a dotted name."""
    for part in name.split("."):
        config = config[part]
    return config


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value
