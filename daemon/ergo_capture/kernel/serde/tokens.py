"""Scan JSON text without parsing it: the one pattern of a JSON string, and what is looked for outside of strings."""

from __future__ import annotations

import re
from typing import Final

#: A string up to its closing quote, or to the end of the text. Possessive, so that no character is looked at twice.
_OPEN_STRING: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+'
#: A string. It matches one without an end too, which would otherwise be searched for again from each quote in it.
STRING: Final = _OPEN_STRING + rb'"?'
#: A string, whose closing quote is the group (empty where the string has no end), or a character of the structure.
STRUCTURE: Final = re.compile(_OPEN_STRING + rb'("?)|[\[\]{},]', re.DOTALL)

_STRINGS: Final = re.compile(STRING, re.DOTALL)
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


def outside_strings(pattern: bytes) -> re.Pattern[bytes]:
    """Compile a pattern that matches ``pattern`` outside of strings, and every string.

    Groups in ``pattern`` tell the two apart: a match of a string leaves them unset.
    """
    return re.compile(STRING + b"|" + pattern, re.DOTALL)


def depth_of(text: bytes) -> int:
    """Return how many arrays and objects are open at once, at most, in a JSON text."""
    deepest = depth = 0
    for bracket in _STRINGS.sub(b"", text).translate(None, _NOT_BRACKETS):
        if bracket in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest
