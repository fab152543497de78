"""Redis as the yardstick for ingest: over a Unix socket, each command durable before its answer."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ergo_capture.client.load import Figures

AVAILABLE = shutil.which("redis-server") is not None and shutil.which("redis-benchmark") is not None


class Redis:
    """A running redis-server with ``appendonly yes`` and ``appendfsync always``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def throughput(self, *, clients: int, pipeline: int, events: int, size: int) -> float:
        """Return durable XADDs a second, measured by redis-benchmark; each adds ``size`` bytes."""
        command = ["redis-benchmark", "-s", str(self.path), "-c", str(clients), "-P", str(pipeline)]
        command += ["-n", str(events), "-q", "XADD", "stream", "*", "e", "x" * size]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rates = re.findall(r"([0-9.]+) requests per second", output)
        self._forget()
        return float(rates[-1])

    def round_trips(self, count: int, size: int) -> Figures:
        """Send one XADD after the other, with the same kind of client as the load on the daemon."""
        payload = b"x" * size
        command = b"*5\r\n$4\r\nXADD\r\n$6\r\nstream\r\n$1\r\n*\r\n$1\r\ne\r\n$%d\r\n%b\r\n" % (size, payload)
        waits = []
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.path))
            began = time.perf_counter()
            for _ in range(count):
                before = time.perf_counter()
                connection.sendall(command)
                connection.recv(4096)
                waits.append(time.perf_counter() - before)
            seconds = time.perf_counter() - began
        waits.sort()
        return Figures(count, seconds, waits[count // 2], waits[int(count * 0.99)])

    def _forget(self) -> None:
        subprocess.run(["redis-cli", "-s", str(self.path), "flushall"], capture_output=True, check=True)


@contextmanager
def redis(place: Path, path: Path | None = None) -> Iterator[Redis]:
    """Run a server whose data is in ``place``, and whose socket is there too unless it has a path."""
    path = path or place / "redis.sock"
    options = {"port": "0", "unixsocket": str(path), "dir": str(place), "save": ""}
    options |= {"appendonly": "yes", "appendfsync": "always", "daemonize": "no"}
    command = ["redis-server", *(word for key, value in options.items() for word in (f"--{key}", value))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 20
            while not path.exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            yield Redis(path)
        finally:
            server.terminate()
            server.wait(30)
