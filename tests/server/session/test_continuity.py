"""A client that states what was acknowledged either finds all of it or is told of the loss."""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.daemons import Daemon, Wire, event, running_daemon, short_directory
from tests.server.looks import until

from ergo_capture.bundle.manifest import Manifest, read_manifest
from ergo_capture.config.settings import RotationConfig
from ergo_capture.journal.frame import IGNORABLE, FrameKind
from ergo_capture.journal.reader import read_frames
from ergo_capture.journal.scan import scan
from ergo_capture.server.session.parts import RotationRule
from ergo_capture.storage import RealStorage

#: Sessions that nobody resumes stay open.
STAY = '[session]\nlinger = "1h"\n'
LINGER = '[session]\nlinger = "10ms"\n'
ROTATE = "[rotation]\nmax_events = 5\n"


def events(first: int, last: int) -> list[dict[str, Any]]:
    """Return events e<first> to e<last>."""
    return [event(f"e{number}", number) for number in range(first, last + 1)]


async def acknowledged(wire: Wire, first: int, last: int, offset: int = 0) -> dict[str, Any]:
    """Send events; return the acknowledgement that covers and decides all of them."""
    await wire.say(*events(first, last))
    return (await wire.until_ack(last - first + 1 + offset, last - first + 1 + offset))[-1]


async def resume(wire: Wire, session: str, **fields: Any) -> dict[str, Any]:
    """Send hello and open; return the answer to open, whatever it is."""
    await wire.say({"type": "hello", "protocol": "ergo-capture.v1"})
    assert "acknowledged" in (await wire.read())["features"]
    await wire.say({"type": "open", "session": session, **fields})
    return await wire.read()


def told(number: int, last: str | None = None) -> dict[str, Any]:
    """Return the claim of a client to which so many events were acknowledged."""
    return {"events": number, "last_event_id": last or f"e{number}"}


def manifests(daemon: Daemon) -> list[Manifest]:
    """Return all manifests, by name."""
    return [read_manifest(path) for path in sorted((daemon.state / "bundles").rglob("*.manifest.json"))]


async def ended(daemon: Daemon) -> Manifest:
    """Return the manifest of the only session, once it has ended."""
    await until(lambda: daemon.service.registry.finished == 1)
    (manifest,) = manifests(daemon)
    return manifest


@asynccontextmanager
async def set_back(text: str = STAY, *, before: int = 6, after: int = 10) -> AsyncIterator[tuple[Daemon, str]]:
    """Run a daemon on its state as of ``before`` of ``after`` acknowledged events; yield it and the session."""
    with short_directory() as place:
        state, copy = place / "state", place / "copy"
        async with running_daemon(text, state) as daemon, daemon.session() as wire:
            await acknowledged(wire, 1, before)
            shutil.copytree(state, copy, ignore=shutil.ignore_patterns("*.sock"))
            ack = await acknowledged(wire, before + 1, after, before)
            assert ack["events"] == after
            session = wire.opened["session"]
        shutil.rmtree(state)
        shutil.move(copy, state)
        async with running_daemon(text, state) as daemon:
            yield daemon, session


async def test_an_ack_says_how_many_events_the_session_has() -> None:
    """It counts over resumes and without rejected events, while ``accepted`` counts on the connection."""
    async with running_daemon() as daemon:
        async with daemon.session() as wire:
            assert (await acknowledged(wire, 1, 3))["events"] == 3
            session = wire.opened["session"]
        async with daemon.wire() as wire:
            await wire.open(session=session)
            await wire.say(*events(3, 5))
            ack = (await wire.until_ack(3, 3))[-1]
            assert (ack["accepted"], ack["events"]) == (3, 5)


async def test_a_resume_is_refused_where_acknowledged_events_are_missing() -> None:
    """The error has both numbers and the last held id; the session is neither quarantined nor over."""
    async with set_back() as (daemon, session):
        async with daemon.wire() as wire:
            answer = await resume(wire, session, acknowledged=told(10))
            assert (answer["type"], answer["code"]) == ("error", "acknowledged_lost")
            assert answer["lost"] == {"acknowledged": 10, "held": 6, "last_event_id": "e6"}
        status = (await daemon.ask("status"))["status"]
        assert status["totals"]["acknowledged_lost"] == status["refusals"]["acknowledged_lost"] == 1
        assert status["running"]["quarantined"] == {}
        (running,) = status["running"]["sessions"]
        assert (running["state"], running["lost"]["acknowledged"], running["lost"]["held"]) == ("open", 10, 6)


