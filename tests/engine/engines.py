"""Configurations with engines for tests, and what their episodes came to."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.daemons import Daemon

from ergo_capture import CaptureBundle, EventTime, ExternalEvent, ExternalEventKind, decode_bundle
from ergo_capture.cli.support.verification import check
from ergo_capture.client import CaptureClient
from ergo_capture.engine.remote import RemoteEngine
from ergo_capture.server.service import Service

PUPPET = Path(__file__).with_name("puppet.py")


def puppet_command(*options: str) -> list[str]:
    """Return the command that runs the puppet."""
    return [sys.executable, str(PUPPET), *options]


def process_graph(*options: str, graph: str = "", engine: str = "") -> str:
    """Return a configuration whose default graph runs the puppet as a child, with further settings."""
    command = json.dumps(puppet_command(*options))
    return f'[graphs.default]\n{graph}\n[graphs.default.engine]\nkind = "process"\ncommand = {command}\nback_off = "10ms"\n{engine}\n'


def socket_graph(path: Path, graph: str = "", engine: str = "") -> str:
    """Return the same with the puppet behind a socket."""
    return f'[graphs.default]\n{graph}\n[graphs.default.engine]\nkind = "socket"\npath = "{path}"\nback_off = "10ms"\n{engine}\n'


def python_graph(name: str, graph: str = "", engine: str = "") -> str:
    """Return the same with a callable of ``scripts.py``."""
    spec = f"tests.engine.scripts:{name}"
    return f'[graphs.default]\n{graph}\n[graphs.default.engine]\nkind = "python"\ncallable = "{spec}"\n{engine}\n'


@contextmanager
def listening_puppet(path: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run the puppet behind a socket."""
    with subprocess.Popen(puppet_command("--socket", str(path), *options)) as process:
        try:
            deadline = time.monotonic() + 20
            while not path.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


def command_event(event_id: str, at: int = 0, payload: Any = None) -> ExternalEvent:
    """Return an event of the kind Command."""
    text = b"" if payload is None else json.dumps(payload).encode()
    return ExternalEvent.with_payload(event_id, ExternalEventKind.Command, EventTime(at, 0), text)


def engine_of(service: Service) -> RemoteEngine:
    """Return the default graph's engine."""
    engine = service.registry.graphs["default"].engine
    assert isinstance(engine, RemoteEngine)
    return engine


async def captured(daemon: Daemon, ids: list[str], payload: Any = None, graph: str = "default") -> CaptureBundle:
    """Send events of those ids through one session, a second of event time apart; return its bundle, verified."""
    async with CaptureClient(daemon.socket, give_up_after=20) as client:
        await client.open(graph)
        for at, event_id in enumerate(ids):
            await client.send(command_event(event_id, at, payload))
        published = await client.close()
    verdict = check(Path(published.bundle))
    assert verdict["ok"], verdict
    return decode_bundle(Path(published.bundle).read_bytes())


async def terminations(daemon: Daemon, ids: list[str], payload: Any = None, graph: str = "default") -> list[str]:
    """Send events of those ids and return the names of their terminations."""
    bundle = await captured(daemon, ids, payload, graph)
    found = []
    for record in bundle.decisions:
        assert record.termination is not None
        err = record.termination.err
        found.append(record.termination.name if err is None else err.value)
    return found
