"""Where the data of the tests is, and how it is read.

Owns: locating ``shared/`` beside the checkout, or the part of it that is kept here.
Not here: any test.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent


def shared(name: str) -> Path:
    """A folder of the shared data: the whole one beside the checkout, else the part under ``tests/data``."""
    whole = REPOSITORY.parent / "shared" / name
    return whole if whole.is_dir() else HERE / "data" / name


def lines_of(path: Path) -> list[Any]:
    """The JSON values of a file, one a line; split at newlines only, because strings may hold U+2028."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def conformance(name: str) -> list[Any]:
    """The lines of one conformance file."""
    return lines_of(shared("conformance") / name)
