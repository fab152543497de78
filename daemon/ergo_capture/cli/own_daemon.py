"""A daemon of a command's own, as a process, for as long as the command needs it.

Owns: starting it in a given place, waiting until it listens, stopping it in order.
Not here: what it is for (``demo.py``, ``bench.py``).
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ergo_capture.cli.figures import size
from ergo_capture.errors import ErgoCaptureError

_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 60.0
#: Bytes that have to be free: a segment of the journal, and bundles.
_ROOM: Final = 64 << 20


@contextmanager
def own_daemon(place: Path, config: str = "") -> Iterator[Path]:
    """A daemon whose state, configuration and log are in ``place``; gives its socket.

    Raises:
        ErgoCaptureError: there is no room for it, it did not start, or did not end as it should.
    """
    free = shutil.disk_usage(place).free
    if free < _ROOM:
        # Why asked before: a daemon whose disk is full waits for room, and this one's user would wait with it.
        raise ErgoCaptureError(
            f"run a daemon in '{place}': it needs {size(_ROOM)}, and {size(free)} are free",
            op="run own daemon",
            path=place,
            hint="name another place with --directory",
        )
    (place / "config.toml").write_text(config)
    # Why not in the place: a socket's path has to be short.
    with tempfile.TemporaryDirectory(prefix="ec-") as short:
        socket = Path(short) / "capture.sock"
        daemon = _start(place, socket)
        try:
            _until_listening(daemon, socket, place)
            yield socket
        finally:
            daemon.send_signal(signal.SIGTERM)
            try:
                code = daemon.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                daemon.kill()
                code = daemon.wait()
    if code != 0:
        raise _trouble(place, f"ended with exit code {code}")


def _start(place: Path, socket: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ergo_capture", "serve"]
    command += ["--config", str(place / "config.toml"), "--socket", str(socket), "--state-dir", str(place / "state")]
    with (place / "daemon.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 - our own command


def _until_listening(daemon: subprocess.Popen[bytes], socket: Path, place: Path) -> None:
    patience = time.monotonic() + _START_SECONDS
    while not socket.exists() and daemon.poll() is None and time.monotonic() < patience:
        time.sleep(0.02)
    if not socket.exists():
        raise _trouble(place, "did not start")


def _trouble(place: Path, what: str) -> ErgoCaptureError:
    return ErgoCaptureError(
        f"the command's own daemon {what}",
        op="run own daemon",
        path=place,
        hint=f"see '{place / 'daemon.log'}'",
    )
