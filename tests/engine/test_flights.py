"""Recorded flights through engines outside the daemon: the same bundle as with a scripted engine."""

from __future__ import annotations

import gzip
import json
from importlib import resources
from pathlib import Path

import pytest
from tests.daemons import running_daemon, short_directory
from tests.engine.engines import listening_puppet, process_graph, socket_graph
from tests.shared import shared

from ergo_capture.client import CaptureClient

LIMITS = 'runtime_provenance = "rpv1:puppet"\nmax_per_window = 20\nrate_window = "10m"\n'


async def bundle_of(text: str, lines: list[bytes]) -> bytes:
    """Return the bundle of the events with that configuration."""
    async with running_daemon(text) as daemon, CaptureClient(daemon.socket, window=1024, give_up_after=20) as client:
        await client.open("default")
        for number, line in enumerate(lines):
            await client.send_line(line, str(number))
        published = await client.close()
        assert published.events == len(lines)
        return Path(published.bundle).read_bytes()


async def flights(lines: list[bytes]) -> None:
    """Compare bundles: scripted, a child with and without a pipeline, and behind a socket."""
    with short_directory() as place, listening_puppet(place / "engine.sock"):
        (place / "script.json").write_text(json.dumps({"default": "Completed"}))
        engine = f'engine = {{ kind = "scripted", file = "{place}/script.json" }}\n'
        scripted = await bundle_of(f"[graphs.default]\n{LIMITS}{engine}", lines)
        assert await bundle_of(process_graph(graph=LIMITS), lines) == scripted
        assert await bundle_of(process_graph(graph=LIMITS, engine="pipeline = 64"), lines) == scripted
        assert await bundle_of(socket_graph(place / "engine.sock", graph=LIMITS), lines) == scripted


def wrapped(text: bytes) -> list[bytes]:
    """Return a file's event frames; bare events are wrapped in frames."""
    lines = text.splitlines(keepends=True)
    if lines[0].startswith(b'{"type"'):
        return lines
    return [b'{"type":"event","event":' + line.strip() + b"}\n" for line in lines]


async def test_flights_give_the_same_bundle_with_every_engine() -> None:
    """P11: the first thousand of the packaged sample."""
    sample = resources.files("ergo_capture") / "data" / "flights.jsonl.gz"
    await flights(wrapped(gzip.decompress(sample.read_bytes()))[:1000])


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_a_month_of_flights_gives_the_same_bundle_with_every_engine() -> None:
    """P11: the whole month."""
    path = shared("real") / "nyc-flights-2013-01.jsonl.gz"
    if not path.exists():
        pytest.skip("the month of flights is not beside this checkout")
    await flights(wrapped(gzip.decompress(path.read_bytes())))
