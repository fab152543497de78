"""Races between the shutdown and what is under way."""

from __future__ import annotations

import asyncio
import errno
import threading
from typing import Any

import anyio
import pytest
from tests.daemons import event, running_daemon, short_directory
from tests.doubles.gated_storage import GatedStorage
from tests.server.commit.writers import writer_on
from tests.server.looks import DESCRIPTION, manifests, sessions_of, until

from ergo_capture.bundle.writer.compose import ComposeJob, compose_bundle
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.recovery import RecoveredSession
from ergo_capture.journal.wal import Journal
from ergo_capture.kernel.events import ExternalEvent, ExternalEventKind
from ergo_capture.server import publisher as publisher_module
from ergo_capture.server.session.decision_log import JournalDecisionLog
from ergo_capture.storage import RealStorage, StorageError


async def test_a_bundle_that_cannot_be_written_does_not_delay_the_shutdown() -> None:
    """P10: the other sessions are drained, the journal is sealed, and the exit code reports what is undone."""
    text = "[graphs.one]\n[graphs.two]\n"
    async with running_daemon(text) as daemon, daemon.session(graph="one") as one, daemon.session(graph="two") as two:
        await one.say(event("a"))
        await one.until_ack(1, 1)
        await two.say(event("b"))
        await two.until_ack(1, 1)
        (daemon.state / "bundles" / "one").write_text("not a directory")
        daemon.service.stop()
        assert [f["code"] for f in await two.rest() if f["type"] == "error"] == ["shutting_down"]
        assert [f["code"] for f in await one.rest() if f["type"] == "error"] == ["shutting_down"]
        assert daemon.service.unfinished
        assert [m["graph"] for m in manifests(daemon)] == ["two"]


async def test_a_close_under_way_is_answered_during_a_shutdown() -> None:
    """The session ends and is published; its client cannot ask for the bundle again."""
    storage = GatedStorage()
    async with running_daemon(storage=storage) as daemon, daemon.session() as wire:
        await wire.say(event("a"))
        await wire.until_ack(1, 1)
        with storage.gate("write", ".journal"):
            await wire.say({"type": "close"})
            await storage.until_held()
            daemon.service.stop()
            await until(lambda: daemon.service.components.phase == "stopping")
            await anyio.wait_all_tasks_blocked()
        assert [f["type"] for f in await wire.rest() if f["type"] != "ack"] == ["closed"]


async def test_a_flush_under_way_is_answered_during_a_shutdown() -> None:
    """The client is then told that the daemon stops."""
    storage = GatedStorage()
    async with running_daemon(storage=storage) as daemon, daemon.session() as wire:
        with storage.gate("write", ".journal"):
            await wire.say(event("a"), {"type": "flush"}, event("b"))
            await storage.until_held()
            daemon.service.stop()
            await until(lambda: daemon.service.components.phase == "stopping")
            await anyio.wait_all_tasks_blocked()
        frames = [f for f in await wire.rest() if f["type"] != "ack"]
        assert [f["type"] for f in frames] == ["flushed", "error"]
        assert frames[-1]["code"] == "shutting_down"


async def test_a_client_that_never_reads_does_not_delay_the_shutdown() -> None:
    """P10: also with write_timeout off."""
    text = '[limits]\nwrite_timeout = "0s"\n'
    async with running_daemon(text) as daemon, daemon.session(decisions=True) as wire:
        (session,) = sessions_of(daemon)
        (connection,) = daemon.service.clients.connections
        number = 0
        while not connection.conversation.outbox.pending_bytes:
            number += 1
            await wire.say(*(event(f"{'e' * 900}{number}-{n}") for n in range(100)))
            await until(lambda: session.decided == session.admission.admitted)
        daemon.service.stop()
        await until(lambda: not daemon.service.clients.connections)
        assert connection.error is not None


async def test_an_abandoned_writer_ends_even_if_the_disk_is_full() -> None:
    """P10: the attempt under way is the last one, whatever its outcome."""
    storage = GatedStorage()
    with short_directory() as place:
        journal, _ = Journal.open(place, storage)
        writer = writer_on(journal, retry_delay=0.01)
        running = asyncio.create_task(writer.run())
        log = JournalDecisionLog(RecoveredSession.new(1, DESCRIPTION, 1), lambda *_: None, lambda _: None)
        log.log_plain([ExternalEvent.mechanical("a", ExternalEventKind.Command)], 1)
        with storage.gate("write", ".journal"):
            writer.submit_lazily(log, urgent=True)
            await storage.until_held()
            storage.fail_next("write", *[errno.ENOSPC] * 100_000)
            writer.close()
            writer.abandon()
        with anyio.fail_after(20):
            await running
        journal.close()


async def test_the_state_directory_stays_locked_until_every_thread_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """P12: a bundle that is still being written after the drain's time belongs to a daemon that holds the lock."""
    begun, go_on = threading.Event(), threading.Event()

    def compose(job: ComposeJob) -> Any:
        begun.set()
        go_on.wait(20)
        return compose_bundle(job)

    monkeypatch.setattr(publisher_module, "compose_bundle", compose)
    async with running_daemon('[shutdown]\ndrain = "10ms"\n') as daemon, daemon.session() as wire:
        await wire.say(event("a"), {"type": "flush"})
        await until(begun.is_set)
        daemon.service.stop()
        said = ""
        with anyio.fail_after(20):
            while "daemon.stopped" not in (said := said + capsys.readouterr().out):
                await asyncio.sleep(0.001)
        await anyio.wait_all_tasks_blocked()
        try:
            with pytest.raises(StorageError):
                RealStorage().lock(daemon.state / "lock")
        finally:
            go_on.set()


async def test_a_rotation_cut_off_by_the_shutdown_is_not_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing more is written to the journal after the drain; the next start publishes what is left."""
    storage = GatedStorage()
    text = '[rotation]\nmax_events = 1\n[shutdown]\ndrain = "10ms"\n'
    with short_directory() as place:
        async with running_daemon(text, storage=storage, state=place / "state") as daemon, daemon.session() as wire:
            with storage.gate("write", ".journal", after=2):
                await wire.say(event("a"))
                await wire.until_ack(1, 1)
                await storage.until_held()
                daemon.service.stop()
                await until(lambda: daemon.service.writer.is_closed)
        assert "session.failed" not in capsys.readouterr().out
        async with running_daemon(state=place / "state") as daemon:
            await until(lambda: [(m["ended"], m["events"]) for m in manifests(daemon)[:1]] == [("rotated", 1)])


async def test_a_start_that_cannot_delete_a_segment_ends_with_an_error() -> None:
    """P4: start-up ends by itself, also where the writer runs already."""
    with short_directory() as place:
        for fault in (None, errno.EIO):
            storage = GatedStorage()
            storage.fail_next("remove", fault)
            async with running_daemon(storage=storage, state=place / "state") as daemon, daemon.session() as wire:
                await wire.say(event("a"), {"type": "close"})
                await wire.until("closed")
                await until(lambda: not sessions_of(daemon))
        storage = GatedStorage()
        storage.fail_next("remove", errno.EIO)
        with pytest.raises(ErgoCaptureError, match="remove"), anyio.fail_after(20):
            async with running_daemon(storage=storage, state=place / "state"):
                pass
