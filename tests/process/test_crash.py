"""The installed command, killed with SIGKILL: what was acknowledged is in the bundles afterwards, exactly once."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.daemons import PATIENCE, DaemonProcess, short_directory
from tests.daemons import event as event_frame
from tests.engine.engines import command_event, puppet_command
from tests.shared import shared

from ergo_capture import EventTime, ExternalEvent, ExternalEventKind, decode_bundle
from ergo_capture.cli.support.verification import check
from ergo_capture.client import CaptureClient, ClientError

SMALL_SEGMENTS = '[journal]\nsegment_bytes = "256KiB"\n'


def made(session: int, number: int) -> ExternalEvent:
    """Return an event whose payload names its session and number."""
    kind = ExternalEventKind.Pump if number % 10 == 9 else ExternalEventKind.DataAvailable
    payload = json.dumps({"session": session, "number": number, "pad": "x" * (number % 200)}).encode()
    return ExternalEvent.with_payload(f"{session}-{number}", kind, EventTime(number, 0), payload)


async def produce(daemon: DaemonProcess, session: int, obligations: dict[str, bytes], stop: asyncio.Event) -> None:
    """Send until told to stop, reconnecting as needed; what was acknowledged becomes an obligation."""
    sent: list[ExternalEvent] = []
    async with CaptureClient(daemon.socket, window=64, give_up_after=300) as client:
        await client.open("default")
        while not stop.is_set():
            event = made(session, len(sent))
            sent.append(event)
            await client.send(event)
            if len(sent) % 50 == 0:
                await asyncio.sleep(0)
        await client.drain()
        assert client.rejected == 0
        obligations.update({event.event_id: event.payload for event in sent})
        published = await client.close()
        assert published.events == len(sent)


async def rounds(daemon: DaemonProcess, count: int, sessions: int, seed: int) -> dict[str, bytes]:
    """Kill and restart the daemon ``count`` times while ``sessions`` producers send; return the obligations."""
    chance = random.Random(seed)
    obligations: dict[str, bytes] = {}
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for session in range(sessions):
            tasks.create_task(produce(daemon, session, obligations, stop))
        for _ in range(count):
            await asyncio.sleep(chance.uniform(0.0, 0.4))
            await asyncio.to_thread(daemon.kill)
            await asyncio.to_thread(daemon.start)
        stop.set()
    return obligations


def kept(state: Path) -> dict[str, list[bytes]]:
    """Return the payloads by event id in all bundles, which are verified."""
    found: dict[str, list[bytes]] = {}
    for path in sorted((state / "bundles").rglob("*.capture.json")):
        verdict = check(path)
        assert verdict["ok"], verdict
        manifest = json.loads(path.with_name(path.name.replace(".capture.", ".manifest.")).read_bytes())
        bundle = decode_bundle(path.read_bytes())
        assert manifest["events"] == len(bundle.events)
        for record in bundle.events:
            found.setdefault(record.event_id, []).append(record.payload)
    return found


async def oracle(count: int, sessions: int, seed: int, config: str = SMALL_SEGMENTS) -> None:
    """Check that after kills every obligation is in the bundles once, and that a further start serves."""
    with short_directory() as place, DaemonProcess(place, place / "state", config=config) as daemon:
        await asyncio.to_thread(daemon.start)
        obligations = await rounds(daemon, count, sessions, seed)
        assert await asyncio.to_thread(daemon.stop) == 0
        found = kept(daemon.state)
        assert {event_id: [payload] for event_id, payload in obligations.items()} == found
        assert len(obligations) > count
        await asyncio.to_thread(daemon.start)
        async with CaptureClient(daemon.socket) as client:
            await client.open("default")
            await client.send(made(99, 0))
            assert (await client.close()).events == 1
        assert await asyncio.to_thread(daemon.stop) == 0


@pytest.mark.timeout(300)
async def test_what_was_acknowledged_survives_kill_9_exactly_once() -> None:
    """P1, P2, P3, P5: SIGKILL at random moments, with several sessions."""
    await oracle(count=12, sessions=3, seed=1)


@pytest.mark.timeout(300)
async def test_what_was_acknowledged_survives_kill_9_under_a_rate_limit_and_rotation() -> None:
    """P1: with deferrals, pumps and parts; each part's bundle replays on its own."""
    config = SMALL_SEGMENTS + '[graphs.default]\nmax_per_window = 5\nrate_window = "10s"\n'
    await oracle(count=6, sessions=2, seed=2, config=config + '[rotation]\nmax_events = 200\nforce_after = "0s"\n')


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(20))
async def test_what_was_acknowledged_survives_five_hundred_kills(seed: int) -> None:
    """P1: the long version, 25 kills a seed."""
    await oracle(count=25, sessions=4, seed=100 + seed)