async def test_a_session_that_lacks_acknowledged_events_ends_as_lost() -> None:
    """This is so if no client chooses to go on."""
    async with set_back() as (daemon, session):
        async with daemon.wire() as wire:
            assert (await resume(wire, session, acknowledged=told(10)))["code"] == "acknowledged_lost"
        registry = daemon.service.registry
        registry.apply(registry.limits, RotationRule(RotationConfig()), 0.0, dict(registry.graphs))
        async with daemon.wire() as wire:
            await wire.open(session=session)
        manifest = await ended(daemon)
        assert (manifest.ended, manifest.events, manifest.last_event_id) == ("lost", 6, "e6")
        assert manifest.lost is not None
        assert (manifest.lost.acknowledged, manifest.lost.held) == (10, 6)
        assert (manifest.lost.last_acknowledged, manifest.lost.last_held) == ("e10", "e6")


async def test_a_client_that_says_nothing_does_not_make_a_known_loss_complete() -> None:
    """It may resume and close; the bundle still ends as lost."""
    async with set_back() as (daemon, session):
        async with daemon.wire() as wire:
            assert (await resume(wire, session, acknowledged=told(10)))["code"] == "acknowledged_lost"
        async with daemon.wire() as wire:
            await wire.open(session=session)
            await wire.say({"type": "close"})
            await wire.until("closed")
        assert (await ended(daemon)).ended == "lost"


async def test_resume_after_loss_goes_on_and_the_manifest_says_what_was_lost() -> None:
    """Later events follow those that were held."""
    async with set_back() as (daemon, session), daemon.wire() as wire:
        opened = await resume(wire, session, acknowledged=told(10), resume_after_loss=True)
        assert (opened["type"], opened["accepted"], opened["last_event_id"]) == ("opened", 6, "e6")
        assert (await acknowledged(wire, 11, 12))["events"] == 8
        await wire.say({"type": "close"})
        await wire.until("closed")
        manifest = await ended(daemon)
        assert (manifest.ended, manifest.events) == ("complete", 8)
        assert manifest.lost is not None
        assert (manifest.lost.acknowledged, manifest.lost.held, manifest.lost.resumed) == (10, 6, True)


async def test_a_loss_is_remembered_over_a_restart() -> None:
    """The LOSS frame is durable before the client is answered; ergo-capture 0.1.0 skips it."""
    with short_directory() as place:
        state, copy = place / "state", place / "copy"
        async with set_back() as (daemon, session), daemon.wire() as wire:
            assert (await resume(wire, session, acknowledged=told(10)))["code"] == "acknowledged_lost"
            shutil.copytree(daemon.state, copy, ignore=shutil.ignore_patterns("*.sock"))
        shutil.move(copy, state)
        found = scan(state / "journal", RealStorage())
        (frames,) = found.sessions.values()
        (frame,) = read_frames(state / "journal", frames.losses, RealStorage())
        assert (frame.header.kind, frame.header.flags) == (FrameKind.LOSS, IGNORABLE)
        async with running_daemon(LINGER, state) as daemon:
            manifest = await ended(daemon)
            assert (manifest.ended, manifest.lost and manifest.lost.acknowledged) == ("lost", 10)


