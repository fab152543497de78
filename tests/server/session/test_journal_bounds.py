"""The journal stays bounded whatever a session keeps of it, and a feed runs for ever on the defaults."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.daemons import Daemon, DaemonProcess, event, running_daemon, short_directory
from tests.server.looks import manifests, sessions_of, until

from ergo_capture.bundle.verify import verify_bundle
from ergo_capture.client import CaptureClient
from ergo_capture.config import Config
from ergo_capture.config.settings import RotationConfig
from ergo_capture.journal.scan import scan
from ergo_capture.server.session import parts
from ergo_capture.server.session.parts import RotationRule
from ergo_capture.storage import RealStorage
from ergo_capture.units import Size

#: Segments of 64 KiB, of which a session may keep four.
SMALL = '[journal]\nsegment_bytes = "64KiB"\n[rotation]\nmax_journal_bytes = "256KiB"\n'
#: Further segments that may be there: the one that is written, one created ahead, one that is being deleted.
BOUND = 8
LINE = b'{"type":"event","event":{"event_id":"e%d","kind":"Command","at":{"secs":%d,"nanos":0}}}\n'


def segments(daemon: Daemon) -> list[Path]:
    """Return the segments that are there."""
    return sorted((daemon.state / "journal").glob("*.journal"))


@asynccontextmanager
async def flood(daemon: Daemon) -> AsyncIterator[Any]:
    """Yield a function that writes about a mebibyte to the journal in sessions of their own."""
    count = 0

    async def pour() -> None:
        nonlocal count
        count += 1
        async with daemon.session() as wire:
            for batch in range(8):
                said = (event(f"{count}-{batch}-{n}", payload={"x": "y" * 16_000}) for n in range(8))
                await wire.say(*said)
                await wire.until_ack(8 * batch + 8)
            await wire.say({"type": "close"})
            await wire.until("closed")
        assert len(segments(daemon)) <= 16 + BOUND

    yield pour


async def test_an_idle_session_with_events_keeps_no_more_of_the_journal_than_it_may() -> None:
    """Its part ends as in a rotation; it goes on in the next one, over a restart."""
    with short_directory() as place:
        async with running_daemon(SMALL, place / "state") as daemon, daemon.session() as idle:
            await idle.say(event("a"), event("b"))
            await idle.until_ack(2, 2)
            async with flood(daemon) as pour:
                for _ in range(4):
                    await pour()
            await until(lambda: len(segments(daemon)) <= BOUND)
            await idle.say(event("c"))
            await idle.until_ack(3, 3)
            async with flood(daemon) as pour:
                await pour()
        async with running_daemon(SMALL, place / "state") as daemon:
            async with daemon.session(session=idle.opened["session"]) as again:
                assert (again.opened["accepted"], again.opened["last_event_id"]) == (3, "c")
                await again.say(event("d"), {"type": "close"})
                closed = await again.until("closed")
            assert closed["events"] == 4
            assert len(closed["bundles"]) >= 3
            ids = [e["event_id"] for path in closed["bundles"] for e in _events(Path(path))]
            assert ids == ["a", "b", "c", "d"]


@pytest.mark.parametrize("rotated", [False, True], ids=["new", "rotated"])
async def test_an_idle_session_whose_part_is_empty_moves_forward_without_a_bundle(
    rotated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does so repeatedly, and over a kill: the frame that describes the beginning of its part is repeated."""
    monkeypatch.setattr(parts, "FULL_SECONDS", 0.01)
    text = SMALL + "max_events = 2\n"
    with short_directory() as place:
        async with running_daemon(text, place / "state") as daemon, daemon.session() as idle:
            if rotated:
                await idle.say(event("a"), event("b"))
                await idle.until_ack(2, 2)
                await until(lambda: sessions_of(daemon)[0].parts.current.number == 2)
            async with flood(daemon) as pour:
                for _ in range(4):
                    await pour()
            await until(lambda: len(segments(daemon)) <= BOUND)
            (holder,) = sessions_of(daemon)
            mine = [m for m in manifests(daemon) if m["session"] == holder.description.session]
            assert len(mine) == rotated
            found = scan(daemon.state / "journal", RealStorage())
            assert not found.damage
        async with running_daemon(state=place / "state") as daemon:
            assert not daemon.service.registry.quarantined
            async with daemon.session(session=idle.opened["session"]) as again:
                assert again.opened["accepted"] == 2 * rotated
                await again.say(event("c"), {"type": "close"})
                closed = await again.until("closed")
                assert (closed["events"], len(closed["bundles"])) == (1 + 2 * rotated, 1 + rotated)


async def test_a_part_moves_forward_without_an_event_to_be_written_with() -> None:
    """No client may send any more; decisions may wait."""
    async with running_daemon('[journal]\ndecision_delay = "1h"\n') as daemon, daemon.session():
        (session,) = sessions_of(daemon)
        moved = anyio.Event()
        session.parts.move_forward(session._is_empty, moved.set)
        await until(moved.is_set)


