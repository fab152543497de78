"""A temporary daemon of a command."""

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

from ergo_capture.cli.support.output import size
from ergo_capture.errors import ErgoCaptureError

_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 60.0
#: Free bytes that are needed for a segment of the journal, and bundles.
_BYTES_NEEDED: Final = 64 << 20


@contextmanager
def temporary_daemon(place: Path, config: str = "") -> Iterator[Path]:
    """Run a daemon with its state and log in ``place``; yield the path of its socket.

    Raises:
        ErgoCaptureError: the disk is too full, or the daemon did not start or did not stop as it should.
    """
    free = shutil.disk_usage(place).free
    if free < _BYTES_NEEDED:
        # A daemon on a full disk waits for space, and the command would wait with it.
        raise ErgoCaptureError(
            f"run a daemon in '{place}': it needs {size(_BYTES_NEEDED)}, and {size(free)} are free",
            op="run temporary daemon",
            path=place,
            hint="name another place with --directory",
        )
    # Do not put the socket in ``place``, because its path has to be short; nor the configuration, because the user's
    # directory may have a file with its name.
    with tempfile.TemporaryDirectory(prefix="ec-") as short:
        socket = Path(short) / "capture.sock"
        socket.with_name("config.toml").write_text(config)
        daemon = _start(place, socket)
        try:
            _wait_until_listening(daemon, socket, place)
            yield socket
        finally:
            daemon.send_signal(signal.SIGTERM)
            try:
                code = daemon.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                daemon.kill()
                code = daemon.wait()
    if code != 0:
        raise _failure(place, f"ended with exit code {code}")


def _start(place: Path, socket: Path) -> subprocess.Popen[bytes]:
    config = socket.with_name("config.toml")
    command = [sys.executable, "-P", "-m", "ergo_capture", "serve"]
    command += ["--config", str(config), "--socket", str(socket), "--state-dir", str(place / "state")]
    with (place / "daemon.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 - our own command


def _wait_until_listening(daemon: subprocess.Popen[bytes], socket: Path, place: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not socket.exists() and daemon.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    if not socket.exists():
        raise _failure(place, "did not start")


def _failure(place: Path, what: str) -> ErgoCaptureError:
    return ErgoCaptureError(
        f"the command's own daemon {what}",
        op="run temporary daemon",
        path=place,
        hint=f"see '{place / 'daemon.log'}'",
    )