async def test_parts_after_a_loss_say_it_too() -> None:
    """They do so after a restart too, when the segments of earlier parts are gone."""
    with short_directory() as place:
        state = place / "state"
        text = ROTATE + "[journal]\nsegment_bytes = 4096\n" + STAY
        async with set_back(text, before=3) as (daemon, session):
            async with daemon.wire() as wire:
                await resume(wire, session, acknowledged=told(10), resume_after_loss=True)
                for first in range(11, 61, 5):
                    await acknowledged(wire, first, first + 4, first - 11)
                running = daemon.service.components.running
                assert running is not None
                await until(lambda: min(running.journal.segments) > 1)
            shutil.copytree(daemon.state, state, ignore=shutil.ignore_patterns("*.sock"))
        (frames,) = scan(state / "journal", RealStorage()).sessions.values()
        assert frames.losses == []
        async with running_daemon(text, state) as daemon, daemon.wire() as wire:
            await wire.open(session=session)
            await acknowledged(wire, 61, 61)
            await wire.say({"type": "close"})
            await wire.until("closed")
            found = manifests(daemon)
            assert len(found) > 2
            assert {manifest.lost and (manifest.lost.acknowledged, manifest.lost.held) for manifest in found} == {
                (10, 3)
            }


@pytest.mark.parametrize(
    ("claim", "lost"),
    [
        (told(6), False),
        (told(4), False),
        ({"events": 6}, False),
        ({"events": 0}, False),
        (told(7), True),
        (told(6, "x"), True),
        (told(4, "x"), True),
    ],
)
async def test_the_id_of_the_last_event_is_compared_too(claim: dict[str, Any], lost: bool) -> None:
    """A claim of as many or fewer events is a loss if its last id is not among those held."""
    async with running_daemon() as daemon:
        async with daemon.session() as wire:
            await acknowledged(wire, 1, 6)
            session = wire.opened["session"]
        async with daemon.wire() as wire:
            answer = await resume(wire, session, acknowledged=claim)
            assert answer["type"] == ("error" if lost else "opened")
            assert answer.get("code", "") == ("acknowledged_lost" if lost else "")


async def test_an_id_that_a_rotated_session_has_forgotten_is_no_loss() -> None:
    """A start does not read the ids of earlier parts again."""
    with short_directory() as place:
        text = ROTATE + STAY
        async with running_daemon(text, place / "state") as daemon, daemon.session() as wire:
            session = wire.opened["session"]
            await acknowledged(wire, 1, 5)
            await acknowledged(wire, 6, 12, 5)
        async with running_daemon(text, place / "state") as daemon, daemon.wire() as wire:
            assert (await resume(wire, session, acknowledged=told(4)))["type"] == "opened"


async def test_a_session_that_is_not_known_at_all_is_lost() -> None:
    """The state directory is empty."""
    async with running_daemon() as daemon, daemon.wire() as wire:
        answer = await resume(wire, "20260101T000000Z-1-00000000", acknowledged=told(10))
        assert answer["code"] == "acknowledged_lost"
        assert answer["lost"] == {"acknowledged": 10, "held": 0, "last_event_id": None}


@pytest.mark.parametrize(
    ("claim", "code"),
    [(told(6), "unknown_session"), (told(7), "acknowledged_lost"), (told(6, "x"), "acknowledged_lost")],
)
async def test_a_finished_session_is_lost_unless_its_bundle_covers_what_was_acknowledged(
    claim: dict[str, Any], code: str
) -> None:
    """If it does, the hint has the path of the bundle."""
    async with running_daemon() as daemon:
        async with daemon.session() as wire:
            await acknowledged(wire, 1, 6)
            session = wire.opened["session"]
            await wire.say({"type": "close"})
            bundle = (await wire.until("closed"))["bundle"]
        async with daemon.wire() as wire:
            answer = await resume(wire, session, acknowledged=claim)
            assert answer["code"] == code
            assert (bundle in answer["hint"]) == (code == "unknown_session")


async def test_resume_after_loss_goes_on_in_a_new_session_where_the_whole_session_is_gone() -> None:
    """The manifest of the new session names the lost one."""
    async with running_daemon() as daemon, daemon.wire() as wire:
        opened = await resume(wire, "gone", acknowledged=told(10), resume_after_loss=True)
        assert (opened["type"], opened["resumed"], opened["accepted"]) == ("opened", False, 0)
        assert opened["session"] != "gone"
        await acknowledged(wire, 11, 12)
        await wire.say({"type": "close"})
        await wire.until("closed")
        manifest = await ended(daemon)
        assert manifest.lost is not None
        assert (manifest.lost.acknowledged, manifest.lost.held, manifest.lost.session) == (10, 0, "gone")


