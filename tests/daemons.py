"""Daemons for tests, in the test's event loop or as a process; and a client that sends anything."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import anyio
from tests.shared import REPOSITORY

from ergo_capture import config as configuration
from ergo_capture.server.service import Service

#: Seconds that tests wait for something at the most: enough for a slow machine. Mutants that hang are given fewer.
PATIENCE = float(os.environ.get("TEST_PATIENCE", "30"))


@contextmanager
def short_directory() -> Iterator[Path]:
    """Make a temporary directory whose path is short enough for sockets in it."""
    with tempfile.TemporaryDirectory(prefix="ec-") as name:
        yield Path(name)


def configured(state: Path, socket: Path, text: str = "") -> configuration.Config:
    """Return a configuration from TOML with these paths; bundles are not verified again unless the text says so."""
    if "[verify]" not in text:
        # While no processor is idle the bundles' segments would be kept, and tests wait until they are deleted.
        text += '\n[verify]\nafter_publish = "never"\n'
    loaded = configuration.parse(text, "test")
    import msgspec

    return msgspec.structs.replace(
        loaded,
        socket=msgspec.structs.replace(loaded.socket, path=str(socket)),
        state=msgspec.structs.replace(loaded.state, directory=str(state)),
    )


@dataclass
class Daemon:
    """A daemon in the test's event loop."""

    service: Service
    socket: Path
    state: Path

    @asynccontextmanager
    async def wire(self) -> AsyncIterator[Wire]:
        """Open a raw connection."""
        async with await anyio.connect_unix(str(self.socket)) as stream:
            yield Wire(stream)

    @asynccontextmanager
    async def control(self) -> AsyncIterator[Wire]:
        """Open a raw connection to the control socket."""
        async with await anyio.connect_unix(str(self.service.components.control_path)) as stream:
            yield Wire(stream)

    async def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        """Send one request to the control socket and return the answer."""
        async with self.control() as wire:
            await wire.say({"command": command, **fields})
            return await wire.read()

    @asynccontextmanager
    async def session(self, **options: Any) -> AsyncIterator[Wire]:
        """Open a raw connection with a session."""
        async with self.wire() as wire:
            await wire.open(**options)
            yield wire

    def bundles(self) -> list[Path]:
        """Return the bundle files."""
        return sorted((self.state / "bundles").rglob("*.capture.json"))


