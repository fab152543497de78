"""Which events of a connection are refused, and up to which number all are settled."""

from __future__ import annotations

import errno
import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.daemons import event, running_daemon
from tests.doubles.gated_storage import GatedStorage

from ergo_capture import decode_bundle
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.frame import Position
from ergo_capture.server.net.conversation import Receipts, _Receipt
from ergo_capture.server.session.admission_queue import EventBatch


def events(*ids: str) -> dict[str, object]:
    """Return one frame with events of these ids."""
    return {"type": "events", "events": [event(event_id)["event"] for event_id in ids]}


async def test_each_event_of_a_refused_batch_is_rejected_by_its_own_number() -> None:
    """Other events of the chunk may have been refused before."""
    storage = GatedStorage()
    text = "[limits]\nmax_id_bytes = 8\n"
    async with running_daemon(text, storage=storage) as daemon, daemon.session() as wire:
        storage.fail_next("write", errno.ENOSPC)
        await wire.say(events("a", "a", "too-long-an-id", "b"))
        frames = await wire.until_ack(4)
        rejects = {f["index"]: (f["event_id"], f["code"]) for f in frames if f["type"] == "reject"}
        assert rejects == {
            1: ("a", "storage_full"),
            2: ("a", "duplicate_event_id"),
            3: (None, "limit"),
            4: ("b", "storage_full"),
        }
        await wire.say(event("b"), {"type": "close"})
        closed = await wire.until("closed")
        assert [e.event_id for e in decode_bundle(Path(closed["bundle"]).read_bytes()).events] == ["b"]


def test_refused_events_behind_an_undecided_one_take_no_memory() -> None:
    """P9: decisions may wait long for a disk or an engine, and a client may have any number of events refused."""
    session: Any = SimpleNamespace(accepted=0, decided=0)
    refused: list[int] = []
    receipts = Receipts(lambda numbers, _batch: refused.extend(numbers))

    def send(batch: EventBatch | None) -> None:
        receipts.received += 1
        receipts.add(batch, [receipts.received])
        receipts.settle(session.decided)

    send(EventBatch(session, b"", (), first=0, end=1, position=Position(1, 0)))
    session.accepted = 1
    before = kept()
    for _ in range(100):
        send(None)
        send(EventBatch(session, b"", (), refused=ErgoCaptureError("the disk is full")))
    assert (receipts.received, receipts.accepted) == (201, 201)
    assert receipts.decided == 0
    assert refused == [3 + 2 * number for number in range(100)]
    assert kept() <= before
    session.decided = 1
    receipts.settle(session.decided)
    assert receipts.decided == 201


def test_refused_events_behind_one_that_is_not_durable_share_one_receipt() -> None:
    """P9: the disk may not answer for long."""
    session: Any = SimpleNamespace(accepted=0, decided=0)
    receipts = Receipts(lambda _numbers, _batch: None)
    receipts.received = 1
    receipts.add(EventBatch(session, b"", ()), [1])
    before = kept()
    for _ in range(100):
        receipts.received += 1
        receipts.add(None)
        receipts.settle(session.decided)
    assert kept() <= before + 1


def kept() -> int:
    """Return how many receipts and batches exist."""
    return sum(isinstance(found, _Receipt | EventBatch) for found in gc.get_objects())