async def test_a_session_that_nobody_resumes_after_a_crash_ends_as_recovered() -> None:
    """P4: after session.linger its bundle has all accepted events."""
    config = SMALL_SEGMENTS + '[session]\nlinger = "300ms"\n'
    with short_directory() as place, DaemonProcess(place, place / "state", config=config) as daemon:
        await asyncio.to_thread(daemon.start)
        async with CaptureClient(daemon.socket, give_up_after=0) as client:
            await client.open("default")
            for number in range(100):
                await client.send(made(0, number))
            await client.drain()
            daemon.kill()
        await asyncio.to_thread(daemon.start)
        await asyncio.to_thread(daemon.until_logged, "bundle.published")
        assert await asyncio.to_thread(daemon.stop) == 0
        (manifest,) = daemon.state.rglob("*.manifest.json")
        assert json.loads(manifest.read_bytes())["ended"] == "recovered"
        assert len(kept(daemon.state)) == 100


async def test_recovery_is_idempotent() -> None:
    """P5: a daemon that is killed after recovery leaves the same sessions to the next one."""
    config = '[journal]\nsegment_bytes = "256KiB"\n'
    with short_directory() as place, DaemonProcess(place, place / "state", config=config) as daemon:
        await asyncio.to_thread(daemon.start)
        async with CaptureClient(daemon.socket, give_up_after=0) as client:
            name = await client.open("default")
            for number in range(100):
                await client.send(made(0, number))
            await client.drain()
            daemon.kill()
        found = []
        for _ in range(3):
            await asyncio.to_thread(daemon.start)
            found.append(daemon.until_logged("journal.recovered"))
            daemon.kill()
        assert [(line["sessions"], line["events"]) for line in found] == [(1, 100)] * 3
        await asyncio.to_thread(daemon.start)
        async with CaptureClient(daemon.socket) as client:
            await client.open("default", session=name)
            assert (client.resumed_after, client.last_event_id) == (100, "0-99")
            assert (await client.close()).events == 100
        assert await asyncio.to_thread(daemon.stop) == 0


async def test_sigterm_loses_nothing_accepted_and_the_session_can_be_resumed() -> None:
    """P10: the process ends with 0, a bundle has every accepted event, and the client continues with the next daemon."""
    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        await asyncio.to_thread(daemon.start)
        async with CaptureClient(daemon.socket, give_up_after=30) as client:
            await client.open("default")
            for number in range(500):
                await client.send(made(0, number))
            await client.drain()
            assert await asyncio.to_thread(daemon.stop) == 0
            assert not daemon.socket.exists()
            assert len(kept(daemon.state)) == 500
            await asyncio.to_thread(daemon.start)
            for number in range(500, 600):
                await client.send(made(0, number))
            published = await client.close()
            assert (published.events, client.reconnects) == (600, 1)
        assert await asyncio.to_thread(daemon.stop, signal.SIGINT) == 0


async def test_sigterm_under_load_loses_nothing_accepted() -> None:
    """P10: while a client sends as fast as it can."""
    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        await asyncio.to_thread(daemon.start)
        accepted = 0
        async with CaptureClient(daemon.socket, give_up_after=0, window=256) as client:
            await client.open("default")

            async def send() -> None:
                number = 0
                while True:
                    await client.send(made(0, number))
                    number += 1

            async with anyio.create_task_group() as tasks:

                async def sender() -> None:
                    try:
                        await send()
                    except ClientError:
                        tasks.cancel_scope.cancel()

                tasks.start_soon(sender)
                while client.accepted < 2000:
                    await asyncio.sleep(0.01)
                assert await asyncio.to_thread(daemon.stop) == 0
            accepted = client.accepted
        found = kept(daemon.state)
        assert len(found) >= accepted
        assert all(f"0-{number}" in found for number in range(accepted))


async def test_a_second_daemon_on_the_same_state_is_refused_with_a_hint() -> None:
    """P12: the error names the process that holds the lock, and the first daemon stays reachable."""
    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        await asyncio.to_thread(daemon.start)
        (place / "other").mkdir()
        second = DaemonProcess(place / "other", daemon.state)
        second.socket = daemon.socket
        process = second.spawn()
        assert process.wait(20) == 1
        said = second.log.read_text()
        assert daemon.process is not None
        assert f"Error: lock '{daemon.state / 'lock'}': another process has it" in said
        assert f"process {daemon.process.pid} holds it" in said
        async with CaptureClient(daemon.socket) as client:
            await client.open("default")
            await client.close()


async def test_a_socket_left_by_a_kill_is_replaced() -> None:
    """P12: nobody listens on it."""
    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        await asyncio.to_thread(daemon.start)
        daemon.kill()
        assert daemon.socket.exists()
        await asyncio.to_thread(daemon.start)
        async with CaptureClient(daemon.socket) as client:
            await client.open("default")
            await client.close()


