"""The client and ``send`` report events that were accepted and not decided."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.daemons import Daemon, command, running_daemon, short_directory
from tests.engine.counting import ADAPTER

from ergo_capture import EventTime, ExternalEvent, ExternalEventKind
from ergo_capture.client import CaptureClient, Refused, Reject
from ergo_capture.errors import ExitCode


@asynccontextmanager
async def counting(text: str = "") -> AsyncIterator[Daemon]:
    """Run a daemon whose default graph counts, and keeps context."""
    with short_directory() as place:
        (place / "adapter.yaml").write_text(ADAPTER)
        config = f'{text}[graphs.default]\nadapter = "{place}/adapter.yaml"\n'
        config += 'engine = { kind = "python", callable = "tests.engine.counting:add" }\n'
        async with running_daemon(config) as daemon:
            yield daemon


def line(event_id: str, n: int = 1, **fields: Any) -> bytes:
    """Return an event line that adds a number."""
    event = {"event_id": event_id, "kind": "Command", "at": {"secs": 0, "nanos": 0}, "semantic_kind": "add"}
    return json.dumps({"type": "event", "event": {**event, "payload": {"n": n, **fields}}}).encode() + b"\n"


async def test_a_client_hears_each_refusal_once_though_it_resumes() -> None:
    """The daemon repeats the refusals on the new connection."""
    refused: list[Refused] = []
    reconnected = asyncio.Event()
    async with (
        counting() as daemon,
        CaptureClient(daemon.socket, on_refused=refused.append, on_reconnect=lambda _: reconnected.set()) as client,
    ):
        await client.open("default")
        for name, n in (("a", 101), ("b", 1)):
            await client.send_line(line(name, n), name)
        await client.drain()
        while not refused:
            await client.ping()
        await client._connection.hang_up()
        await reconnected.wait()
        await client.send_line(line("c", 2), "c")
        closed = await client.close()
    assert [(each.index, each.event_id, each.count) for each in refused] == [(2, "b", 1), (3, "c", 2)]
    assert (client.accepted, client.refused, closed.refused, closed.decisions) == (3, 2, 2, 1)


async def test_a_client_hears_what_is_left_over() -> None:
    """Later events are rejected."""
    rejects: list[Reject] = []
    async with (
        counting('[limits]\ncontext_bytes = "1KiB"\n') as daemon,
        CaptureClient(daemon.socket, on_reject=rejects.append) as client,
    ):
        await client.open("default")
        for name in ("long.a", "b", "c"):
            await client.send_line(line(name), name)
        while client.left_over is None:
            await client.ping()
        assert client.is_interrupted
        await client.send_line(line("d"), "d")
        closed = await client.close()
        rest = Path(closed.bundle).with_name(Path(closed.bundle).name.replace(".capture.json", ".rest.jsonl"))
        assert rest.read_bytes() == line("b") + line("c")
    assert (client.left_over.from_index, client.left_over.event_id, client.left_over.count) == (2, "b", 2)
    assert [reject.code for reject in rejects] == ["run_interrupted"]
    assert (closed.left_over, closed.reason) == (2, "context_full")


async def test_a_client_says_what_its_events_mean() -> None:
    """The meaning is the ``semantic_kind`` that the adapter declares."""
    rejects: list[Reject] = []
    async with counting() as daemon, CaptureClient(daemon.socket, on_reject=rejects.append) as client:
        await client.open("default")
        kind, at = ExternalEventKind.Command, EventTime(1, 2)
        await client.send(ExternalEvent.with_payload("a", kind, at, b'{"n":1}', semantic_kind="add"))
        await client.send(ExternalEvent.with_payload("b", kind, at, b'{"n":1}'))
        await client.send(ExternalEvent.mechanical_at("c", kind, at, semantic_kind="add"))
        closed = await client.close()
    assert (closed.events, closed.decisions) == (1, 1)
    assert [(reject.event_id, reject.code) for reject in rejects] == [
        ("b", "schema_violation"),
        ("c", "schema_violation"),
    ]
    with pytest.raises(ValueError, match="surrogates"):
        ExternalEvent.mechanical_at("c", kind, at, semantic_kind="\ud800")


@pytest.mark.parametrize("as_json", [False, True])
async def test_send_says_what_was_refused_and_left_over(as_json: bool, tmp_path: Path) -> None:
    """The exit code is 3, and the output has counts and ids."""
    text = b"".join((line("a", 101), line("b"), line("long.c", total=1), line("d"), line("e")))
    (tmp_path / "events").write_bytes(text)
    async with counting('[limits]\ncontext_bytes = "1KiB"\n') as daemon:
        options = ["--json"] if as_json else []
        ran = await asyncio.to_thread(
            command, "send", str(tmp_path / "events"), "--socket", str(daemon.socket), *options
        )
    assert ran.returncode == ExitCode.DATA_LOSS
    assert "refused 'b': schema_violation: " in ran.stderr
    if as_json:
        summary = json.loads(ran.stdout)
        assert [summary[key] for key in ("ended", "reason", "refused", "left_over", "decisions")] == [
            "interrupted",
            "context_full",
            1,
            2,
            2,
        ]
    else:
        assert "interrupted: context_full: the context store would take" in ran.stderr
        assert "1 event refused\n" in ran.stderr
        assert "2 events left over, from 'd' on, in the .rest.jsonl beside the bundle\n" in ran.stderr


async def test_send_stops_where_the_run_is_interrupted(tmp_path: Path) -> None:
    """Further events would all be rejected."""
    (tmp_path / "events").write_bytes(b"".join(line(f"{'long.' if n == 2 else ''}e{n}") for n in range(100_000)))
    async with counting('[limits]\ncontext_bytes = "1KiB"\n') as daemon:
        ran = await asyncio.to_thread(
            command, "send", str(tmp_path / "events"), "--socket", str(daemon.socket), "--json"
        )
    summary = json.loads(ran.stdout)
    assert summary["left_over"] + summary["rejected"] + 3 < 100_000


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([{"type": "hello", "protocol": "ergo-driver.v0"}, line("a")], "driver_terminated"),
        (
            [{"type": "hello", "protocol": "ergo-driver.v0"}, line("a"), {"type": "end"}, {"type": "end"}],
            "protocol_violation",
        ),
    ],
)
async def test_the_manifest_says_how_a_drivers_stream_ended_early(
    frames: list[Any], reason: str, tmp_path: Path
) -> None:
    """The reason is in the reference's word, for a stream sent by ``send`` and for one of the driver itself."""
    text = b"".join(f if isinstance(f, bytes) else json.dumps(f).encode() + b"\n" for f in frames)
    (tmp_path / "stream").write_bytes(text)
    async with counting() as daemon:
        await asyncio.to_thread(command, "send", str(tmp_path / "stream"), "--socket", str(daemon.socket))
        async with daemon.wire() as wire:
            await wire.stream.send(text)
            await wire.stream.send_eof()
            await wire.rest()
            while len(daemon.bundles()) < 2:
                await asyncio.sleep(0.01)
        for bundle in daemon.bundles():
            manifest = bundle.with_name(bundle.name.replace(".capture.", ".manifest."))
            while not manifest.exists():
                await asyncio.sleep(0.01)
            said = json.loads(manifest.read_bytes())
            assert (said["ended"], said["interruption"]) == ("interrupted", {"reason": reason})
