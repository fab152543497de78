"""Find and read the tests' data, and find out what the machine can do."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent


def shared(name: str) -> Path:
    """Return a folder of the shared data: the whole one beside the checkout, else the part below ``tests/data``."""
    whole = REPOSITORY.parent / "shared" / name
    return whole if whole.is_dir() else HERE / "data" / name


def lines_of(path: Path) -> list[Any]:
    """Return the JSON values of a file, one a line; split at newlines only, because strings may hold U+2028."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def conformance(name: str) -> list[Any]:
    """Return the values of one conformance file."""
    return lines_of(shared("conformance") / name)


def traceable() -> bool:
    """Return whether strace is installed and may trace."""
    strace = shutil.which("strace")
    if strace is None:
        return False
    tried = subprocess.run([strace, "-qq", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return tried.returncode == 0
