"""Power cuts: any part of what was not synced reaches the disk, and what was acknowledged survives."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.doubles.forgetful_storage import ForgetfulStorage, PowerCut
from tests.journal.journals import closing, damaged, decisions, events, opening

from ergo_capture.journal.frame import PendingFrame, Position
from ergo_capture.journal.reader import read_frames
from ergo_capture.journal.scan_report import ScanReport
from ergo_capture.journal.wal import Journal


class Life:
    """A journal that loses power, and what it acknowledged."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.storage = ForgetfulStorage()
        self.journal: Journal | None = None
        #: Acknowledged: positions and bodies, in order.
        self.acknowledged: list[tuple[Position, bytes]] = []
        #: The batch that was under way when the power went.
        self.under_way: list[bytes] = []
        self.next = 0

    def bodies(self, positions: list[Position]) -> list[bytes]:
        """Return the bodies at these positions."""
        return [frame.body for frame in read_frames(self.directory, positions, self.storage)]

    def open(self) -> ScanReport:
        """Open the journal, and compare it with what was acknowledged."""
        journal, found = Journal.open(self.directory, self.storage, segment_bytes=98_304, program="test 1")
        self.journal = journal
        assert found.damage == [], "a torn end was called damage"
        assert damaged(found) == []
        read = [(position, body) for position, _ in self.acknowledged for body in self.bodies([position])]
        assert read == self.acknowledged, "an acknowledged frame did not survive"
        session = found.sessions.get(1)
        if session is not None:
            positions = [Position.unpack(packed) for packed in session.events]
            bodies = self.bodies(positions)
            known = [body for _, body in self.acknowledged if b"event_id" in body]
            assert bodies[: len(known)] == known
            extra = bodies[len(known) :]
            assert extra == [body for body in self.under_way if b"event_id" in body][: len(extra)]
            self.acknowledged += [
                (position, body) for position, body in zip(positions, bodies, strict=True) if body in extra
            ]
        self.next = 0 if session is None else session.next_event or 0
        self.under_way = []
        return found

    def commit(self, frames: list[PendingFrame]) -> None:
        """Commit a batch; the power may go meanwhile."""
        assert self.journal is not None
        self.under_way = [frame.body for frame in frames]
        positions = self.journal.commit(frames)
        self.acknowledged += zip(positions, self.under_way, strict=True)
        self.under_way = []

    def lose_power(self, random: Random) -> None:
        """Lose power."""
        if self.journal is not None:
            self.journal._ahead._join()
            self.journal = None
        self.storage.crash(random)


def batch(life: Life, random: Random) -> list[PendingFrame]:
    """Return the next batch of session 1: a few frames, of a few bytes or several pages."""
    frames = [opening(1)] if not life.next and not life.acknowledged else []
    for _ in range(random.randint(1, 5)):
        frames.append(events(1, life.next, size=random.choice([0, 50, 700, 5000, 9000])))
        life.next += 1
    return frames


def live(seed: int, batches: int, lives: int) -> None:
    """Several lives of one journal, each ended by a power cut: at any step, or while a batch is being synced."""
    random = Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        life = Life(Path(directory))
        for _ in range(lives):
            anywhere = random.random() < 0.3
            life.storage.cut_after(random.randint(0, 20) if anywhere else None)
            with suppress(PowerCut):
                life.open()
                for _ in range(random.randint(0, batches)):
                    life.commit(batch(life, random))
                # One step: the write is done, the sync is not. Where a segment is created first there are more.
                life.storage.cut_after(random.choice([1, 1, 1, 2, 3, 4, 5, 6, 7]))
                while True:
                    life.commit(batch(life, random))
            life.lose_power(random)
        life.open()
        life.open()


@given(st.integers(0, 1 << 32))
@settings(max_examples=60, deadline=None)
def test_p1_acknowledged_frames_survive_any_loss_of_pages(seed: int) -> None:
    """P1, P6: at any step, with any subset of the pages kept, nothing acknowledged is lost or called damaged."""
    live(seed, batches=4, lives=4)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@given(st.integers(0, 1 << 62))
@settings(max_examples=3000, deadline=None)
def test_p1_acknowledged_frames_survive_many_power_cuts(seed: int) -> None:
    """P1, P6: the same, for longer."""
    live(seed, batches=8, lives=8)


@given(st.integers(0, 1 << 32))
@settings(max_examples=60, deadline=None)
def test_p6_a_lost_page_of_a_durable_batch_is_damage(seed: int) -> None:
    """P6: wherever it is, it is never taken for torn while a later batch is on disk."""
    random = Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        life = Life(Path(directory))
        life.open()
        for _ in range(random.randint(2, 6)):
            life.commit(batch(life, random))
        durable = len(life.acknowledged)
        life.commit([decisions(1, 0)])
        life.commit([closing(1, life.next)])
        life.lose_power(random)
        position, body = life.acknowledged[random.randrange(durable)]
        path = Path(directory) / f"{position.segment:016d}.journal"
        data = bytearray(path.read_bytes())
        at = position.offset + random.randrange(64 + len(body))
        data[at] ^= random.randint(1, 255)
        path.write_bytes(data)
        life.storage.adopt(path)
        journal, found = Journal.open(Path(directory), life.storage, segment_bytes=98_304)
        journal.close()
        assert found.torn is None
        assert [(damage.segment, damage.offset) for damage in found.damage] == [tuple(position)]
        assert bytes(data) == path.read_bytes()[: len(data)].ljust(len(data), b"\0")
