"""Journals and bundles that must stay readable: their construction and their content.

A journal's ``expected.json`` is what recovery finds in it, with the SHA-256 of every bundle that can be composed
from it. Neither depends on the version of the program, on the clock, or on the machine.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import zstandard
from tests.journal.hosted import HostedLife, Sent, sends, sets
from tests.journal.journals import compose, flip, frames_of, journal_in, parts_of
from tests.shared import HERE

from ergo_capture import (
    Constraints,
    ErrKind,
    EventTime,
    ExternalEvent,
    RunTermination,
    encode_bundle,
    read_capture_bundle,
)
from ergo_capture.bundle.catalogue import Catalogue
from ergo_capture.bundle.format import CaptureJsonStyle
from ergo_capture.cli.support.verification import check
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.decision_rows import DecisionRows
from ergo_capture.journal.frame import IGNORABLE, FrameKind, PendingFrame, encode_header
from ergo_capture.journal.lines import read_body
from ergo_capture.journal.payloads import Closing, Peer, Publication, Rotation, SessionDescription, encode_body
from ergo_capture.journal.recovery import PendingPublication, RecoveredSession, recover
from ergo_capture.journal.scan_report import Verdict
from ergo_capture.journal.wal import Journal
from ergo_capture.kernel.effects import ActionEffect, EffectWrite, Value
from ergo_capture.kernel.ports import DecisionLogEntry, RunResult
from ergo_capture.kernel.records import CapturedIntentAck
from ergo_capture.kernel.supervisor import Supervisor
from ergo_capture.storage import RealStorage

GOLDEN: Final = HERE / "data" / "golden"
PROGRAM: Final = "ergo-capture 0.1.0"
WHEN: Final = "2026-11-23T12:00:00.000Z"
LIMITED: Final = Constraints(None, 2, EventTime(10, 0), EventTime(5, 0), 1)


class Life:
    """A session whose frames are like the daemon's."""

    def __init__(self, number: int, constraints: Constraints = LIMITED, outcomes: Iterable[RunResult] = ()) -> None:
        self.number = number
        self.description = SessionDescription(
            session=f"20261123T120000Z-{number}-0000000{number}",
            graph="golden",
            constraints=constraints,
            adapter_provenance="none",
            runtime_provenance="rpv1:golden",
            engine="fixed",
            labels={"made": "by tests.golden", "größe": "klein"},
            peer=Peer(1000, 1000, 4242),
            opened_at=WHEN,
            program=PROGRAM,
        )
        self.accepted = self.decided = self.part_first = 0
        self.part = 1
        self._outcomes = deque(outcomes)
        self._undecided: deque[ExternalEvent] = deque()
        self._rows = DecisionRows()
        self._begin()

    def _begin(self) -> None:
        self._supervisor = Supervisor("golden", self.description.constraints, self, self)

    def log(self, entry: DecisionLogEntry) -> None:
        """Take a decision (``DecisionLog``)."""
        self._rows.add(entry)

    def run(self, graph_id: str, event_id: str, event: Any, deadline: Any) -> RunResult:
        """End an attempt (``RuntimeInvoker``)."""
        return self._outcomes.popleft() if self._outcomes else RunResult(RunTermination.Completed)

    def opened(self) -> PendingFrame:
        """Return the OPEN frame."""
        return PendingFrame(FrameKind.OPEN, self.number, 0, 0, encode_body(self.description))

    def events(self, *lines: tuple[str, str, int, str]) -> PendingFrame:
        """Return a frame of events, given as id, kind, seconds, and payload as JSON text or nothing."""
        body = b"".join(
            json.dumps(
                {
                    "type": "event",
                    "event": {"event_id": event_id, "kind": kind, "at": {"secs": secs, "nanos": 0}}
                    | ({"payload": json.loads(payload)} if payload else {}),
                },
                ensure_ascii=False,
            ).encode()
            + b"\n"
            for event_id, kind, secs, payload in lines
        )
        self._undecided.extend(read_body(body))
        frame = PendingFrame(FrameKind.EVENTS, self.number, self.accepted, len(lines), body)
        self.accepted += len(lines)
        return frame

    def decisions(self, count: int) -> PendingFrame:
        """Return a frame of decisions about the next events."""
        self._rows = DecisionRows()
        for _ in range(count):
            self._supervisor.drive(self._undecided.popleft())
        frame = PendingFrame(FrameKind.DECISIONS, self.number, self.decided, count, self._rows.encode())
        self.decided += count
        return frame

    def rotated(self, last_event_id: str, *, forced: bool = False) -> PendingFrame:
        """Return the frame that ends a part."""
        body = Rotation(self.part, forced, WHEN, self.description, last_event_id)
        self.part, self.part_first = self.part + 1, self.decided
        self._begin()
        return PendingFrame(FrameKind.ROTATE, self.number, self.decided, 0, encode_body(body))

    def closed(self, ended: str) -> PendingFrame:
        """Return the frame that ends the session."""
        return PendingFrame(FrameKind.CLOSE, self.number, self.decided, 0, encode_body(Closing(ended, WHEN)))

    def published(self, part: int = 1, *, final: bool = True) -> PendingFrame:
        """Return the frame that says that a bundle is durable."""
        name = f"bundles/golden/{self.description.session}"
        body = Publication(part, f"{name}.capture.json", f"{name}.manifest.json", "0" * 64, final)
        return PendingFrame(FrameKind.PUBLISHED, self.number, part, int(final), encode_body(body))


