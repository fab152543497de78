"""The status agrees with what happened, at any moment."""

from __future__ import annotations

import errno
from typing import Any

import anyio
from tests.daemons import PATIENCE, Daemon, event, running_daemon
from tests.doubles.faulty_storage import FaultyStorage
from tests.doubles.gated_storage import GatedStorage


async def status_of(daemon: Daemon) -> Any:
    """Return the status, as an operator gets it."""
    return (await daemon.ask("status"))["status"]


async def test_the_status_agrees_with_what_happened() -> None:
    """Events, decisions, commits, clients and watermarks agree with the acknowledgements."""
    async with running_daemon() as daemon, daemon.session() as wire:
        await wire.say(*[event(f"e{n}", n) for n in range(5)])
        await wire.until_ack(5, 5)
        status = await status_of(daemon)
        assert (status["phase"], status["clients"], status["totals"]["sessions_opened"]) == ("serving", 1, 1)
        (session,) = status["running"]["sessions"]
        assert session["session"] == wire.opened["session"]
        assert (session["admitted"], session["accepted"], session["decided"]) == (5, 5, 5)
        assert (session["queued_bytes"], session["owned"], session["state"]) == (0, True, "open")
        writer, commits = status["running"]["writer"], status["running"]["commits"]
        assert (writer["events"], writer["decisions"]) == (5, 5)
        assert sum(commits["seconds"]["counts"]) == sum(commits["events"]["counts"]) == writer["batches"]
        assert commits["bytes"]["sum"] == writer["bytes_written"]
        assert commits["events"]["sum"] == 5
        assert 0 < writer["last_commit_seconds"] <= commits["seconds"]["sum"]
        assert status["running"]["journal"]["segments"] == 1
        assert status["disk_free_bytes"] > 0


async def test_refusals_are_shown_by_code() -> None:
    """Every code is present, so that its rate can be computed before the first refusal."""
    async with running_daemon() as daemon, daemon.session() as wire:
        await wire.say(event("a"), event("a"))
        await wire.until("reject")
        refusals = (await status_of(daemon))["refusals"]
        assert refusals["duplicate_event_id"] == 1
        assert refusals["limit"] == 0


async def test_deferred_episodes_and_what_a_shutdown_waits_for_are_shown() -> None:
    """A shutdown publishes the bundle of a session that holds events, and of no empty one."""
    limited = '[graphs.default]\nmax_per_window = 1\nrate_window = "1h"\n'
    async with running_daemon(limited) as daemon, daemon.session(), daemon.session() as wire:
        await wire.say(event("a"), event("b"))
        await wire.until_ack(2, 2)
        running = (await status_of(daemon))["running"]
        deferred = {session["session"]: session["deferred"] for session in running["sessions"]}
        assert deferred[wire.opened["session"]] == 1
        (waits,) = running["shutdown_waits_for"]
        assert wire.opened["session"] in waits
        assert "bundle of 2 events" in waits


async def test_a_hanging_disk_does_not_delay_the_status() -> None:
    """The free space is unknown; everything else is shown."""
    storage = GatedStorage()
    async with running_daemon(storage=storage) as daemon:
        with storage.gate("free_bytes"):
            status = await status_of(daemon)
            assert storage.waiting == 1
            assert status["disk_free_bytes"] is None
            assert status["phase"] == "serving"


async def test_the_age_of_events_that_wait_for_a_sync_is_shown() -> None:
    """It grows while the commit takes, and is zero when the commit is done."""
    storage = GatedStorage()
    async with running_daemon(storage=storage) as daemon, daemon.session() as wire:
        await wire.say(event("a"))
        await wire.until_ack(1, 1)
        assert (await status_of(daemon))["running"]["writer"]["oldest_undurable_seconds"] == 0
        with storage.gate("sync"):
            await wire.say(event("b"))
            ages: list[float] = []
            with anyio.fail_after(PATIENCE):
                while len(ages) < 2:
                    writer = (await status_of(daemon))["running"]["writer"]
                    if writer["committing"]:
                        ages.append(writer["oldest_undurable_seconds"])
            assert 0 < ages[0] < ages[1]
        await wire.until_ack(2, 2)
        assert (await status_of(daemon))["running"]["writer"]["oldest_undurable_seconds"] == 0


async def test_a_full_disk_is_shown_and_so_is_its_end() -> None:
    """Refused commits stay counted."""
    storage = FaultyStorage()
    async with running_daemon(storage=storage) as daemon, daemon.session() as wire:
        await wire.say(event("a"))
        await wire.until_ack(1, 1)
        storage.fail_next("write", *[errno.ENOSPC] * 200)
        await wire.say(event("b"))
        await wire.until("reject")
        assert (await status_of(daemon))["running"]["writer"]["full"] is True
        storage.table.clear()
        await wire.say(event("c"))
        while (await wire.read()).get("accepted", 0) < 3:
            pass
        with anyio.fail_after(PATIENCE):
            while (writer := (await status_of(daemon))["running"]["writer"])["full"]:
                await wire.say(event("d"))
                await anyio.sleep(0.05)
        assert writer["refused_batches"] > 0
