"""Read the events of a host's run: a driver's stream, or a fixture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal

import msgspec

from ergo_capture.adapter.canonical import Numbers, read_json
from ergo_capture.adapter.egress import EgressFailure
from ergo_capture.adapter.errors import AdapterError
from ergo_capture.adapter.events import DRIVER_PROTOCOL, EVENT_KINDS, HostedEvent, read_frame
from ergo_capture.adapter.host import (
    COMPLETED,
    HOST_STOP,
    End,
    Host,
    HostError,
    Refusal,
    failed,
    interrupted,
    step_failed,
)
from ergo_capture.adapter.shapes import anything, option, rust_debug, string, struct, tagged, variant
from ergo_capture.kernel.events import ExternalEventKind, json_type_name

SUCCESS: Final = "exit status: 0"
#: Milliseconds that a driver may take to send its hello, and to end after its last frame.
GRACE_MS: Final = 5000
#: The characters that the reference strips from the ends of a line.
_BLANKS: Final = " \t\n\r\x0b\x0c\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"


class Observation(msgspec.Struct, frozen=True):
    """An observation of a driver by its host.

    Kinds: ``line`` (with its text), ``not_utf8`` (a line that is not UTF-8), ``end_of_output`` (with the exit status,
    None if the driver does not end in time), ``silence`` (no hello in time), ``stop`` (the host is told to stop).
    """

    kind: Literal["line", "not_utf8", "end_of_output", "silence", "stop"]
    line: str = ""
    status: str | None = SUCCESS


class Progress:
    """The counts of a run: events by episode, including those that interrupted the run."""

    def __init__(self, labels: Iterable[str]) -> None:
        self.labels = list(labels)
        #: Events of each episode.
        self.counts = [0] * len(self.labels)
        #: Events whose step was completed.
        self.committed = 0

    def record(self, episode: int, *, committed: bool) -> None:
        """Count an event."""
        self.counts[episode] += 1
        self.committed += committed


def run_driver(
    host: Host,
    observations: Iterable[Observation],
    progress: Progress,
    *,
    command: Iterable[str] = ("./driver",),
    max_events: int | None = None,
    numbers: Numbers = "reference",
) -> End:
    """Run the events of a driver's stream, and return the end of the run.

    Args:
        host: the run.
        observations: the driver's lines and its end, in order.
        progress: counts the events, of one episode.
        command: the driver's command, for messages.
        max_events: the number of events after which to stop; None for all.
        numbers: how the numbers of lines are read.

    Raises:
        HostError: the run failed, before the first event or by a refused one.
    """
    name = f"process driver [{', '.join(map(rust_debug, command))}]"
    stream = iter(observations)
    greeted = False
    while True:
        stopped = max_events is not None and progress.committed >= max_events
        seen = Observation("stop") if stopped else next(stream, Observation("end_of_output"))
        if seen.kind == "stop":
            return _stop(progress)
        if seen.kind != "line":
            return _without_end(name, seen, progress)
        try:
            tag, content = read_frame(seen.line.rstrip("\r\n"), numbers)
        except ValueError as error:
            text = f"{name} emitted invalid JSONL protocol before first committed step: {error}"
            return _violation(progress, text)
        if not greeted:
            if tag != "hello":
                raise failed("driver.protocol_invalid", f"{name} must send hello first, got {tag}")
            if content != DRIVER_PROTOCOL:
                raise failed("driver.protocol_invalid", f"{name} declared unsupported protocol '{content}'")
            greeted = True
        elif tag == "hello":
            return _violation(progress, f"{name} sent duplicate hello before first committed step")
        elif tag == "end":
            if not progress.committed:
                raise failed("driver.protocol_invalid", f"{name} ended before first committed step")
            return _after_end(stream)
        else:
            try:
                host.step(content)
            except EgressFailure as failure:
                progress.record(0, committed=False)
                return End.of(failure)
            except AdapterError as error:
                raise step_failed(error) from error
            progress.record(0, committed=True)


def _stop(progress: Progress) -> End:
    if not progress.committed:
        raise failed("driver.output_incomplete", "host stop requested before first committed event")
    return interrupted(HOST_STOP)


def _violation(progress: Progress, text: str) -> End:
    if not progress.committed:
        raise failed("driver.protocol_invalid", text)
    return interrupted("protocol_violation")


def _without_end(name: str, seen: Observation, progress: Progress) -> End:
    if seen.kind == "silence":
        text = f"{name} did not emit a protocol frame within {GRACE_MS}ms before startup completed"
        raise failed("driver.start_failed", text)
    if seen.kind == "not_utf8":
        text = f"{name} emitted malformed protocol bytes: stream did not contain valid UTF-8"
        return _violation(progress, text)
    if progress.committed:
        return interrupted("driver_terminated")
    if seen.status is None:
        text = f"{name} closed stdout but did not exit within {GRACE_MS}ms before first committed step"
        raise failed("driver.start_failed", text)
    raise failed("driver.start_failed", f"{name} ended before first committed step ({seen.status})")


def _after_end(stream: Iterator[Observation]) -> End:
    for seen in stream:
        if seen.kind in {"line", "not_utf8"}:
            return interrupted("protocol_violation")
        if seen.kind == "end_of_output":
            return COMPLETED if seen.status == SUCCESS else interrupted("driver_terminated")
    return interrupted("driver_terminated")


class FixtureEvent(msgspec.Struct, frozen=True):
    """An event of a fixture as it is written."""

    type: ExternalEventKind
    id: str | None
    payload: Any
    semantic_kind: str | None


class Episode(msgspec.Struct, frozen=True):
    """Events under one label."""

    label: str
    events: list[HostedEvent]


_EVENT: Final = struct(
    "FixtureEvent",
    FixtureEvent,
    {"type": variant(EVENT_KINDS), "id": option(string), "payload": option(anything), "semantic_kind": option(string)},
    defaulted=frozenset({"id", "payload", "semantic_kind"}),
    deny_unknown=True,
)
_RECORDS: Final = {
    "episode_start": struct(
        "variant FixtureRecord::EpisodeStart",
        lambda id: id,  # noqa: A006 - the name in fixtures
        {"id": option(string)},
        optional=frozenset({"id"}),
        deny_unknown=True,
    ),
    "event": struct("variant FixtureRecord::Event", lambda event: event, {"event": _EVENT}, deny_unknown=True),
}


def read_fixture(
    text: str, *, bound: bool, numbers: Numbers = "reference", name: str = "events.jsonl"
) -> list[Episode]:
    """Read a whole fixture, and return its episodes.

    Args:
        text: the fixture.
        bound: whether the run has an adapter: each event then needs a semantic kind, and may leave out its payload.
        numbers: how numbers are read.
        name: the fixture's name in messages.

    Raises:
        HostError: it is refused.
    """
    episodes: list[Episode] = []
    ids: set[str] = set()
    started = 0
    records = []
    for number, line in enumerate(text.split("\n"), 1):
        if stripped := line.strip(_BLANKS):
            records.append(_read_record(stripped, number, numbers, name))
    for tag, content in records:
        if tag == "episode_start":
            started += 1
            episodes.append(Episode(f"E{started}" if content is None else content, []))
            continue
        if not episodes:
            episodes.append(Episode("E1", []))
        event_id = f"fixture_evt_{len(ids) + 1}" if content.id is None else content.id
        episodes[-1].events.append(_prepare(content, event_id, ids, bound=bound))
        ids.add(event_id)
    if not episodes:
        raise failed("driver.input_invalid", f"fixture input '{name}' contained no episodes")
    if not ids:
        raise failed("driver.input_invalid", f"fixture input '{name}' contained no events")
    for episode in episodes:
        if not episode.events:
            raise failed("driver.input_invalid", f"episode '{episode.label}' has no events")
    return episodes


def _read_record(line: str, number: int, numbers: Numbers, name: str) -> tuple[str, Any]:
    place = f"failed to parse fixture: fixture parse error at line {number} in '{name}'"
    try:
        tag, content = tagged("FixtureRecord", "kind", _RECORDS, read_json(line, numbers, pairs=True))
    except ValueError as error:
        raise failed("driver.input_invalid", f"{place}: {error}") from error
    if tag == "event" and content.payload is not None and not isinstance(content.payload, dict):
        text = f"{place}: payload must be a JSON object, got {json_type_name(content.payload)}"
        raise failed("driver.input_invalid", text)
    return tag, content


def _prepare(event: FixtureEvent, event_id: str, ids: set[str], *, bound: bool) -> HostedEvent:
    where = f"fixture event '{event_id}'"
    if event_id in ids:
        text = f"fixture event id '{event_id}' appears more than once in canonical run input"
        fix = "make fixture event ids unique, or omit ids to auto-generate unique fixture_evt_* ids"
        raise HostError(Refusal("fixture.duplicate_event_id", text, where, fix))
    if not bound:
        if event.semantic_kind is not None:
            text = f"{where} set semantic_kind but canonical run is not adapter-bound"
            fix = "remove semantic_kind or run with --adapter <adapter.yaml>"
            raise HostError(Refusal("fixture.unexpected_semantic_kind", text, where, fix))
        return HostedEvent(event_id, event.type, payload=event.payload)
    if event.semantic_kind is None:
        text = f"{where} is missing semantic_kind in adapter-bound canonical run"
        fix = "add semantic_kind to each fixture event when running with --adapter"
        raise HostError(Refusal("fixture.semantic_kind_missing", text, where, fix))
    payload = {} if event.payload is None else event.payload
    return HostedEvent(event_id, event.type, semantic_kind=event.semantic_kind, payload=payload)


def run_fixture(host: Host, episodes: list[Episode], progress: Progress, *, max_events: int | None = None) -> End:
    """Run the events of a fixture, and return the end of the run.

    Raises:
        HostError: the run failed.
    """
    for number, episode in enumerate(episodes):
        for event in episode.events:
            if _stops(progress, max_events):
                return interrupted(HOST_STOP)
            try:
                host.step(event)
            except EgressFailure as failure:
                progress.record(number, committed=False)
                return End.of(failure)
            except AdapterError as error:
                raise step_failed(error) from error
            progress.record(number, committed=True)
    return interrupted(HOST_STOP) if _stops(progress, max_events) else COMPLETED


def _stops(progress: Progress, max_events: int | None) -> bool:
    if max_events is None or progress.committed < max_events:
        return False
    if not progress.committed:
        raise failed("driver.output_incomplete", "host stop requested before first committed event")
    return True