MIXED: Final = (
    ("é1", "Command", 1, '{"text": "ünï ☃ 𝄞", "n": [1, 2.5, 1e-7, null, true]}'),
    ("e2", "DataAvailable", 2, ""),
    ("e3", "Command", 3, '{"deferred": true}'),
    ("p1", "Pump", 4, ""),
    ("p2", "Pump", 30, ""),
    ("e4", "Command", 29, "{}"),
)
OUTCOMES: Final = (
    RunResult(RunTermination.TimedOut),
    RunResult(
        RunTermination.Completed,
        (ActionEffect("write", (EffectWrite("k", Value(Number=0.1)), EffectWrite("s", Value(Series=(1.0, -0.0))))),),
        (CapturedIntentAck("i1", "channel", "accepted", "durable", "ref"),),
    ),
    RunResult(RunTermination.Failed(ErrKind.SemanticError), (), (), "stopped by hand"),
)


def plain(prefix: str, count: int, secs: int = 0) -> list[tuple[str, str, int, str]]:
    """Return events without any particularity."""
    return [(f"{prefix}{n}", "Command", secs + n, json.dumps({"n": n})) for n in range(count)]


# --- the journals ---


def sealed(directory: Path) -> None:
    """Two sessions that were closed and published; the daemon was stopped in order."""
    one, two = Life(1, LIMITED, OUTCOMES), Life(2, Constraints())
    journal = journal_in(directory)
    journal.commit([one.opened(), two.opened()])
    journal.commit([one.events(*MIXED), two.events(*plain("a", 3))])
    journal.commit([one.decisions(6), two.decisions(3)])
    journal.commit([one.closed("complete"), two.closed("complete")])
    journal.commit([one.published(), two.published()])
    journal.seal()
    journal.close()


def killed(directory: Path) -> None:
    """Two sessions that go on; everything that was accepted is decided."""
    one, two = Life(1, LIMITED, OUTCOMES), Life(2, Constraints())
    journal = journal_in(directory)
    journal.commit([one.opened()])
    journal.commit([one.events(*MIXED), two.opened()])
    journal.commit([one.decisions(6), two.events(*plain("a", 3))])
    journal.commit([two.decisions(3)])
    journal.close()


def in_doubt(directory: Path) -> None:
    """Events that were accepted and not decided; the episode of the first may have run."""
    one = Life(1, LIMITED, OUTCOMES)
    journal = journal_in(directory)
    journal.commit([one.opened(), one.events(*MIXED[:3])])
    journal.commit([one.events(*MIXED[3:]), one.decisions(2)])
    journal.close()