async def test_a_session_named_like_a_path_finds_no_bundle_outside() -> None:
    """The name is chosen by the client."""
    async with running_daemon() as daemon:
        outside = daemon.state / "bundles" / "g"
        outside.mkdir(parents=True)
        for name in ("../g/x", "..", "g/x", "\0", "*"):
            async with daemon.wire() as wire:
                assert (await resume(wire, name, acknowledged=told(1)))["code"] == "acknowledged_lost"


async def test_what_was_acknowledged_needs_a_session() -> None:
    """A claim without a session would be about nothing."""
    async with running_daemon() as daemon, daemon.wire() as wire:
        await wire.say({"type": "hello", "protocol": "ergo-capture.v1"}, {"type": "open", "acknowledged": told(1)})
        assert (await wire.until("error"))["code"] == "bad_frame"


async def test_a_long_last_event_id_is_refused() -> None:
    """It would be kept in the journal and in the manifest."""
    async with running_daemon() as daemon, daemon.session() as wire:
        session = wire.opened["session"]
        async with daemon.wire() as other:
            assert (await resume(other, session, acknowledged=told(1, "x" * 1025)))["code"] == "limit"


async def test_claims_write_one_frame_however_often_they_are_repeated() -> None:
    """A client that tries again for ever must not fill the journal."""
    async with set_back() as (daemon, session):
        for _ in range(3):
            async with daemon.wire() as wire:
                assert (await resume(wire, session, acknowledged=told(10)))["code"] == "acknowledged_lost"
        found = scan(daemon.state / "journal", RealStorage())
        assert [len(frames.losses) for frames in found.sessions.values()] == [1]
        assert daemon.service.registry.losses == 3


async def test_the_log_and_the_metrics_tell_of_a_loss(capfd: pytest.CaptureFixture[str]) -> None:
    """An error line has both numbers and both ids."""
    async with set_back() as (daemon, session), daemon.wire() as wire:
        await resume(wire, session, acknowledged=told(10))
        text = (await daemon.ask("metrics"))["text"]
        assert re.search(r"^ergo_capture_acknowledged_lost_total(\{.*\})? 1\.0$", text, re.MULTILINE)
    logged = capfd.readouterr()
    assert "session.lost" in logged.err + logged.out


async def test_a_session_that_came_back_open_is_not_lost_where_its_finished_bundle_is_there() -> None:
    """The journal was restored and the bundles were not: the bundle has all acknowledged events."""
    with short_directory() as place:
        state, copy = place / "state", place / "copy"
        async with running_daemon(STAY, state) as daemon, daemon.session() as wire:
            await acknowledged(wire, 1, 6)
            shutil.copytree(state / "journal", copy)
            await acknowledged(wire, 7, 10, 6)
            await wire.say({"type": "close"})
            bundle = (await wire.until("closed"))["bundle"]
            session = wire.opened["session"]
        shutil.rmtree(state / "journal")
        shutil.move(copy, state / "journal")
        async with running_daemon(STAY, state) as daemon:
            async with daemon.wire() as wire:
                answer = await resume(wire, session, acknowledged=told(10))
                assert (answer["code"], answer["message"]) == ("unknown_session", f"session {session!r} is not open")
                assert bundle in answer["hint"]
            async with daemon.wire() as wire:
                assert (await resume(wire, session, acknowledged=told(11)))["code"] == "acknowledged_lost"


async def test_a_session_of_which_nothing_was_acknowledged_goes_on_in_a_new_one() -> None:
    """Nothing is lost, so a client that may go on after a loss need not end because an empty session is gone."""
    async with running_daemon() as daemon:
        async with daemon.wire() as wire:
            claim = {"events": 0}
            assert (await resume(wire, "gone", acknowledged=claim, resume_after_loss=True))["type"] == "opened"
            await wire.say({"type": "close"})
            await wire.until("closed")
        async with daemon.wire() as wire:
            assert (await resume(wire, "gone", acknowledged=claim))["code"] == "unknown_session"
        assert (await ended(daemon)).lost is None
