"""Commands that SIGTERM or SIGHUP ends, as real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.bundles import small_bundle
from tests.daemons import PATIENCE

from ergo_capture import encode_bundle


def wait_for_one(directory: Path, pattern: str) -> None:
    """Wait until a file of that name is there."""
    end = time.monotonic() + PATIENCE
    while not list(directory.rglob(pattern)):
        assert time.monotonic() < end
        time.sleep(0.01)


def start(
    directory: Path, *arguments: str, stdin: int = subprocess.DEVNULL, before: tuple[str, ...] = ()
) -> subprocess.Popen[bytes]:
    """Start a command that has the directory for temporary files to itself."""
    return subprocess.Popen(
        [*before, sys.executable, "-m", "ergo_capture", *arguments],
        env={**os.environ, "TMPDIR": str(directory)},
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_terminated_removes_its_temporaries(tmp_path: Path, number: signal.Signals) -> None:
    """It ends as the signal ends it, and says nothing: here with the copy of a pipe that never ends."""
    process = start(tmp_path, "verify", "/dev/stdin", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(encode_bundle(small_bundle(events=5)))
    process.stdin.flush()
    wait_for_one(tmp_path, "ergo-capture-*")
    process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said, list(tmp_path.iterdir())) == (-number, b"", [])


def test_a_command_that_is_terminated_stops_its_daemon(tmp_path: Path) -> None:
    """The directory of the daemon is removed once it has ended."""
    process = start(tmp_path, "bench")
    wait_for_one(tmp_path, "capture.sock")
    process.terminate()
    process.communicate(timeout=PATIENCE)
    assert (process.returncode, list(tmp_path.iterdir())) == (-signal.SIGTERM, [])


def test_a_signal_that_the_parent_ignores_stays_ignored(tmp_path: Path) -> None:
    """This is as for a command under ``nohup``."""
    process = start(tmp_path, "verify", "/dev/stdin", stdin=subprocess.PIPE, before=("nohup",))
    assert process.stdin is not None
    process.stdin.write(encode_bundle(small_bundle(events=5)))
    process.stdin.flush()
    wait_for_one(tmp_path, "ergo-capture-*")
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