def torn(directory: Path) -> None:
    """The last batch is cut within its second frame: it was never acknowledged."""
    one = Life(1, Constraints())
    journal = journal_in(directory)
    journal.commit([one.opened(), one.events(*plain("a", 2))])
    journal.commit([one.decisions(2), one.events(*plain("b", 2, 10))])
    journal.close()
    path = next(directory.iterdir())
    (header, offset) = frames_of(path)[-1]
    data = path.read_bytes()
    path.write_bytes(data[: offset + header.size - 20] + bytes(len(data) - offset - header.size + 20))


def damaged(directory: Path) -> None:
    """A byte of an acknowledged frame of the first session is another; the second is whole."""
    one, two = Life(1, Constraints()), Life(2, Constraints())
    journal = journal_in(directory)
    journal.commit([one.opened(), two.opened()])
    journal.commit([one.events(*plain("a", 2)), two.events(*plain("b", 2))])
    journal.commit([one.decisions(2), two.decisions(2)])
    journal.close()
    path = next(directory.iterdir())
    flip(path, next(offset for header, offset in frames_of(path) if header.kind == FrameKind.EVENTS) + 100)


def rotated(directory: Path) -> None:
    """Three parts: the first is published and its segment gone, the second was forced, the third goes on."""
    one = Life(1, LIMITED)
    journal = journal_in(directory)
    journal.commit([one.opened(), one.events(*plain("a", 3, 100))])
    journal.commit([one.decisions(3)])
    while journal.current_segment < 2:
        # Some other session fills the segment.
        other = Life(9, Constraints())
        journal.commit([other.opened()])
        journal.commit([other.closed("complete"), other.published()])
    journal.commit([one.rotated("a2")])
    journal.commit([one.published(1, final=False), one.events(*plain("b", 4, 200))])
    journal.commit([one.decisions(4)])
    journal.commit([one.rotated("b3", forced=True), one.events(*plain("c", 2, 300))])
    journal.commit([one.decisions(1)])
    journal.delete_segments(2)
    journal.close()


def parts(directory: Path) -> None:
    """A session of two parts that is complete, and of which nothing is published yet."""
    one = Life(1, LIMITED, OUTCOMES)
    journal = journal_in(directory)
    journal.commit([one.opened(), one.events(*MIXED)])
    journal.commit([one.decisions(6)])
    journal.commit([one.rotated("e4"), one.events(*plain("b", 2, 200))])
    journal.commit([one.decisions(2)])
    journal.commit([one.closed("complete")])
    journal.close()


def ended(directory: Path) -> None:
    """Three sessions that were closed, each in its way, and whose bundles are still to be published."""
    lives = [Life(number, LIMITED, OUTCOMES) for number in (1, 2, 3)]
    journal = journal_in(directory)
    journal.commit([life.opened() for life in lives])
    journal.commit([life.events(*MIXED) for life in lives])
    journal.commit([life.decisions(6) for life in lives])
    journal.commit(
        [life.closed(how) for life, how in zip(lives, ("complete", "recovered", "interrupted"), strict=True)]
    )
    journal.close()


def full(directory: Path) -> None:
    """One session over three segments, the first of them written to its last byte."""
    one = Life(1, Constraints())
    journal = journal_in(directory)
    journal.commit([one.opened()])
    path = directory / "0000000000000001.journal"
    header, offset = frames_of(path)[-1]
    free = path.stat().st_size - offset - header.size
    padding = free - 64 - len(one.events(("a0", "Command", 0, '{"pad": ""}')).body) - 64 - 16
    one = Life(1, Constraints())
    first = one.events(("a0", "Command", 0, json.dumps({"pad": "x" * padding})))
    journal.commit([first, one.decisions(1)])
    assert path.stat().st_size == sum(header.size for header, _ in frames_of(path))
    while journal.current_segment < 3:
        journal.commit([one.events(*plain(f"{one.accepted}-", 4, one.accepted)), one.decisions(4)])
    journal.close()


def missing(directory: Path) -> None:
    """The same without its second segment."""
    full(directory)
    (directory / "0000000000000002.journal").unlink()


def newer(directory: Path) -> None:
    """A frame of a later format version follows what we know."""
    killed(directory)
    _append(directory, FrameKind.EVENTS, version=2)


