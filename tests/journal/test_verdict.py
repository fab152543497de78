"""The verdict on a journal, case by case: what lies where, and whether it is whole, torn or damaged.

A journal is written as its segments, and a segment as its frames and bad stretches:

* ``2.0/3`` is a whole frame of session 1: frame 0 of the 3 frames of batch 2. ``4.0/1s`` is a seal;
* ``h2.0/3:1.4`` is the head of a segment; it says that 4 frames of batch 1 end the segment before;
* ``!2.0/3`` is a frame whose header is good and whose body is bad; ``?`` is a stretch without a header, ``?3`` one of 3 bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ergo_capture.journal.errors import JournalError
from ergo_capture.journal.frame import FORMAT_VERSION, FrameKind, Header, Position
from ergo_capture.journal.payloads import SegmentHead, encode_body
from ergo_capture.journal.scan_report import Damage, Proof, ScanReport, Verdict
from ergo_capture.journal.verdict import BadStretch, SegmentContents, WholeFrame, classify, needs_newer

#: Every frame and bad stretch takes so many bytes.
STEP = 72
ITEM = re.compile(r"(?P<mark>[h!]?)(?P<batch>\d+)\.(?P<index>\d+)/(?P<frames>\d+)(?P<seal>s?)(:(?P<said>\d+\.\d+))?")
FIRST = "h1.0/2:0.0 1.1/2"


def a_header(kind: int, segment: int, batch: int, index: int, frames: int, *, session: int, first: int = 0) -> Header:
    """Return a good header; a frame of events has one event."""
    count = int(kind == FrameKind.EVENTS)
    return Header(FORMAT_VERSION, kind, 0, segment, batch, session, first, count, 8, index, frames, 0)


def parse(segment: int, text: str, first: int) -> Iterator[WholeFrame | BadStretch]:
    """Yield the frames and bad stretches of a segment; those of session 1 hold events ``first``, ``first + 1``, ..."""
    for number, item in enumerate(text.split()):
        offset = number * STEP
        if item.startswith("?"):
            yield BadStretch(None, Damage(segment, offset, int(item[1:] or STEP), "there is no frame"))
            first += 1
            continue
        match = ITEM.fullmatch(item)
        assert match is not None, item
        place = int(match["batch"]), int(match["index"]), int(match["frames"])
        if match["mark"] == "h":
            batch, frames = map(int, match["said"].split("."))
            head = encode_body(SegmentHead(1, "test 1", segment, batch, frames))
            yield WholeFrame(a_header(FrameKind.SEGMENT, segment, *place, session=0), Position(segment, offset), head)
            continue
        kind, session = (FrameKind.SEAL, 0) if match["seal"] else (FrameKind.EVENTS, 1)
        header = a_header(kind, segment, *place, session=session, first=first)
        first += session
        if match["mark"] == "!":
            yield BadStretch(header, Damage(segment, offset, STEP, "a frame's body is not what was written"))
        else:
            yield WholeFrame(header, Position(segment, offset), b"")


def verdict_on(segments: dict[int, str]) -> ScanReport:
    """Return the scan report of a journal."""

    def contents() -> Iterator[SegmentContents]:
        first = 0
        for sequence, text in segments.items():
            items = list(parse(sequence, text, first))
            first += sum(not item.startswith("h") and not item.endswith("s") for item in text.split())
            yield SegmentContents(Path(f"{sequence}"), sequence, STEP * len(items), sequence == max(segments), items)

    return classify(contents())


NOTHING: list[tuple[Verdict, str]] = []
NO_FRAME = (Verdict.DAMAGED, "there is no frame")
BAD_BODY = (Verdict.DAMAGED, "a frame's body is not what was written")


@pytest.mark.parametrize(
    ("segments", "ending", "stretches"),
    [
        pytest.param({1: FIRST}, Verdict.UNSEALED, NOTHING, id="killed between two commits"),
        pytest.param({1: f"{FIRST} 2.0/1s"}, Verdict.SEALED, NOTHING, id="closed in order"),
        pytest.param(
            {1: f"{FIRST} 2.0/1s", 2: "h3.0/2:2.1 3.1/2"}, Verdict.UNSEALED, NOTHING, id="went on after a seal"
        ),
        pytest.param({1: f"{FIRST} 2.0/2"}, Verdict.UNSEALED, NOTHING, id="whole frames of a batch that lacks its end"),
        pytest.param({1: ""}, Verdict.UNSEALED, NOTHING, id="a first segment without a frame"),
        pytest.param({1: FIRST, 2: ""}, Verdict.UNSEALED, NOTHING, id="a last segment without a frame"),
        pytest.param({7: "h5.0/2:4.1 5.1/2"}, Verdict.UNSEALED, NOTHING, id="older segments were deleted"),
        # An incomplete or bad frame; only frames of the same batch after it, no seal: torn.
        pytest.param({1: f"{FIRST} ?"}, Verdict.TORN, NOTHING, id="no header, nothing behind it"),
        pytest.param({1: f"{FIRST} !2.0/1"}, Verdict.TORN, NOTHING, id="bad body, nothing behind it"),
        pytest.param({1: f"{FIRST} ? 2.1/3 2.2/3"}, Verdict.TORN, NOTHING, id="no header, its batch behind it"),
        pytest.param({1: f"{FIRST} !2.0/3 2.1/3 ?"}, Verdict.TORN, NOTHING, id="bad body, its batch behind it"),
        pytest.param({1: f"{FIRST} 2.0/3 ? 2.2/3"}, Verdict.TORN, NOTHING, id="in the middle of a batch"),
        pytest.param({1: "!1.0/2 1.1/2"}, Verdict.TORN, NOTHING, id="the first batch of all"),
        pytest.param({1: FIRST, 2: "? 2.1/2"}, Verdict.TORN, NOTHING, id="the first batch of a segment"),
        pytest.param({1: f"{FIRST} 2.0/3", 2: "? 3.1/2"}, Verdict.TORN, NOTHING, id="behind an end that was cut off"),
        pytest.param({1: f"{FIRST} 2.0/1s", 2: "? 3.1/2"}, Verdict.TORN, NOTHING, id="in the segment behind a seal"),
        # A bad frame; a later batch, a seal or a segment follows: damaged.
        pytest.param({1: f"{FIRST} ? 3.0/1"}, Verdict.UNSEALED, [NO_FRAME], id="no header, a later batch follows"),
        pytest.param({1: f"{FIRST} !2.0/1 3.0/1"}, Verdict.UNSEALED, [BAD_BODY], id="bad body, a later batch follows"),
        pytest.param(
            {1: f"{FIRST} !2.0/2 2.1/2 3.0/1"}, Verdict.UNSEALED, [BAD_BODY], id="its own and a later batch follow"
        ),
        pytest.param({1: f"{FIRST} !2.0/1 !3.0/1"}, Verdict.TORN, [BAD_BODY], id="a torn later batch follows"),
        pytest.param({1: f"{FIRST} ? !3.0/2 3.1/2"}, Verdict.TORN, [NO_FRAME], id="no header, a torn batch follows"),
        pytest.param({1: f"{FIRST} !2.0/1 3.0/1s"}, Verdict.SEALED, [BAD_BODY], id="a seal follows"),
        pytest.param({1: f"{FIRST} ? 3.0/1s"}, Verdict.SEALED, [NO_FRAME], id="no header, a seal follows"),
        pytest.param({1: f"{FIRST} ?", 2: "h3.0/2:2.1 3.1/2"}, Verdict.UNSEALED, [NO_FRAME], id="a segment follows"),
        pytest.param({1: f"{FIRST} !2.0/1", 2: "? 3.1/2"}, Verdict.TORN, [BAD_BODY], id="a torn segment follows"),
        pytest.param({1: f"{FIRST} !2.0/1", 2: ""}, Verdict.UNSEALED, [BAD_BODY], id="an empty segment follows"),
        pytest.param({7: "? 5.1/2"}, Verdict.UNSEALED, [NO_FRAME], id="the beginning behind deleted segments"),
        pytest.param({2: "!5.0/2 5.1/2"}, Verdict.UNSEALED, [BAD_BODY], id="the beginning behind one deleted segment"),
        pytest.param({7: "!5.0/1 !6.0/1"}, Verdict.TORN, [BAD_BODY], id="torn behind that beginning"),
        # Frames that are missing without a trace: damaged.
        pytest.param(
            {1: f"{FIRST} 3.0/1"},
            Verdict.UNSEALED,
            [(Verdict.DAMAGED, "batch 3, frame 0 is where batch 2, frame 0 was")],
            id="a batch is missing",
        ),
        pytest.param(
            {1: f"{FIRST} 2.0/3 2.2/3"},
            Verdict.UNSEALED,
            [(Verdict.DAMAGED, "batch 2, frame 2 is where batch 2, frame 1 was")],
            id="a frame is missing",
        ),
        pytest.param(
            {1: FIRST, 2: "h4.0/2:3.1 4.1/2"},
            Verdict.UNSEALED,
            [(Verdict.DAMAGED, "it ends after batch 1, frame 2, but the next segment says batch 3, frame 1")],
            id="the end of a segment is missing",
        ),
        pytest.param(
            {1: FIRST, 3: "h4.0/2:3.1 4.1/2"},
            Verdict.UNSEALED,
            [(Verdict.DAMAGED, "segments 2 to 2 are missing")],
            id="a segment is missing",
        ),
        pytest.param(
            {1: FIRST, 2: "", 3: "h4.0/2:3.1 4.1/2"},
            Verdict.UNSEALED,
            [(Verdict.DAMAGED, "the segment is empty")],
            id="a segment lost what it held",
        ),
        pytest.param(
            {7: ""},
            Verdict.UNSEALED,
            [(Verdict.DAMAGED, "the segment is empty")],
            id="the only segment behind deleted ones lost what it held",
        ),
        pytest.param(
            {1: FIRST, 2: "2.0/1"},
            Verdict.UNSEALED,
            [(Verdict.DAMAGED, "the segment's first frame is missing")],
            id="a segment without a head",
        ),
        # Behind a seal nothing is ever acknowledged.
        pytest.param(
            {1: f"{FIRST} 2.0/1s ?"}, Verdict.SEALED, [(Verdict.STRAY, NO_FRAME[1])], id="bytes behind a seal"
        ),
    ],
)
def test_every_stretch_gets_its_verdict(
    segments: dict[int, str], ending: Verdict, stretches: list[tuple[Verdict, str]]
) -> None:
    """The end is sealed, unsealed or torn; each bad or missing stretch before it is damage, or stray."""
    report = verdict_on(segments)
    assert report.ending is ending
    assert (report.torn is not None) == (ending is Verdict.TORN)
    assert report.torn is None or report.torn.offset == report.end
    assert [(damage.verdict, damage.reason) for damage in report.damage] == stretches


@pytest.mark.parametrize(
    ("text", "number", "frames", "reason"),
    [
        ("?", 2, 0, "there is no frame"),
        ("? 2.1/2", 2, 1, "there is no frame"),
        ("2.0/3 !2.1/3 2.2/3", 3, 1, "a frame's body is not what was written"),
        ("2.0/1 !3.0/3 3.1/3 ?", 3, 1, "a frame's body is not what was written"),
    ],
)
def test_a_torn_end_reaches_from_the_first_bad_frame_to_the_last_byte(
    text: str, number: int, frames: int, reason: str
) -> None:
    """Whole frames before it stay; whole frames in it are counted."""
    torn = verdict_on({1: f"{FIRST} {text}"}).torn
    assert torn is not None
    assert (torn.segment, torn.offset, torn.frames, torn.reason) == (1, number * STEP, frames, reason)
    assert torn.offset + torn.length == STEP * (2 + len(text.split()))


@pytest.mark.parametrize(
    ("segments", "proof"),
    [
        pytest.param({1: f"{FIRST} !2.0/1"}, None, id="no damage"),
        pytest.param({1: f"{FIRST} ? 3.0/1 4.0/1"}, None, id="nothing is cut off"),
        pytest.param({1: f"{FIRST} !2.0/1 3.0/1 ?"}, Proof(1, 4 * STEP, 4), id="a torn end behind damage"),
        pytest.param({1: f"{FIRST} !2.0/1", 2: "!3.0/1"}, Proof(1, 3 * STEP, 3), id="a torn segment behind damage"),
        pytest.param({1: f"{FIRST} ?", 2: ""}, Proof(1, 3 * STEP, 3), id="an empty segment behind damage"),
        pytest.param({1: f"{FIRST} ?3", 2: ""}, Proof(1, 2 * STEP + 8, 3), id="behind a stretch of a few bytes"),
        pytest.param({1: f"{FIRST} ?8", 2: ""}, Proof(1, 2 * STEP + 8, 3), id="behind a stretch of eight bytes"),
        pytest.param({1: f"{FIRST} ? !9.0/2 9.1/2"}, Proof(1, 3 * STEP, 9), id="a torn batch long after damage"),
        pytest.param({1: FIRST, 2: ""}, None, id="an empty segment without damage"),
        pytest.param({1: f"{FIRST} ? 3.0/1", 2: "h4.0/1:3.1", 3: "!5.0/1"}, None, id="damage in an earlier segment"),
        pytest.param({1: f"{FIRST} !2.0/1 3.0/1s"}, None, id="a seal behind damage"),
        pytest.param({1: ""}, None, id="nothing at all"),
        pytest.param({1: "!1.0/1"}, None, id="a torn first batch"),
    ],
)
def test_damage_is_to_be_proved_where_a_torn_end_behind_it_is_cut_off(
    segments: dict[int, str], proof: Proof | None
) -> None:
    """The bytes that are cut off were the only evidence that the damage was not a torn end."""
    assert verdict_on(segments).proof == proof


def test_a_frame_is_refused_where_only_a_newer_program_can_read_it() -> None:
    """A later format version is always refused; an unknown kind, unless its flag says that it may be skipped."""
    known = a_header(FrameKind.EVENTS, 1, 1, 0, 1, session=1)
    unknown = a_header(99, 1, 1, 0, 1, session=0)
    later = Header(FORMAT_VERSION + 1, *(getattr(known, name) for name in Header.__struct_fields__[1:]))
    ignorable = Header(FORMAT_VERSION, 99, 1, *(getattr(unknown, name) for name in Header.__struct_fields__[3:]))
    assert (needs_newer(known), needs_newer(ignorable)) == (None, None)
    assert needs_newer(later) == "its format version is 3, and this program reads up to 2"
    assert needs_newer(unknown) == "a frame of the unknown kind 99 needs a newer ergo-capture"
    frame = WholeFrame(unknown, Position(1, 0), b"")
    with pytest.raises(JournalError, match="read journal segment 'x': a frame of the unknown kind 99"):
        classify([SegmentContents(Path("x"), 1, STEP, True, [frame])])


@pytest.mark.parametrize(
    ("segments", "end", "batch_start", "last"),
    [
        pytest.param({1: FIRST}, 2, 0, (1, 2), id="one batch"),
        pytest.param({1: f"{FIRST} 2.0/1 3.0/2 3.1/2"}, 5, 3, (3, 2), id="three batches"),
        pytest.param({1: f"{FIRST} 2.0/3 2.1/3"}, 4, 2, (2, 2), id="a batch without its end"),
        pytest.param({1: f"{FIRST} 2.0/1s"}, 3, 2, (2, 1), id="a seal"),
        pytest.param({1: FIRST, 2: "h2.0/3:1.2 2.1/3 2.2/3"}, 3, 0, (2, 3), id="a batch in the next segment"),
        pytest.param({1: f"{FIRST} !2.0/1"}, 2, 0, (1, 2), id="before a torn end"),
        pytest.param({1: f"{FIRST} 2.0/2 !2.1/2"}, 3, 2, (2, 1), id="whole frames of a torn batch"),
        pytest.param({1: f"{FIRST} !2.0/2 2.1/2 3.0/1"}, 5, 4, (3, 1), id="behind damage"),
        pytest.param({1: f"{FIRST} ? 3.0/2 3.1/2"}, 5, 3, (3, 2), id="behind damage without a header"),
        pytest.param({7: "? 5.1/2"}, 2, 1, (5, 2), id="a damaged beginning"),
        pytest.param({7: "!5.0/2 5.1/2"}, 2, 0, (5, 2), id="a damaged frame of the last batch"),
        pytest.param({1: FIRST, 2: ""}, 0, 0, (1, 2), id="before an empty segment"),
        pytest.param({1: ""}, 0, 0, (0, 0), id="nothing"),
    ],
)
def test_a_report_says_where_the_journal_and_its_last_batch_end(
    segments: dict[int, str], end: int, batch_start: int, last: tuple[int, int]
) -> None:
    """The ends are offsets in the last segment; the next start rewrites the bytes between them."""
    report = verdict_on(segments)
    assert (report.end, report.batch_start) == (end * STEP, batch_start * STEP)
    assert (report.last_batch, report.last_frames) == last
    assert report.segments == list(segments)
    assert report.bytes == STEP * sum(len(text.split()) for text in segments.values())


def test_a_report_counts_whole_frames() -> None:
    """Bad and torn frames are not counted."""
    assert verdict_on({1: f"{FIRST} !2.0/2 2.1/2 3.0/1 !4.0/1"}).frames == 4
    assert verdict_on({1: f"{FIRST} 2.0/1"}).frames == 3


@pytest.mark.parametrize(
    ("segments", "empty"), [({1: ""}, 1), ({1: FIRST, 2: ""}, 2), ({1: FIRST}, None), ({7: ""}, None)]
)
def test_a_last_segment_that_was_never_written_to_is_named(segments: dict[int, str], empty: int | None) -> None:
    """The next start removes it."""
    assert verdict_on(segments).empty == empty


@pytest.mark.parametrize(
    ("segments", "place"),
    [
        pytest.param({1: f"{FIRST} 3.0/1"}, (1, 2, 0), id="a batch is missing"),
        pytest.param({1: f"{FIRST} 2.0/1", 2: "h4.0/2:3.1 4.1/2"}, (1, 3, 0), id="the end of a segment is missing"),
        pytest.param({1: FIRST, 3: "h4.0/2:3.1 4.1/2"}, (3, 0, 0), id="a segment is missing"),
        pytest.param({1: FIRST, 2: "2.0/1"}, (2, 0, 0), id="a segment without a head"),
        pytest.param({1: FIRST, 2: "", 3: "h2.0/2:1.2 2.1/2"}, (2, 0, 0), id="an empty segment"),
        pytest.param({1: f"{FIRST} ? 3.0/1"}, (1, 2, STEP), id="a stretch without a header"),
        pytest.param({1: f"{FIRST} 2.0/1s ?"}, (1, 3, STEP), id="bytes behind a seal"),
    ],
)
def test_a_damage_has_its_place(segments: dict[int, str], place: tuple[int, int, int]) -> None:
    """The place is segment, offset and length; something missing has a length of 0."""
    (damage,) = verdict_on(segments).damage
    assert (damage.segment, damage.offset, damage.length) == (place[0], place[1] * STEP, place[2])


def test_a_gap_of_several_segments_is_told_from_its_first_to_its_last() -> None:
    """Nothing is compared across the gap."""
    (damage,) = verdict_on({1: FIRST, 5: "h9.0/2:8.1 9.1/2"}).damage
    assert damage.reason == "segments 2 to 4 are missing"


def test_a_torn_end_has_a_place_and_a_length() -> None:
    """It reaches to the end of its last frame or stretch."""
    torn = verdict_on({1: f"{FIRST} !2.0/2 2.1/2"}).torn
    assert torn is not None
    assert (torn.segment, torn.offset, torn.length, torn.frames) == (1, 2 * STEP, 2 * STEP, 1)
    torn = verdict_on({1: FIRST, 2: "?5"}).torn
    assert torn is not None
    assert (torn.segment, torn.offset, torn.length, torn.frames) == (2, 0, 5, 0)
