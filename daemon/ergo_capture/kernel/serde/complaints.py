"""The messages with which JSON is refused, in serde's words; the same wherever a fault is found.

Whoever knows the place in the text adds it with ``at``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

OUT_OF_RANGE: Final = "number out of range"
TOO_DEEP: Final = "recursion limit exceeded"


def invalid_integer(value: int, expected: str) -> str:
    """Return the message for an integer that a field cannot hold; ``expected`` is ``u64`` or the like."""
    return f"invalid value: integer `{value}`, expected {expected}"


def unknown_variant(name: object, variants: Iterable[str]) -> str:
    """Return the message for a name that an enum does not have."""
    return f"unknown variant `{name}`, expected one of {in_backticks(variants)}"


def in_backticks(names: Iterable[str]) -> str:
    """Return a list of names as messages show it."""
    return ", ".join(f"`{name}`" for name in names)


def at(message: str, path: str) -> str:
    """Return a message with the path of the value that it is about, unless it has one."""
    return message if " - at `" in message else f"{message} - at `{path}`"