def newest(directory: Path) -> None:
    """A frame of format version 3 follows what format version 2 knows."""
    killed(directory)
    _append(directory, FrameKind.EVENTS, version=3)


def ignorable(directory: Path) -> None:
    """A frame of a kind that we do not know, which says that it may be passed over."""
    killed(directory)
    _append(directory, 99, flags=IGNORABLE)


def _append(directory: Path, kind: int, **fields: int) -> None:
    from crc32c import crc32c

    path = next(directory.iterdir())
    header, offset = frames_of(path)[-1]
    body = b'{"from":"the future"}   '
    frame = encode_header(kind, 1, header.batch + 1, 1, 0, 0, len(body), 0, 1, crc32c(body), **fields) + body
    with path.open("r+b") as file:
        file.seek(offset + header.size)
        file.write(frame)


def hosted_interrupted(directory: Path) -> None:
    """Format 2: two parts with an adapter, merged payloads, a refusal, an interruption and events after it."""
    life = HostedLife(results={"e1": sets(n=11), "e3": sends("i1", n=3), "e5": sends("i2")}, unacknowledged=["i2"])
    journal = journal_in(directory)
    journal.commit([life.opened(), life.events(*HOSTED[:3])])
    journal.commit([life.decisions()])
    journal.commit([life.rotated(), life.events(*HOSTED[3:])])
    journal.commit([life.decisions()])
    journal.commit([life.closed("interrupted")])
    journal.close()


def hosted_outcome(directory: Path) -> None:
    """Format 2: an episode ran, one of its intents is acknowledged, its decision is not there yet."""
    life = HostedLife(results={"e1": sets(n=2)})
    journal = journal_in(directory)
    journal.commit([life.opened(), life.events(*HOSTED[:3])])
    journal.commit([life.decisions(2), life.outcome(sends("i1", "i2", n=4))])
    journal.commit([life.ack("i1")])
    journal.close()


HOSTED: Final[tuple[Sent, ...]] = (
    ("e1", "Command", 1, "full", {"n": 1, "v": [1.5, 2]}),
    ("e2", "Command", 2, "full", {"note": "n comes from the store"}),
    ("e3", "DataAvailable", 3, "plain", {"note": "ünï"}),
    ("e4", "Command", 14, "full", {}),
    ("e5", "Command", 15, "full", {"n": 5}),
    ("e6", "Command", 16, "full", {"n": 6}),
)

JOURNALS: Final[dict[str, Callable[[Path], None]]] = {
    maker.__name__.replace("_", "-"): maker
    for maker in (
        sealed,
        killed,
        in_doubt,
        torn,
        damaged,
        rotated,
        parts,
        ended,
        full,
        missing,
        newer,
        newest,
        ignorable,
        hosted_interrupted,
        hosted_outcome,
    )
}


# --- what is in them ---


def found_in(directory: Path) -> dict[str, Any]:
    """Return what a start finds in a journal, and the bundles that are composed from it; repair a torn end."""
    storage = RealStorage()
    try:
        journal, found = Journal.open(directory, storage, segment_bytes=4096, program=PROGRAM)
    except ErgoCaptureError as error:
        return {"refused": error.message.replace(str(directory), "JOURNAL"), "hint": error.hint}
    journal.close()
    recovery = recover(directory, found, storage)
    return {
        "segments": found.segments,
        "frames": found.frames,
        "sealed": found.ending is Verdict.SEALED,
        "torn": sorted(path.name for path in directory.glob("*.torn*")),
        "torn_bytes": recovery.torn_bytes,
        "damage": [str(damage) for damage in found.damage],
        "quarantined": recovery.reasons,
        "next_session": recovery.next_session,
        "sessions": [_session(directory, session) for session in recovery.sessions],
    }


def _session(directory: Path, session: RecoveredSession) -> dict[str, Any]:
    now = session.supervisor.now
    return {
        "session": session.description.session,
        "labels": session.description.labels,
        "closing": session.closing and session.closing.ended,
        "part": session.part,
        "first": session.first,
        "accepted": session.accepted,
        "decided": session.decided,
        "undecided": [event.event_id for event in session.undecided],
        "last_event_id": session.last_event_id,
        "deferred": session.supervisor.deferred_count,
        "now": [now.secs, now.nanos],
        "bundles": {
            str(part.part): [part.count, part.ended, part.forced, _sha256(directory, session, part)]
            for part in parts_of(session)
        },
    } | _hosted(session)


