"""File names that any graph or session id can be turned into."""

from __future__ import annotations

import hashlib
from typing import Final
from urllib.parse import quote

from ergo_capture.bundle.manifest import BUNDLE_SUFFIX
from ergo_capture.bundle.reader.opening import COMPRESSED_SUFFIX

#: Longest name made of an id, in bytes; leaves room for ``.manifest.json.4194304.123456.tmp``.
MAX_NAME: Final = 180


def safe_name(text: str) -> str:
    """A file name for an arbitrary id: one to one, without slashes, dots in front, or ``~``.

    What is not a letter, a digit, or one of ``-_.`` becomes ``%XX``. An empty id is ``~``; one that would
    be too long is cut and ends in ``~`` and the start of its SHA-256.
    """
    name = quote(text, safe="")
    if not name:
        return "~"
    name = name.replace("~", "%7E")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if len(name) > MAX_NAME:
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        name = f"{name[: MAX_NAME - 33]}~{digest}"
    return name


def bundle_name(session: str, part: int, *, compressed: bool = False) -> str:
    """The file name of a session's bundle; from the second part on, ``~N`` stands behind the session."""
    suffix = ("" if part == 1 else f"~{part}") + BUNDLE_SUFFIX + (COMPRESSED_SUFFIX if compressed else "")
    return safe_name(session) + suffix