@asynccontextmanager
async def running_daemon(text: str = "", state: Path | None = None, storage: Any = None) -> AsyncIterator[Daemon]:
    """Run a daemon with the given configuration; stop it in order at the end."""
    with short_directory() as place:
        home = state or place / "state"
        service = Service(configured(home, place / "capture.sock", text), storage)
        task = asyncio.create_task(service.run())
        ready = asyncio.create_task(service.ready.wait())
        await asyncio.wait({task, ready}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            ready.cancel()
            await task
        try:
            yield Daemon(service, place / "capture.sock", home)
        finally:
            service.stop()
            await asyncio.wait_for(task, PATIENCE)


class Wire:
    """A client that sends whatever the test wants, and reads replies one by one."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.opened: dict[str, Any] = {}
        self._held = b""

    async def say(self, *frames: Any) -> None:
        """Send frames: dictionaries as JSON, bytes as they are, each with a newline."""
        data = b"".join((f if isinstance(f, bytes) else json.dumps(f).encode()) + b"\n" for f in frames)
        await self.stream.send(data)

    async def read(self) -> dict[str, Any]:
        """Return the next frame; raise EndOfStream at the end."""
        with anyio.fail_after(PATIENCE):
            while b"\n" not in self._held:
                self._held += await self.stream.receive(65536)
        line, _, self._held = self._held.partition(b"\n")
        frame: dict[str, Any] = json.loads(line)
        return frame

    async def until(self, kind: str) -> dict[str, Any]:
        """Return the next frame of that type, skipping others."""
        while (frame := await self.read())["type"] != kind:
            pass
        return frame

    async def until_ack(self, accepted: int, decided: int = 0) -> list[dict[str, Any]]:
        """Return all frames up to an acknowledgement of at least so many events."""
        frames = []
        while True:
            frame = await self.read()
            frames.append(frame)
            if frame["type"] == "ack" and frame["accepted"] >= accepted and frame["decided"] >= decided:
                return frames

    async def rest(self) -> list[dict[str, Any]]:
        """Return every frame until the daemon closes the connection."""
        frames = []
        while True:
            try:
                frames.append(await self.read())
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return frames

    async def open(self, **options: Any) -> dict[str, Any]:
        """Say hello and open a session; return ``opened``. Notices are taken, unless the options say otherwise."""
        await self.say({"type": "hello", "protocol": "ergo-capture.v1", "client": "test"})
        await self.read()
        await self.say({"type": "open", "notices": True, **options})
        self.opened = await self.read()
        assert self.opened["type"] == "opened", self.opened
        return self.opened


def event(event_id: str, at: int = 0, kind: str = "Command", payload: Any = None) -> dict[str, Any]:
    """Return an event frame."""
    body = {"event_id": event_id, "kind": kind, "at": {"secs": at, "nanos": 0}, "payload": payload}
    return {"type": "event", "event": body}


class DaemonProcess:
    """A daemon as a process: the installed command, or this checkout's."""

    def __init__(self, place: Path, state: Path, *arguments: str, config: str = "", environment: Any = None) -> None:
        self.socket = place / "capture.sock"
        self.state = state
        self.log = place / "daemon.log"
        self.config = place / "config.toml"
        self.config.write_text(config)
        self.arguments = arguments
        self.environment = {**command_environment(), **(environment or {})}
        self.process: subprocess.Popen[bytes] | None = None
        self.prefix: list[str] = []
        #: The command that is run; tests may put another in its place.
        self.command: list[str] = COMMAND

    def start(self) -> DaemonProcess:
        """Start it and wait until it is ready."""
        self.spawn()
        self.until_logged("daemon.ready")
        return self

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start it without waiting."""
        command = [*self.prefix, *self.command, "serve", "--config", str(self.config), "--socket", str(self.socket)]
        command += ["--state-dir", str(self.state), *self.arguments]
        self.log.write_bytes(b"")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment)
        return self.process

    def until_logged(self, name: str) -> dict[str, Any]:
        """Wait for a line with that event name in the log, and return it."""
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for line in self.log.read_text().splitlines():
                if f'"event": "{name}"' in line:
                    found: dict[str, Any] = json.loads(line)
                    return found
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise AssertionError(f"{name} not logged:\n{self.log.read_text()}")

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send it a signal, wait for its end and return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()


#: The command under test: the installed one that CI names, else this checkout's package.
COMMAND = (
    [os.environ["ERGO_CAPTURE_COMMAND"]]
    if "ERGO_CAPTURE_COMMAND" in os.environ
    else [sys.executable, "-m", "ergo_capture"]
)


def command_environment() -> dict[str, str]:
    """Return the environment for the command under test."""
    environment = dict(os.environ)
    if "ERGO_CAPTURE_COMMAND" not in os.environ:
        environment["PYTHONPATH"] = str(REPOSITORY / "daemon")
    environment.pop("NOTIFY_SOCKET", None)
    return environment


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command under test to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        env=command_environment(),
        timeout=120,
        check=False,
        **options,
    )


class Terminal:
    """A pseudo-terminal, whose ``end`` is given to a process."""

    def __init__(self) -> None:
        self._mine, self.end = os.openpty()
        #: Everything that was written to it, without control sequences.
        self.text = ""
        self._held = b""

    def until(self, text: str) -> str:
        """Read until a text was written; return everything that was."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.text:
            if not select.select([self._mine], [], [], max(0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"{text!r} was not written:\n{self.text}")
            self._held += os.read(self._mine, 65536)
            self.text = plain(self._held.decode(errors="replace"))
        return self.text

    def read_until_end_of(self, process: subprocess.Popen[Any]) -> None:
        """Read what a process writes until it ends: it would wait for a reader when the terminal's buffer is full."""
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None:
            assert time.monotonic() < deadline, f"it goes on:\n{self.text}"
            if select.select([self._mine], [], [], 0.05)[0]:
                os.read(self._mine, 65536)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.end)
        os.close(self._mine)


def plain(text: str) -> str:
    """Return a text without terminal control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
