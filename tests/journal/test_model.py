"""Random operations on a journal, compared with a list."""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.doubles.forgetful_storage import ForgetfulStorage
from tests.journal.journals import damaged, decisions, events, opening

from ergo_capture.journal.frame import PendingFrame, Position
from ergo_capture.journal.reader import read_frames
from ergo_capture.journal.scan_report import Verdict
from ergo_capture.journal.wal import Journal


class JournalModel(RuleBasedStateMachine):
    """The journal holds what the list holds, whatever is done."""

    @initialize()
    def begin(self) -> None:
        """Begin with an empty journal."""
        self.folder = tempfile.TemporaryDirectory()
        self.directory = Path(self.folder.name)
        self.storage = ForgetfulStorage()
        #: The model: what was acknowledged and not deleted.
        self.list: list[tuple[Position, int, bytes]] = []
        #: Session number to events and decisions so far.
        self.sessions: dict[int, list[int]] = {}
        self.batch: list[PendingFrame] = []
        self.sealed = True
        self.deleted = False
        self.open_journal()

    def open_journal(self) -> None:
        """Open it, and compare."""
        self.journal, found = Journal.open(self.directory, self.storage, segment_bytes=4096, program="test 1")
        assert (found.damage, damaged(found), found.torn) == ([], [], None)
        assert (found.ending is Verdict.SEALED) == (self.sealed and bool(found.segments))
        kept: set[int] = set()
        for number, (next_event, next_decision) in self.sessions.items():
            session = found.sessions.get(number)
            if session is None:
                assert self.deleted
                continue
            kept |= {*session.events, *session.decisions}
            if session.next_event is not None:
                assert session.next_event == next_event
            if session.next_decision is not None:
                assert session.next_decision == next_decision
        assert kept == {position.pack() for position, _, body in self.list if not body.startswith(b'{"session"')}

    @rule(new=st.booleans(), pick=st.integers(0, 99), count=st.integers(1, 3), size=st.sampled_from([0, 40, 900, 5000]))
    def append(self, new: bool, pick: int, count: int, size: int) -> None:
        """Put frames of a session, new or old, into the next batch."""
        if new or not self.sessions:
            number = len(self.sessions) + 1
            self.sessions[number] = [0, 0]
            self.batch.append(opening(number))
        number = list(self.sessions)[pick % len(self.sessions)]
        state = self.sessions[number]
        self.batch.append(events(number, state[0], count, size))
        state[0] += count
        if state[1] < state[0] - count:
            self.batch.append(decisions(number, state[1], state[0] - count - state[1]))
            state[1] = state[0] - count

    @precondition(lambda self: self.batch)
    @rule()
    def commit(self) -> None:
        """Commit the batch."""
        frames, self.batch = self.batch, []
        positions = self.journal.commit(frames)
        assert positions == sorted(positions)
        self.list += [(position, frame.session, frame.body) for position, frame in zip(positions, frames, strict=True)]
        self.sealed = False

    @precondition(lambda self: not self.batch)
    @rule(seed=st.integers(0, 1 << 32))
    def crash(self, seed: int) -> None:
        """Lose power between batches, and start again."""
        self.journal._ahead._join()
        self.storage.crash(Random(seed))
        self.open_journal()

    @precondition(lambda self: not self.batch)
    @rule(seal=st.booleans())
    def reopen(self, seal: bool) -> None:
        """Stop, with a seal or without, and start again."""
        if seal:
            self.journal.seal()
            self.sealed = True
        self.journal.close()
        self.open_journal()

    @rule(back=st.integers(0, 3))
    def delete(self, back: int) -> None:
        """Delete old segments."""
        before = self.journal.current_segment - back
        gone = self.journal.delete_segments(before)
        assert gone == list(range(gone[0], gone[-1] + 1)) if gone else True
        assert all(sequence < before for sequence in gone)
        self.deleted |= bool(gone)
        self.list = [entry for entry in self.list if entry[0].segment not in gone]

    @invariant()
    def holds_what_the_list_holds(self) -> None:
        """Check that every frame of the list is read by its position, and that the sizes add up."""
        positions = [position for position, _, _ in self.list]
        read = [(frame.header.session, frame.body) for frame in read_frames(self.directory, positions, self.storage)]
        assert read == [(session, body) for _, session, body in self.list]
        on_disk = sum(path.stat().st_size for path in self.directory.glob("*.journal"))
        assert self.journal.size_bytes == on_disk

    def teardown(self) -> None:
        """Close the journal."""
        if hasattr(self, "journal"):
            self.journal.close()
            self.folder.cleanup()


TestJournalModel = JournalModel.TestCase
TestJournalModel.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


@pytest.mark.soak
class TestJournalModelForLong(JournalModel.TestCase):  # type: ignore[valid-type,misc] # made by hypothesis
    """The same, for longer."""

    settings = settings(max_examples=1000, stateful_step_count=80, deadline=None)