async def test_events_that_come_while_a_part_moves_forward_are_kept() -> None:
    """The frame that begins the part is not written after them."""
    with short_directory() as place:
        state = place / "state"
        async with running_daemon(state=state) as daemon, daemon.session() as wire:
            (session,) = sessions_of(daemon)
            for number in range(20):
                session.parts.move_forward(session._is_empty, lambda: None)
                await wire.say(event(f"e{number}"))
                session.parts.move_forward(session._is_empty, lambda: None)
            await wire.until_ack(20, 20)
        async with running_daemon(state=state) as daemon, daemon.session(session=wire.opened["session"]) as again:
            assert again.opened["accepted"] == 20


async def test_a_part_may_keep_as_many_bytes_of_the_journal_as_configured() -> None:
    """It ends, or moves forward, with the first byte more."""
    async with running_daemon() as daemon, daemon.session():
        (session,) = sessions_of(daemon)
        registry = daemon.service.registry
        kept = sum(registry._journal.segments.values())
        for limit, is_overdue in ((kept, False), (kept - 1, True)):
            session.rotation = RotationRule(RotationConfig(max_journal_bytes=Size(limit)))
            registry._bound_journal()
            assert session.parts.current.is_overdue == is_overdue


async def test_the_status_names_who_keeps_the_journal() -> None:
    """It also has the bytes; if only the current segment is needed, it names nobody."""
    text = '[journal]\nsegment_bytes = "64KiB"\n'
    async with running_daemon(text) as daemon, daemon.session() as idle:
        assert (await daemon.ask("status"))["status"]["running"]["journal_holder"] is None
        await idle.say(event("a"))
        await idle.until_ack(1, 1)
        async with flood(daemon) as pour:
            await pour()
        holder = (await daemon.ask("status"))["status"]["running"]["journal_holder"]
        assert holder["session"] == idle.opened["session"]
        assert (holder["quarantined"], holder["segment"]) == (False, 1)
        journal = daemon.service.registry._journal
        kept = [size for number, size in journal.segments.items() if number < journal.current_segment]
        assert holder["bytes"] == sum(kept) >= 1 << 19


async def test_sessions_of_one_user_that_run_out_of_ids_end_their_parts() -> None:
    """Several feeds of one user go on for ever: their parts end before there is no memory for ids."""
    text = '[limits]\nuser_ids_bytes = "512KiB"\n'
    async with running_daemon(text) as daemon, daemon.session() as one, daemon.session() as two:
        for start in range(0, 8_000, 200):
            for name, wire in (("a", one), ("b", two)):
                await wire.say(*(event(f"{name}{n}") for n in range(start, start + 200)))
            for wire in (one, two):
                await wire.until_ack(start + 200, start + 200)
        for wire in (one, two):
            await wire.say({"type": "close"})
            closed = await wire.until("closed")
            assert closed["events"] == 8_000
            assert len(closed["bundles"]) > 2
            assert sum(len(_events(Path(path))) for path in closed["bundles"]) == 8_000


def test_the_defaults_rotate() -> None:
    """A feed that never ends thus needs no configuration."""
    rotation = Config().rotation
    assert (rotation.max_events, rotation.max_bytes, rotation.max_journal_bytes) == (1_000_000, 1 << 30, 2 << 30)


@pytest.mark.soak
async def test_a_feed_runs_on_the_defaults_with_kills_at_random() -> None:
    """Six million events, in seven bundles that hold each of them once."""
    await _feed(6_000_000, 8, "")


async def test_a_feed_runs_with_kills_at_random() -> None:
    """The same with small parts."""
    await _feed(30_000, 2, "[rotation]\nmax_events = 5000\n")


async def _feed(count: int, kills: int, text: str) -> None:
    with short_directory() as place:
        daemon = DaemonProcess(place, place / "state", config=text).start()
        try:
            async with CaptureClient(str(daemon.socket), window=4096, give_up_after=60) as client:
                await client.open()
                at = sorted(random.sample(range(count // 10, count), kills))
                for number in range(count):
                    await client.send_line(LINE % (number, number), f"e{number}")
                    if at and number == at[0]:
                        at.pop(0)
                        daemon.kill()
                        await anyio.to_thread.run_sync(daemon.start)
                published = await client.close()
            assert published.events == count
            assert client.rejected == 0
            verdicts = [verify_bundle(Path(path)) for path in published.bundles]
            assert all(verdict.ok for verdict in verdicts)
            assert sum(verdict.events for verdict in verdicts) == count
            assert len(published.bundles) >= 3
        finally:
            daemon.stop()


def _events(path: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads(path.read_bytes())["events"]
    return events
