"""The frames that a session writes to the journal, one for each step, and their content."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.adapter.cases import graph_id
from tests.daemons import Daemon, event, running_daemon, short_directory
from tests.doubles.composers import RoomlessComposer
from tests.egress.hosted import TWO, configuration, event_lines, good, intents_of
from tests.journal.journals import frames_of
from tests.server.looks import sessions_of, until
from tests.server.session.test_adapters import add, daemon_with

from ergo_capture.journal.frame import FrameKind, Position
from ergo_capture.journal.payloads import (
    Ack,
    Closing,
    LeftOver,
    Loss,
    Outcome,
    Publication,
    Rotation,
    SessionDescription,
)
from ergo_capture.journal.reader import read_frames
from ergo_capture.server.session import parts
from ergo_capture.server.session.session import SessionState
from ergo_capture.storage import RealStorage

BODIES: dict[int, Any] = {
    FrameKind.OPEN: SessionDescription,
    FrameKind.ROTATE: Rotation,
    FrameKind.CLOSE: Closing,
    FrameKind.PUBLISHED: Publication,
    FrameKind.LOSS: Loss,
    FrameKind.OUTCOME: Outcome,
    FrameKind.ACK: Ack,
}
#: RFC 3339 in UTC, to the millisecond.
TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")


class Written(msgspec.Struct):
    """A frame in the journal."""

    kind: FrameKind
    session: int
    first: int
    count: int
    #: Decoded, where it is JSON of one kind.
    body: Any
    position: Position

    @property
    def header(self) -> tuple[FrameKind, int, int]:
        """The frame's kind, index and count."""
        return self.kind, self.first, self.count


def written(daemon: Daemon) -> list[Written]:
    """Return the frames of sessions, in order."""
    found = []
    for path in sorted((daemon.state / "journal").glob("*.journal")):
        headers = frames_of(path)
        positions = [Position(int(path.name[:16]), offset) for _, offset in headers]
        frames = read_frames(path.parent, positions, RealStorage())
        for (header, _), position, frame in zip(headers, positions, frames, strict=True):
            if header.session:
                kind, body = FrameKind(header.kind), bytes(frame.body)
                decoded = msgspec.json.decode(body, type=BODIES[kind]) if kind in BODIES else body
                found.append(Written(kind, header.session, header.first, header.count, decoded, position))
    return found


async def test_each_step_of_a_session_is_a_frame() -> None:
    """A part ends with what the next part needs; the last frame says that nothing remains to be published."""
    async with running_daemon("[rotation]\nmax_events = 2\n") as daemon, daemon.session(labels={"l": "v"}) as wire:
        (session,) = sessions_of(daemon)
        await wire.say(event("a"), event("b"))
        await wire.until_ack(2, 2)
        await wire.say(event("c"))
        await wire.until_ack(3, 3)
        loss = Loss(acknowledged=9, held=3, last_acknowledged="x", last_held="c")
        await session.record_loss(loss)
        await wire.say({"type": "close"})
        closed = await wire.until("closed")
        frames = written(daemon)
        assert [frame.header for frame in frames] == [
            (FrameKind.OPEN, 0, 0),
            (FrameKind.EVENTS, 0, 2),
            (FrameKind.DECISIONS, 0, 2),
            (FrameKind.EVENTS, 2, 1),
            (FrameKind.ROTATE, 2, 0),
            (FrameKind.PUBLISHED, 1, 0),
            (FrameKind.DECISIONS, 2, 1),
            (FrameKind.LOSS, 0, 0),
            (FrameKind.CLOSE, 3, 0),
            (FrameKind.PUBLISHED, 2, 1),
        ]
        assert {frame.session for frame in frames} == {1}
        bodies = {(frame.kind, frame.first): frame.body for frame in frames}
        opening = bodies[FrameKind.OPEN, 0]
        assert (opening.session, opening.graph, opening.labels) == (wire.opened["session"], "default", {"l": "v"})
        assert TIME.match(opening.opened_at)
        rotation = bodies[FrameKind.ROTATE, 2]
        assert rotation == Rotation(
            1, forced=False, rotated_at=rotation.rotated_at, description=opening, last_event_id="c"
        )
        assert TIME.match(rotation.rotated_at)
        assert bodies[FrameKind.LOSS, 0] == loss
        closing = bodies[FrameKind.CLOSE, 3]
        assert closing == Closing("lost", closing.closed_at)
        assert TIME.match(closing.closed_at)
        published = [bodies[FrameKind.PUBLISHED, part] for part in (1, 2)]
        assert [(each.part, each.bundle, each.final) for each in published] == [
            (1, closed["bundles"][0], False),
            (2, closed["bundle"], True),
        ]
        assert session.publication == published[1]


async def test_a_session_without_events_is_closed_without_a_bundle() -> None:
    """Its client has gone; the frame says that nothing remains to be published."""
    async with running_daemon() as daemon, daemon.session():
        (session,) = sessions_of(daemon)
        session.end("interrupted", keep_empty=False, reason="driver_io")
        await session.over.wait()
        _, closing, published = written(daemon)
        assert closing.header == (FrameKind.CLOSE, 0, 0)
        assert (closing.body.ended, closing.body.keep_empty) == ("interrupted", False)
        assert closing.body.interruption is not None
        assert closing.body.interruption.reason == session.reason == "driver_io"
        assert published.header == (FrameKind.PUBLISHED, 1, 1)
        assert published.body == Publication(1, bundle="", manifest="", sha256="", final=True)
        assert session.bundles == []


