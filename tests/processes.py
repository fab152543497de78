"""Processes that tests did not start themselves, and waiting for what they do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.daemons import PATIENCE

#: The duration of each soak: ten minutes, or as many as ``SOAK_MINUTES`` says.
SOAK_SECONDS: Final = 60 * float(os.environ.get("SOAK_MINUTES", "10"))


def is_alive(pid: int | str) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; fail if it does not in time."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
