"""A session that waits, for its engine or for the disk, keeps nobody else from anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.daemons import Daemon, event, running_daemon
from tests.doubles.composers import RoomlessComposer
from tests.engine.engines import process_graph
from tests.server.looks import manifests, until

from ergo_capture import decode_bundle
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.server.ops import control as control_module

#: A graph whose engine answers ``hang`` never, and one without an engine.
TWO = process_graph() + '[graphs.plain]\n[shutdown]\ndrain = "300ms"\n'


def published(daemon: Daemon, graph: str) -> list[str]:
    """How the bundles of a graph have ended."""
    return [manifest["ended"] for manifest in manifests(daemon) if manifest["graph"] == graph]


async def test_snapshots_of_others_are_taken_while_one_session_waits_for_its_engine() -> None:
    """snapshot.interval: of what is decided; what is not yet is waited for by nobody."""
    text = TWO + '[snapshot]\ninterval = "10ms"\n'
    async with running_daemon(text) as daemon, daemon.session() as stuck, daemon.session(graph="plain") as wire:
        await stuck.say(event("ok"))
        await stuck.until_ack(1, 1)
        await stuck.say(event("hang"))
        await stuck.until_ack(2)
        await until(lambda: published(daemon, "default") == ["open"])
        await wire.say(event("a"))
        await until(lambda: published(daemon, "plain") == ["open"])


async def test_a_stop_publishes_the_others_while_one_session_waits_for_its_engine() -> None:
    """P10: whichever was opened first."""
    async with running_daemon(TWO) as daemon, daemon.session() as stuck, daemon.session(graph="plain") as wire:
        await stuck.say(event("hang"))
        await stuck.until_ack(1)
        await wire.say(event("a"))
        await wire.until_ack(1)
        daemon.service.stop()
        await until(lambda: published(daemon, "plain") == ["interrupted"])


async def test_an_operators_flush_waits_for_one_session_and_publishes_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And an operator who has gone meanwhile holds none of the few connections; one who only waits does."""
    monkeypatch.setattr(control_module, "HANG_UP_SECONDS", 0.01)
    async with running_daemon(TWO) as daemon, daemon.session() as stuck, daemon.session(graph="plain") as wire:
        await stuck.say(event("hang"))
        await stuck.until_ack(1)
        await wire.say(event("a"))
        await wire.until_ack(1)
        async with daemon.control() as operator, daemon.control() as other:
            await operator.say({"command": "flush"})
            await other.say({"command": "flush"})
            await other.stream.send_eof()
            await until(lambda: published(daemon, "plain") == ["open"])
            await operator.stream.aclose()
            await until(lambda: flushing(daemon) == 1)
            await stuck.stream.aclose()
            (session,) = (s for s in daemon.service.registry.sessions.values() if s.description.graph == "default")
            session.fail(ErgoCaptureError("given up by the test"))
            assert (await other.read())["message"] == "given up by the test"
        await until(lambda: flushing(daemon) == 0)


def flushing(daemon: Daemon) -> int:
    """Operators who are connected."""
    import gc

    return sum(found.clients for found in gc.get_objects() if isinstance(found, control_module._OperatorAdmission))


async def test_a_flush_waits_for_room_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """P8: a full disk is no reason to part with a client."""
    composer = RoomlessComposer(monkeypatch)
    async with running_daemon() as daemon, daemon.session() as wire:
        await wire.say(event("a"), {"type": "flush"}, event("b"))
        await until(lambda: composer.attempts > 2)
        composer.is_full = False
        flushed = await wire.until("flushed")
        assert [e.event_id for e in decode_bundle(Path(flushed["bundle"]).read_bytes()).events] == ["a"]
        await wire.until_ack(2)


async def test_a_flush_that_is_not_possible_does_not_say_that_the_session_has_failed() -> None:
    """It goes on; what cannot be done is said, and why."""
    async with running_daemon() as daemon, daemon.session() as wire:
        (daemon.state / "bundles" / "default").write_text("not a directory")
        await wire.say(event("a"), {"type": "flush"})
        error = (await wire.rest())[-1]
        assert error["code"] == "storage_failed"
        assert "the bundle cannot be published" in error["message"]
        assert "has failed" not in error["message"]
        (daemon.state / "bundles" / "default").unlink()
