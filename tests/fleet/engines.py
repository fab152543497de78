"""Engines for workers: one that takes its time, and one that a certain event kills."""

from __future__ import annotations

import os
import signal
import time


def slow(*_: object) -> None:
    """Take 20 ms."""
    time.sleep(0.02)


def deadly(_graph_id: str, event_id: str, *_: object) -> None:
    """Kill the process at one event, as the system does with one that takes all memory."""
    if event_id == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