def _hosted(session: RecoveredSession) -> dict[str, Any]:
    """Return the facts that only sessions with an adapter have."""
    if session.description.contract is None:
        return {}
    pending = session.outcome
    found = {
        "store": session.store,
        "refused": [[event.index, event.event_id, event.code] for event in session.refusals],
        "interruption": session.interruption,
        "left_over": session.left_over,
        "outcome": None if pending is None else pending.outcome,
        "acks": [] if pending is None else pending.acks,
    }
    plain: dict[str, Any] = json.loads(msgspec.json.encode(found))
    return plain


def _sha256(directory: Path, session: RecoveredSession, part: PendingPublication) -> str:
    with tempfile.TemporaryDirectory() as place:
        destination = Path(place) / "b.capture.json"
        compose(directory, session, part, destination, ended_at=WHEN)
        assert check(destination)["ok"]
        return hashlib.sha256(destination.read_bytes()).hexdigest()


# --- the bundles ---


def make_bundles(folder: Path) -> None:
    """Make a bundle of each ending, style and form from the journals, one of a later version, and a cut one."""
    with tempfile.TemporaryDirectory() as place:
        for name in ("ended", "rotated", "parts", "in-doubt"):
            directory = Path(place) / name
            directory.mkdir()
            JOURNALS[name](directory)
            journal, found = Journal.open(directory, RealStorage(), segment_bytes=4096)
            journal.close()
            for session in recover(directory, found, RealStorage()).sessions:
                for part in parts_of(session):
                    label = "snapshot" if part.ended == "open" else part.ended + "-forced" * part.forced
                    label += f"-part-{part.part}" if name in ("rotated", "parts") else ""
                    made = partial(compose, directory, session, part, ended_at=WHEN)
                    made(folder / f"{label}.capture.json")
                    if label == "complete":
                        made(folder / "pretty.capture.json", style="pretty")
                        made(folder / "packed.capture.json.zst", compress="zstd")
    complete = read_capture_bundle(folder / "complete.capture.json")
    text = encode_bundle(complete)
    (folder / "cut.capture.json").write_bytes(text[: len(text) // 2])
    (folder / "cut-packed.capture.json.zst").write_bytes(zstandard.compress(text)[:-50])
    (folder / "newer.capture.json").write_bytes(text.replace(b'"v3"', b'"v4"', 1))
    pretty = encode_bundle(complete, CaptureJsonStyle.Pretty)
    assert pretty == (folder / "pretty.capture.json").read_bytes()


def said_of(folder: Path) -> dict[str, Any]:
    """Return the verdict of ``verify`` and of the catalogue on each bundle in a folder, by its name."""
    troubles = {bundle.path: bundle.problem or "finished" for bundle in Catalogue(folder.parent).read()}
    said = {}
    for path in sorted(folder.glob("*.capture.json*")):
        result = check(path)
        said[path.name] = {
            "ok": result["ok"],
            "events": result.get("events"),
            "error": str(result.get("error", "")).replace(str(path), "BUNDLE") or None,
            "catalogue": troubles[path],
            "file_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
    return said


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Write the golden files that are missing."""
    for name, maker in JOURNALS.items():
        folder = GOLDEN / "journals" / name
        if folder.exists():
            continue
        (folder / "journal").mkdir(parents=True)
        maker(folder / "journal")
        with tempfile.TemporaryDirectory() as place:
            copy = shutil.copytree(folder / "journal", Path(place) / "journal")
            _write(folder / "expected.json", {"about": maker.__doc__} | found_in(Path(copy)))
        print(f"made {folder}")  # noqa: T201 - a script
    folder = GOLDEN / "bundles" / "golden"
    if not folder.exists():
        folder.mkdir(parents=True)
        make_bundles(folder)
        _write(folder.parent / "expected.json", said_of(folder))
        print(f"made {folder}")  # noqa: T201 - as above


if __name__ == "__main__":
    main()
