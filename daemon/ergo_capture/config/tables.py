"""The parts of the configuration's tables: descriptions, bounds, and paths that are expanded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta

from ergo_capture.config.paths import expand_home, expand_path
from ergo_capture.units import Duration, Size

#: A user or group.
Name = str | Annotated[int, Meta(ge=0)]


def doc(description: str, *examples: Any, **bounds: int) -> Meta:
    """Return a setting's description, with an example if it has no default, and bounds if it is a number."""
    return Meta(description=description, examples=list(examples) or None, **bounds)  # type: ignore[call-overload, no-any-return]


def expand_command(command: tuple[str, ...]) -> tuple[str, ...]:
    """Return a command with home directories at the beginning of its words.

    Raises:
        ValueError: one cannot be expanded, or the program's name is blank.
    """
    if not command[0].strip():
        raise ValueError("`command` names no program")
    try:
        return (
            expand_path(command[0]),
            *(expand_home(word) if word.startswith("~/") else word for word in command[1:]),
        )
    except ValueError as error:
        raise ValueError(f"`command` {error}") from None


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""

    #: The smallest values of settings whose type allows smaller ones.
    MINIMUM: ClassVar[Mapping[str, Size | Duration]] = {}
    #: The largest values, likewise.
    MAXIMUM: ClassVar[Mapping[str, Size | Duration]] = {}
    #: The settings that are paths.
    PATHS: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for key, minimum in self.MINIMUM.items():
            if getattr(self, key) < minimum:
                raise ValueError(f"`{key}` must be at least {minimum}")
        for key, maximum in self.MAXIMUM.items():
            if getattr(self, key) > maximum:
                raise ValueError(f"`{key}` must be at most {maximum}")
        for key in self.PATHS:
            try:
                msgspec.structs.force_setattr(self, key, expand_path(getattr(self, key)))
            except ValueError as error:
                raise ValueError(f"`{key}` {error}") from None
