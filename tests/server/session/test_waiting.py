"""A session that waits for its engine or for the disk does not hold up other sessions."""

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

#: A graph whose engine never answers ``hang``, and one with the fixed engine.
TWO_GRAPHS = process_graph() + '[graphs.plain]\n[shutdown]\ndrain = "300ms"\n'


def published(daemon: Daemon, graph: str) -> list[str]:
    """Return ``ended`` of the graph's manifests."""
    return [manifest["ended"] for manifest in manifests(daemon) if manifest["graph"] == graph]


async def test_snapshots_of_others_are_taken_while_one_session_waits_for_its_engine() -> None:
    """snapshot.interval: a snapshot holds what is decided, and waits for nothing else."""
    text = TWO_GRAPHS + '[snapshot]\ninterval = "10ms"\n'
    async with running_daemon(text) as daemon, daemon.session() as stuck, daemon.session(graph="plain") as wire:
        await stuck.say(event("ok"))
        await stuck.until_ack(1, 1)
        await stuck.say(event("hang"))
        await stuck.until_ack(2)
        await until(lambda: published(daemon, "default") == ["open"])
        await wire.say(event("a"))
        await until(lambda: published(daemon, "plain") == ["open"])


async def test_a_stop_publishes_the_others_while_one_session_waits_for_its_engine() -> None:
    """P10: the session that waits was opened first."""
    async with running_daemon(TWO_GRAPHS) as daemon, daemon.session() as stuck, daemon.session(graph="plain") as wire:
        await stuck.say(event("hang"))
        await stuck.until_ack(1)
        await wire.say(event("a"))
        await wire.until_ack(1)
        daemon.service.stop()
        await until(lambda: published(daemon, "plain") == ["open"])


async def test_an_operators_flush_waits_for_one_session_and_publishes_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An operator that has closed its connection meanwhile is forgotten; one that half-closed it still gets its answer."""
    monkeypatch.setattr(control_module, "HANG_UP_SECONDS", 0.01)
    async with running_daemon(TWO_GRAPHS) as daemon, daemon.session() as stuck, daemon.session(graph="plain") as wire:
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
    """Return the number of connected operators."""
    import gc

    return sum(found.clients for found in gc.get_objects() if isinstance(found, control_module._OperatorAdmission))


async def test_a_flush_waits_for_room_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """P8: the client stays connected while the disk is full."""
    composer = RoomlessComposer(monkeypatch)
    async with running_daemon() as daemon, daemon.session() as wire:
        await wire.say(event("a"), {"type": "flush"}, event("b"))
        await until(lambda: composer.attempts > 2)
        composer.is_full = False
        flushed = await wire.until("flushed")
        assert [e.event_id for e in decode_bundle(Path(flushed["bundle"]).read_bytes()).events] == ["a"]
        await wire.until_ack(2)


async def test_a_flush_that_fails_does_not_report_the_session_as_failed() -> None:
    """The error says that the bundle cannot be published, and why."""
    async with running_daemon() as daemon, daemon.session() as wire:
        (daemon.state / "bundles" / "default").write_text("not a directory")
        await wire.say(event("a"), {"type": "flush"})
        error = (await wire.rest())[-1]
        assert error["code"] == "storage_failed"
        assert "the bundle cannot be published" in error["message"]
        assert "has failed" not in error["message"]
        (daemon.state / "bundles" / "default").unlink()
