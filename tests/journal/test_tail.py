"""A follower of a journal yields each decided event once, in order, whatever the writer does meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.journal.journals import flip, frames_of, journal_in

from ergo_capture.journal.decision_rows import PlainRun
from ergo_capture.journal.errors import JournalDamaged, JournalError
from ergo_capture.journal.frame import FrameKind, PendingFrame
from ergo_capture.journal.payloads import Closing, Publication, Rotation, SessionDescription, encode_body
from ergo_capture.journal.session_stream import parts_in
from ergo_capture.journal.tail import Followed, follow
from ergo_capture.journal.wal import Journal
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.storage import RealStorage

Step = Callable[[], object]


def description(session: str) -> SessionDescription:
    """Return the description of a session."""
    return SessionDescription(
        session=session,
        graph="g",
        constraints=Constraints(),
        adapter_provenance="none",
        runtime_provenance="rpv1:none",
        engine="fixed",
        labels={"who": "test"},
        peer=None,
        opened_at="2026-01-01T00:00:00.000Z",
        program="test 1",
    )


def opening(number: int) -> PendingFrame:
    """Return the OPEN frame of session ``sN``."""
    return PendingFrame(FrameKind.OPEN, number, 0, 0, encode_body(description(f"s{number}")))


def events(number: int, first: int, count: int = 1) -> PendingFrame:
    """Return a frame of events ``N/I`` of a session."""
    line = (
        '{"type":"event","event":{"event_id":"%d/%d","kind":"Command","at":{"secs":%d,"nanos":0},"payload":{"n":%d}}}\n'
    )
    body = "".join(line % (number, index, index, index) for index in range(first, first + count)).encode()
    return PendingFrame(FrameKind.EVENTS, number, first, count, body)


def decisions(number: int, first: int, count: int = 1) -> PendingFrame:
    """Return a frame of their decisions."""
    import msgspec

    return PendingFrame(FrameKind.DECISIONS, number, first, count, msgspec.json.encode([PlainRun(first, count)]))


def rotation(number: int, first: int, part: int = 1) -> PendingFrame:
    """Return the frame that ends a part before event ``first``."""
    body = encode_body(Rotation(part, False, "", description(f"s{number}"), None))
    return PendingFrame(FrameKind.ROTATE, number, first, 0, body)


def closing(number: int, total: int) -> PendingFrame:
    """Return the CLOSE frame."""
    return PendingFrame(FrameKind.CLOSE, number, total, 0, encode_body(Closing("complete", "")))


def ids(items: list[Followed]) -> list[str]:
    """Return the ids of the events; assert that each decision is about its event."""
    assert all(item.event.event_id == item.decision.event_id for item in items)
    return [item.event.event_id for item in items]


def newest(directory: Path) -> Path:
    """Return the last segment."""
    return max(directory.glob("*.journal"))


class Over(Exception):
    """Raised when there are no more steps."""


def steps(*todo: Step) -> Callable[[], None]:
    """Return a ``wait`` that takes the next step, and at the end raises Over."""
    left = list(todo)

    def wait() -> None:
        if not left:
            raise Over
        left.pop(0)()

    return wait


def followed(
    directory: Path, *todo: Step, of: str = "", latest: int | None = None, items: list[Followed] | None = None
) -> list[Followed]:
    """Follow while the steps are taken; return the items. The steps may read them in ``items``."""
    items = [] if items is None else items
    try:
        for item in follow(directory, RealStorage(), steps(*todo), of=of, latest=latest):
            items.append(item)
    except Over:
        return items
    return items


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """Yield a journal with one session and one decided event."""
    journal = journal_in(tmp_path, segment_bytes=1 << 20)
    journal.commit([opening(1)])
    journal.commit([events(1, 0)])
    journal.commit([decisions(1, 0)])
    yield journal
    journal.close()


def test_an_event_is_yielded_when_it_is_decided(journal: Journal, tmp_path: Path) -> None:
    """It is not yielded before that, and only once."""
    waiting: list[int] = []
    items: list[Followed] = []

    def wait() -> None:
        waiting.append(len(items))
        steps_left.pop(0)()

    steps_left: list[Step] = [
        lambda: journal.commit([events(1, 1, 2)]),
        lambda: journal.commit([decisions(1, 1)]),
        lambda: journal.commit([decisions(1, 2), closing(1, 3)]),
    ]
    for item in follow(tmp_path, RealStorage(), wait, of="s1"):
        items.append(item)  # noqa: PERF402 - ``wait`` looks at it
    assert ids(items) == ["1/0", "1/1", "1/2"]
    assert [item.index for item in items] == [0, 1, 2]
    assert waiting == [1, 1, 2]


def test_following_ends_with_the_session(journal: Journal, tmp_path: Path) -> None:
    """It ends at once if the session is over, even if other sessions go on."""
    journal.commit([opening(2), closing(1, 1)])
    assert ids(followed(tmp_path, of="s1")) == ["1/0"]


def test_latest_leaves_out_earlier_items(journal: Journal, tmp_path: Path) -> None:
    """An event that was accepted earlier counts as new when it is decided."""
    journal.commit([events(1, 1)])
    items = followed(tmp_path, lambda: journal.commit([decisions(1, 1)]), latest=0)
    assert ids(items) == ["1/1"]


def test_new_sessions_are_followed_where_none_is_named(journal: Journal, tmp_path: Path) -> None:
    """They are followed from their first event."""
    items = followed(
        tmp_path,
        lambda: journal.commit([opening(2)]),
        lambda: journal.commit([events(2, 0), events(1, 1)]),
        lambda: journal.commit([decisions(2, 0), decisions(1, 1)]),
    )
    assert [(item.session, item.event.event_id) for item in items] == [("s1", "1/0"), ("s2", "2/0"), ("s1", "1/1")]


def test_following_goes_on_over_segments_and_rotations(tmp_path: Path) -> None:
    """Several segments may be new at once."""
    journal = journal_in(tmp_path)
    journal.commit([opening(1)])

    def more(first: int) -> None:
        for index in range(first, first + 60):
            journal.commit([events(1, index)])
            journal.commit([decisions(1, index)])
        journal.commit([rotation(1, first + 60)])

    items = followed(tmp_path, lambda: more(0), lambda: more(60), lambda: more(120))
    journal.close()
    assert journal.current_segment > 6
    assert ids(items) == [f"1/{index}" for index in range(180)]


def test_following_goes_on_over_a_restart_of_the_daemon(journal: Journal, tmp_path: Path) -> None:
    """The new daemon writes to a new segment. A torn batch is not yielded; the batch written in its place is."""

    def crash() -> None:
        journal.commit([events(1, 1)])
        journal.commit([decisions(1, 1), events(1, 2)])
        journal.close()
        segment = newest(tmp_path)
        with segment.open("r+b") as file:
            file.truncate(frames_of(segment)[-1][1] + 70)

    def restart() -> None:
        again = journal_in(tmp_path)
        again.commit([events(1, 2)])
        again.commit([decisions(1, 2)])
        again.close()

    items = followed(tmp_path, crash, restart)
    assert ids(items) == ["1/0", "1/1", "1/2"]


def test_a_batch_without_its_last_frame_is_not_yielded(journal: Journal, tmp_path: Path) -> None:
    """A full disk may cut it off, and it is then written again."""
    journal.commit([events(1, 1, 2)])
    journal.commit([decisions(1, 1), decisions(1, 2)])
    segment = newest(tmp_path)
    whole = segment.read_bytes()
    start = frames_of(segment)[-1][1]

    def hide() -> None:
        segment.write_bytes(whole[:start] + bytes(len(whole) - start))

    hide()
    # The scan takes the first of the two frames: whole frames of a torn batch stay.
    assert ids(followed(tmp_path, lambda: None, lambda: segment.write_bytes(whole))) == ["1/0", "1/1", "1/2"]
    before = frames_of(segment)[-2][1]
    segment.write_bytes(whole[:before] + bytes(len(whole) - before))
    seen: list[list[str]] = []
    so_far: list[Followed] = []

    def half() -> None:
        segment.write_bytes(whole[:start] + bytes(len(whole) - start))

    def rest() -> None:
        seen.append(ids(so_far))
        segment.write_bytes(whole)

    followed(tmp_path, half, rest, items=so_far)
    assert seen == [["1/0"]]
    assert ids(so_far) == ["1/0", "1/1", "1/2"]


def test_segments_that_were_deleted_unread_are_an_error(journal: Journal, tmp_path: Path) -> None:
    """Nothing is left out without an error."""

    def go() -> None:
        journal.close()
        for _ in range(2):
            again = journal_in(tmp_path)
            again.commit([events(1, 1)])
            again.close()
        (tmp_path / "0000000000000002.journal").unlink()

    with pytest.raises(JournalError, match="were deleted before they were read"):
        followed(tmp_path, go)


def test_an_unknown_session_is_an_error(journal: Journal, tmp_path: Path) -> None:
    """The hint names the open sessions."""
    with pytest.raises(JournalError, match="'nope'") as raised:
        followed(tmp_path, of="nope")
    assert "open are: s1" in str(raised.value.hint)


def test_a_damaged_session_is_an_error(journal: Journal, tmp_path: Path) -> None:
    """This applies if the session is named; without a name, the other sessions are followed."""
    journal.commit([opening(2)])
    journal.commit([events(1, 1)])
    journal.commit([decisions(1, 1)])
    flip(newest(tmp_path), frames_of(newest(tmp_path))[-2][1] + 100)
    with pytest.raises(JournalDamaged, match="not what was written"):
        followed(tmp_path, of="s1")

    def two() -> None:
        journal.commit([events(2, 0)])
        journal.commit([decisions(2, 0)])

    assert ids(followed(tmp_path, two)) == ["2/0"]


def test_parts_are_read_like_bundles(journal: Journal, tmp_path: Path) -> None:
    """Each has its own events; the last one may have undecided events."""
    journal.commit([events(1, 1, 4)])
    journal.commit([decisions(1, 1, 2), rotation(1, 3), decisions(1, 3)])
    first, second = parts_in(tmp_path, RealStorage())
    assert ([event.event_id for event in first.events()], first.ended) == (["1/0", "1/1", "1/2"], "rotated")
    assert [event.event_id for event in second.events()] == ["1/3", "1/4"]
    assert [record.event_id for record in first.decisions()] == ["1/0", "1/1", "1/2"]
    assert [record.event_id for record in second.decisions()] == ["1/3"]
    assert (second.part, second.ended, second.published, second.graph_id) == (2, "open", False, "g")


def test_the_latest_items_are_the_last_ones(journal: Journal, tmp_path: Path) -> None:
    """The number that was asked for is of existing items; later ones are not counted."""
    journal.commit([events(1, 1, 3), decisions(1, 1, 3)])
    more: Step = lambda: journal.commit([events(1, 4, 2), decisions(1, 4, 2)])  # noqa: E731
    assert ids(followed(tmp_path, more, latest=2)) == ["1/2", "1/3", "1/4", "1/5"]


def test_only_wanted_items_are_yielded_and_counted(journal: Journal, tmp_path: Path) -> None:
    """This applies to existing items and to later ones."""
    journal.commit([events(1, 1, 5), decisions(1, 1, 5)])
    wait = steps(lambda: journal.commit([events(1, 6, 3), decisions(1, 6, 3)]), lambda: journal.commit([closing(1, 9)]))
    items = follow(tmp_path, RealStorage(), wait, of="s1", wanted=lambda item: item.index % 2 == 0, latest=2)
    assert ids(list(items)) == ["1/2", "1/4", "1/6", "1/8"]


def test_a_journal_may_be_empty_at_first(tmp_path: Path) -> None:
    """The daemon is about to write to it."""
    journal = journal_in(tmp_path)
    items = followed(
        tmp_path,
        lambda: None,
        lambda: journal.commit([opening(1), events(1, 0), decisions(1, 0)]),
        lambda: journal.commit([events(1, 1), decisions(1, 1)]),
    )
    journal.close()
    assert ids(items) == ["1/0", "1/1"]


def test_the_first_segment_that_is_followed_may_be_a_later_one(tmp_path: Path) -> None:
    """The journal was empty, so nothing of the earlier segments was left unread."""
    other = tmp_path / "other"
    other.mkdir()
    journal = journal_in(other)
    journal.commit([opening(1)])
    journal.commit([PendingFrame(FrameKind.PUBLISHED, 9, 1, 0, b"x" * 3800)])
    journal.commit([opening(2), events(2, 0), decisions(2, 0)])
    journal.close()
    journals = tmp_path / "journal"
    journals.mkdir()

    def come() -> None:
        for path in sorted(other.iterdir())[2:]:
            path.rename(journals / path.name)

    assert ids(followed(journals, come)) == ["2/0"]


def test_sessions_that_are_over_are_not_followed(journal: Journal, tmp_path: Path) -> None:
    """This applies if no session is named; a closed session that is named is read to its end."""
    journal.commit([opening(2), events(2, 0), decisions(2, 0), closing(2, 1)])
    journal.commit([PendingFrame(FrameKind.PUBLISHED, 2, 1, 1, encode_body(Publication(1, "b", "m", "")))])
    journal.commit([opening(3), events(3, 0), decisions(3, 0), closing(3, 1)])
    assert ids(followed(tmp_path)) == ["1/0", "3/0"]
    assert ids(followed(tmp_path, of="s2")) == ["2/0"]
    assert ids(followed(tmp_path, of="s3")) == ["3/0"]


def test_a_session_that_closes_is_over_and_others_are_not(journal: Journal, tmp_path: Path) -> None:
    """Frames about the session that come later are not read."""
    journal.commit([opening(2)])
    items = followed(
        tmp_path,
        lambda: journal.commit([closing(1, 1)]),
        lambda: journal.commit([events(1, 1), decisions(1, 1), events(2, 0), decisions(2, 0)]),
    )
    assert ids(items) == ["1/0", "2/0"]


def test_frames_of_other_sessions_are_passed_by(journal: Journal, tmp_path: Path) -> None:
    """This applies if a session is named; sessions that begin meanwhile are skipped too."""
    items = followed(
        tmp_path,
        lambda: journal.commit([opening(2), events(2, 0), decisions(2, 0), closing(2, 1)]),
        lambda: journal.commit([events(1, 1), decisions(1, 1), closing(1, 2)]),
        of="s1",
    )
    assert [(item.session, item.index) for item in items] == [("s1", 0), ("s1", 1)]


def test_a_session_without_a_description_is_passed_by(journal: Journal, tmp_path: Path) -> None:
    """Its segments were deleted; the others are followed."""
    journal.commit([events(7, 3), decisions(7, 3), opening(8), events(8, 0), decisions(8, 0)])
    assert ids(followed(tmp_path)) == ["1/0", "8/0"]


def test_a_damaged_frame_ends_what_is_read_until_it_is_whole(journal: Journal, tmp_path: Path) -> None:
    """The frame is just being written, or will be cut off."""
    journal.commit([events(1, 1), decisions(1, 1)])
    segment = newest(tmp_path)
    whole = segment.read_bytes()
    offset = frames_of(segment)[-2][1]
    segment.write_bytes(whole[:offset] + bytes(len(whole) - offset))
    broken = bytearray(whole)
    broken[offset + 64] ^= 1

    def break_it() -> None:
        segment.write_bytes(broken)

    assert ids(followed(tmp_path, break_it, lambda: segment.write_bytes(whole))) == ["1/0", "1/1"]


def test_the_whole_frames_of_a_batch_that_was_cut_off_are_yielded_once_another_segment_follows(
    journal: Journal, tmp_path: Path
) -> None:
    """A start keeps these frames, so their events are decided."""
    segment = newest(tmp_path)

    def crash() -> None:
        journal.commit([events(1, 1), decisions(1, 1), events(1, 2)])
        journal.close()
        with segment.open("r+b") as file:
            file.truncate(frames_of(segment)[-1][1] + 70)

    def restart() -> None:
        again = journal_in(tmp_path)
        again.commit([opening(2)])
        again.close()

    assert ids(followed(tmp_path, crash, restart)) == ["1/0", "1/1"]


def test_the_whole_frames_before_damage_are_yielded_once_another_segment_follows(
    journal: Journal, tmp_path: Path
) -> None:
    """The damage itself is reported by a scan."""

    def damage() -> None:
        journal.commit([events(1, 1), decisions(1, 1), events(1, 2)])
        segment = newest(tmp_path)
        flip(segment, frames_of(segment)[-1][1] + 64)
        journal.commit([PendingFrame(FrameKind.PUBLISHED, 9, 1, 0, bytes(1 << 20))])

    assert ids(followed(tmp_path, damage)) == ["1/0", "1/1"]