@pytest.mark.parametrize("seed", ["0", "1", "random"])
async def test_the_same_stream_gives_the_same_bytes_under_every_hash_seed(seed: str) -> None:
    """P11: and they are the bytes that the library makes."""
    from ergo_capture import CapturingSession, Constraints, FaultRuntime, MemoryDecisionLog, encode_bundle

    events = [made(0, number) for number in range(300)]
    limits = Constraints(max_per_window=7, rate_window=EventTime(10, 0), max_retries=1)
    session = CapturingSession("default", limits, MemoryDecisionLog(), FaultRuntime(), "rpv1:none")
    for event in events:
        session.on_event(event)
    expected = encode_bundle(session.into_bundle())
    config = '[graphs.default]\nmax_per_window = 7\nrate_window = "10s"\nmax_retries = 1\n'
    with (
        short_directory() as place,
        DaemonProcess(place, place / "state", config=config, environment={"PYTHONHASHSEED": seed}) as daemon,
    ):
        await asyncio.to_thread(daemon.start)
        async with CaptureClient(daemon.socket) as client:
            await client.open("default")
            for event in events:
                await client.send(event)
            published = await client.close()
        assert Path(published.bundle).read_bytes() == expected


def flights() -> Path | None:
    """Return the file with the month of flights, if it is beside the checkout."""
    path = shared("real") / "nyc-flights-2013-01.jsonl.gz"
    return path if path.exists() else None


@pytest.mark.skipif(flights() is None, reason="the month of flights is not beside this checkout")
@pytest.mark.parametrize("limited", [False, True], ids=["no limit", "20 in 10 minutes"])
async def test_a_month_of_real_flights_is_captured_and_verified(limited: bool) -> None:
    """29,437 events through send and verify."""
    from tests.daemons import command

    config = '[graphs.default]\nmax_per_window = 20\nrate_window = "10m"\n' if limited else ""
    with short_directory() as place, DaemonProcess(place, place / "state", config=config) as daemon:
        await asyncio.to_thread(daemon.start)
        sent = await asyncio.to_thread(
            command, "send", str(flights()), "--socket", str(daemon.socket), "--json", "--label", "month=2013-01"
        )
        assert sent.returncode == 0, sent.stderr
        summary: dict[str, Any] = json.loads(sent.stdout)
        assert (summary["events"], summary["decisions"], summary["rejected"]) == (29_437, 29_437, 0)
        verified = await asyncio.to_thread(command, "verify", summary["bundle"], "--json")
        assert verified.returncode == 0, verified.stdout
        bundle = decode_bundle(Path(summary["bundle"]).read_bytes())
        deferred = sum(record.schedule_at is not None for record in bundle.decisions)
        assert (deferred > 0) == limited
        assert await asyncio.to_thread(daemon.stop) == 0


async def test_a_part_that_is_due_at_a_start_ends_behind_the_events_that_were_undecided() -> None:
    """They share a frame of the journal with events that were decided, and a part ends between two frames."""
    events = [event_frame(name, at)["event"] for at, name in enumerate(["a", "b", "c", "hang", "d"])]
    with short_directory() as place:
        command = json.dumps(puppet_command())
        engine = f'[graphs.default.engine]\nkind = "process"\ncommand = {command}\n'
        config = f'[session]\nin_doubt = "interrupt"\n[rotation]\nmax_events = 3\n{engine}'
        with DaemonProcess(place, place / "state", config=config) as daemon:
            daemon.start()
            reader, writer = await asyncio.open_unix_connection(str(daemon.socket))
            frames = [
                {"type": "hello", "protocol": "ergo-capture.v1"},
                {"type": "open", "graph": "default", "decisions": True},
                {"type": "events", "events": events},
            ]
            writer.write(b"".join(json.dumps(frame).encode() + b"\n" for frame in frames))
            said: list[dict[str, Any]] = []
            async with asyncio.timeout(PATIENCE):
                while sum(frame["type"] == "decision" for frame in said) < 3:
                    said.append(json.loads(await reader.readline()))
            session = next(frame["session"] for frame in said if frame["type"] == "opened")
            await asyncio.to_thread(daemon.kill)
            writer.close()
            await asyncio.to_thread(daemon.start)
            async with CaptureClient(daemon.socket) as client:
                await client.open("default", session=session)
                await client.send(command_event("e", 9))
                published = await client.close()
            parts = [decode_bundle(Path(path).read_bytes()) for path in published.bundles]
            assert [[record.event_id for record in part.events] for part in parts] == [
                ["a", "b", "c", "hang", "d"],
                ["e"],
            ]
