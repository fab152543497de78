"""Measure what ``ingress`` costs a channel, beside the bare pipe.

python -m pytest -m bench -s tests/bench/test_ingress.py
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.adapter.cases import flight
from tests.bench.ratios import in_turns, report
from tests.daemons import COMMAND, DaemonProcess, command_environment, short_directory

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

STAND_IN = Path(__file__).resolve().parent.parent / "stand_in.py"
COPIES = 15


def runs(seen: Path, *driver: str) -> Callable[[], float]:
    """Return a function that runs the stand-in for ``ergo run`` once and returns the seconds."""

    def run() -> float:
        began = time.perf_counter()
        ran = subprocess.run(
            [sys.executable, str(STAND_IN), str(seen), *driver],
            capture_output=True,
            env=command_environment(),
            check=True,
        )
        assert ran.stdout == b"status=completed\n", ran.stderr
        return time.perf_counter() - began

    return run


def test_ingress_against_the_bare_pipe(tmp_path: Path) -> None:
    """30,000 events of flights; start-up is part of it."""
    _, lines, _ = flight("flights-acc-2000")
    feed = tmp_path / "driver.jsonl"
    events = [line.replace('"event_id": "', f'"event_id": "{n}.') for n in range(COPIES) for line in lines[1:-1]]
    feed.write_text("\n".join([lines[0], *events, lines[-1]]) + "\n")
    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        daemon.start()
        ours = runs(tmp_path / "ours", *COMMAND, "ingress", "--socket", str(daemon.socket), "--", "cat", str(feed))
        pairs = in_turns(ours, runs(tmp_path / "theirs", "cat", str(feed)), 5)
        report(f"{len(events):,} events through ingress against the bare pipe", "s", pairs, "none; start-up included")