async def test_the_end_of_an_interrupted_session_says_what_is_left_over() -> None:
    """The frame has the first of these events, their number and the reason."""
    async with daemon_with(text='[limits]\ncontext_bytes = "1KiB"\n') as daemon, daemon.session() as wire:
        names = ("a", "long.b", "c", "d")
        await wire.say({"type": "events", "events": [add(name)["event"] for name in names]}, {"type": "close"})
        await wire.until("closed")
        (closing,) = (frame for frame in written(daemon) if frame.kind is FrameKind.CLOSE)
        assert (closing.first, closing.count) == (2, 2)
        assert closing.body.left_over == LeftOver(2, "c", 2)
        assert closing.body.interruption is not None
        assert closing.body.interruption.reason == "context_full"


async def test_a_part_that_ends_carries_the_store_and_the_count_of_refusals() -> None:
    """The next part begins with them, also after a restart."""
    async with daemon_with(text="[rotation]\nmax_events = 2\n") as daemon, daemon.session() as wire:
        await wire.say(add("a", 101), add("b", 1))
        await wire.until_ack(2, 2)
        await wire.say(add("c", 1, total=1))
        await wire.until_ack(3, 3)
        (session,) = sessions_of(daemon)
        (rotation,) = (frame.body for frame in written(daemon) if frame.kind is FrameKind.ROTATE)
        assert (rotation.store, rotation.refused) == ({"total": 101.0}, 1)
        assert session.parts.current.store == {"total": 101.0}
        assert session.parts.current.number == 2


async def test_an_episode_with_intents_writes_its_outcome_and_an_ack_for_each_but_the_last(tmp_path: Path) -> None:
    """The last ack is in the decision."""
    async with (
        running_daemon(configuration(TWO, tmp_path, good())) as daemon,
        daemon.session(graph=graph_id(TWO)) as wire,
    ):
        for number, line in enumerate(event_lines(TWO)[:2], 1):
            await wire.say(line)
            await wire.until_ack(number, number)
        frames = [frame for frame in written(daemon) if frame.kind in (FrameKind.OUTCOME, FrameKind.ACK)]
        assert [frame.header for frame in frames] == [
            (FrameKind.OUTCOME, 0, 0),
            (FrameKind.ACK, 0, 0),
            (FrameKind.OUTCOME, 1, 0),
            (FrameKind.ACK, 1, 0),
        ]
        assert [(frame.body.index, frame.session) for frame in frames] == [(0, 1), (0, 1), (1, 1), (1, 1)]
        assert [frame.body.ack.intent_id for frame in frames[1::2]] == intents_of(TWO)[0:4:2]
        assert [intent.intent_id for frame in frames[::2] for intent in frame.body.intents] == intents_of(TWO)[:4]
        (session,) = sessions_of(daemon)
        counts = daemon.service.registry.intents[graph_id(TWO)]
        assert (counts, session.egress and session.egress.waits_for) == ({"acknowledged": 4}, "")


@pytest.mark.parametrize("part", [1, 2])
async def test_a_part_that_moves_forward_repeats_the_frames_that_it_begins_with(
    part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frames before them are not needed any more."""
    monkeypatch.setattr(parts, "FULL_SECONDS", 0.0)
    async with running_daemon("[rotation]\nmax_events = 1\n") as daemon, daemon.session() as wire:
        (session,) = sessions_of(daemon)
        if part == 2:
            await wire.say(event("a"))
            await until(lambda: [frame.kind for frame in written(daemon)][-1] is FrameKind.PUBLISHED)
        before = written(daemon)
        session.end_part_soon()
        await until(lambda: not session.parts.current.is_overdue)
        repeated = written(daemon)[len(before) :]
        assert [frame.kind for frame in repeated] == (
            [FrameKind.OPEN] if part == 1 else [FrameKind.ROTATE, FrameKind.PUBLISHED]
        )
        for again in repeated:
            (first,) = (frame for frame in before if frame.header == again.header)
            assert (again.session, again.body) == (first.session, first.body)
        assert session.parts.segment == repeated[0].position.segment


async def test_a_session_that_a_start_finds_closed_is_not_closed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its bundle is missing, and it takes no more events."""
    composer = RoomlessComposer(monkeypatch)
    with short_directory() as place:
        for _ in range(2):
            before = composer.attempts
            async with running_daemon('[shutdown]\ndrain = "20ms"\n', place / "state") as daemon:
                if not before:
                    async with daemon.session() as wire:
                        await wire.say(event("a"), {"type": "close"})
                        await until(lambda: composer.attempts > 0)
                await until(lambda before=before: composer.attempts > before)
                kinds = [frame.kind for frame in written(daemon)]
                assert kinds == [FrameKind.OPEN, FrameKind.EVENTS, FrameKind.DECISIONS, FrameKind.CLOSE]
                (session,) = sessions_of(daemon)
                assert session.state is SessionState.ENDING
