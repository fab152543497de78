"""Clients that ask for decisions and do not read them."""

from __future__ import annotations

from contextlib import suppress

import anyio
from tests.daemons import event, running_daemon
from tests.server.looks import DESCRIPTION, until

from ergo_capture import ExternalEvent, ExternalEventKind
from ergo_capture.journal.frame import Position
from ergo_capture.journal.recovery import RecoveredSession
from ergo_capture.server.session.decision_log import JournalDecisionLog


async def test_p9_unread_decisions_count_as_held_memory() -> None:
    """P9: events come in one write and are decided later; their client is dropped, and another one is served."""
    text = '[limits]\nheld_bytes = "256KiB"\nreply_bytes = "64KiB"\n'
    async with running_daemon(text) as daemon, daemon.session() as other:
        async with daemon.session(decisions=True) as mute:
            # The client may be dropped before it has sent all of them.
            with suppress(anyio.BrokenResourceError):
                await mute.say(*(event(f"e{n}") for n in range(5000)))
            await until(lambda: daemon.service.clients.refusals["limit"] == 1)
        await other.say(event("a"), {"type": "close"})
        assert (await other.until("closed"))["events"] == 1


def test_nothing_is_kept_for_a_follower_that_is_gone() -> None:
    """Decisions that were not durable are kept until they are: a client that returns before is sent them."""
    log = JournalDecisionLog(RecoveredSession.new(1, DESCRIPTION, 1), lambda *_: None, lambda _: None)
    log.follow(on=True)
    decide(log, "a")
    make_durable(log)
    decide(log, "b")
    log.leave()
    assert log.kept == 1
    assert log.follow(on=True) == 1
    assert log.kept == 1
    log.leave()
    decide(log, "c")
    make_durable(log)
    assert log.kept == 0


def decide(log: JournalDecisionLog, event_id: str) -> None:
    """Log a plain decision on an event."""
    log.log_plain([ExternalEvent.mechanical(event_id, ExternalEventKind.Command)], log.logged)


def make_durable(log: JournalDecisionLog) -> None:
    """Report everything logged as durable."""
    assert log.to_frame() is not None
    log.on_durable(Position(1, 0))
