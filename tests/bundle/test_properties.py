"""Properties of any run: replays reproduce it, its clock is monotonic, and a plain parser accepts the same payloads."""

from __future__ import annotations

import json
import re
from collections import deque
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ergo_capture import (
    ActionEffect,
    CaptureBundle,
    CaptureJsonStyle,
    CapturingSession,
    Constraints,
    ErrKind,
    EventTime,
    ExternalEvent,
    ExternalEventKind,
    FaultRuntime,
    MemoryDecisionLog,
    RunTermination,
    Supervisor,
    compare_decisions,
    decode_bundle,
    encode_bundle,
    first_divergence,
    replay_checked_strict,
    validate_bundle_strict,
)
from ergo_capture.kernel.effects import EffectWrite, Value
from ergo_capture.kernel.events import ExternalEventPayloadError, check_payload
from ergo_capture.kernel.ports import RunResult
from ergo_capture.kernel.records import encode_decision, encode_decisions, encode_event, encode_events
from ergo_capture.kernel.replay import rederive

U64 = (1 << 64) - 1
times = st.builds(
    EventTime,
    st.integers(0, 20) | st.sampled_from([U64, U64 - 1, 1 << 63]),
    st.sampled_from([0, 1, 500_000_000, 999_999_999]),
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
payloads = st.just(b"") | st.builds(
    lambda value, ascii_only, spaced: json.dumps(
        value, ensure_ascii=ascii_only, separators=(", ", " : ") if spaced else (",", ":")
    ).encode(),
    st.dictionaries(texts, json_values, max_size=3),
    st.booleans(),
    st.booleans(),
)


@st.composite
def streams(draw: st.DrawFn) -> list[ExternalEvent]:
    """Generate events with distinct ids, in any order of time."""
    ids = draw(st.lists(texts, unique=True, max_size=25))
    return [
        ExternalEvent.with_payload(event_id, draw(st.sampled_from(ExternalEventKind)), draw(times), draw(payloads))
        for event_id in ids
    ]


spans = st.sampled_from([None, EventTime(0, 0), EventTime(0, 1), EventTime(3, 0), EventTime(U64, 999_999_999)])
limits = st.builds(
    Constraints,
    st.sampled_from([None, None, None, 0, 1, 2]),
    st.sampled_from([None, 0, 1, 3]),
    spans,
    spans,
    st.integers(0, 3),
)
terminations = st.sampled_from(
    [RunTermination.Completed, RunTermination.TimedOut, RunTermination.Aborted, *map(RunTermination.Failed, ErrKind)]
)
values = (
    st.builds(lambda number: Value(Number=number), st.floats(allow_nan=False, allow_infinity=False))
    | st.builds(lambda numbers: Value(Series=tuple(numbers)), st.lists(st.floats(-1e6, 1e6), max_size=3))
    | st.builds(lambda flag: Value(Bool=flag), st.booleans())
    | st.builds(lambda text: Value(String=text), texts)
)
effects = st.builds(
    lambda kind, writes: ActionEffect(kind, tuple(writes)),
    texts,
    st.lists(st.builds(EffectWrite, texts, values), max_size=2),
)
results = st.builds(
    lambda termination, done, interruption: RunResult(termination, tuple(done), (), interruption),
    terminations,
    st.lists(effects, max_size=2),
    st.none() | texts,
)


class Plan:
    """An engine that ends each attempt as planned; attempts are numbered over all events."""

    def __init__(self, outcomes: list[RunResult]) -> None:
        self._outcomes = deque(outcomes)

    def run(self, graph_id: str, event_id: str, event: Any, deadline: EventTime | None) -> RunTermination | RunResult:
        """Return the next outcome; completed when the plan is used up."""
        return self._outcomes.popleft() if self._outcomes else RunTermination.Completed


@st.composite
def plans(draw: st.DrawFn) -> list[RunResult]:
    """Generate outcomes of attempts."""
    return draw(st.lists(results, max_size=12))


def capture(stream: list[ExternalEvent], constraints: Constraints, outcomes: list[RunResult]) -> CaptureBundle:
    """Return the bundle of a run."""
    session = CapturingSession("g", constraints, MemoryDecisionLog(), Plan(outcomes), "rpv1:plan")
    for event in stream:
        session.on_event(event)
    return session.into_bundle()


@given(streams(), limits, plans())
def test_replaying_a_capture_reproduces_it(
    stream: list[ExternalEvent], constraints: Constraints, outcomes: list[RunResult]
) -> None:
    """The engine is the same, and the text is in either style."""
    bundle = capture(stream, constraints, outcomes)
    for style in CaptureJsonStyle:
        read = decode_bundle(encode_bundle(bundle, style))
        assert read == bundle
        assert encode_bundle(read, style) == encode_bundle(bundle, style)
    replayed = replay_checked_strict(
        read, Plan(outcomes), expected_adapter_provenance="none", expected_runtime_provenance="rpv1:plan"
    )
    assert compare_decisions(bundle.decisions, replayed)
    assert first_divergence(bundle.decisions, replayed) is None


@given(streams(), limits, plans())
def test_records_are_encoded_together_as_one_by_one(
    stream: list[ExternalEvent], constraints: Constraints, outcomes: list[RunResult]
) -> None:
    """The bytes are equal."""
    bundle = capture(stream, constraints, outcomes)
    assert encode_events(bundle.events) == b",".join(map(encode_event, bundle.events))
    assert encode_decisions(bundle.decisions) == b",".join(map(encode_decision, bundle.decisions))


@given(streams(), limits, plans())
def test_rederiving_a_capture_without_an_engine_reproduces_it(
    stream: list[ExternalEvent], constraints: Constraints, outcomes: list[RunResult]
) -> None:
    """Every record is equal, including the fields that a replay does not compare."""
    bundle = capture(stream, constraints, outcomes)
    validate_bundle_strict(bundle, expected_adapter_provenance="none", expected_runtime_provenance="rpv1:plan")
    assert rederive(bundle) == list(bundle.decisions)
    assert len(bundle.decisions) == len(bundle.events) == len(stream)


@given(streams(), limits, terminations)
def test_the_clock_never_goes_back(
    stream: list[ExternalEvent], constraints: Constraints, ending: RunTermination
) -> None:
    """It is the greatest event time so far, and nothing is scheduled before it."""
    log = MemoryDecisionLog()
    supervisor = Supervisor("g", constraints, log, FaultRuntime(ending))
    seen = EventTime(0, 0)
    for event in stream:
        supervisor.drive(event)
        seen = max(seen, event.at)
        assert supervisor.now == seen
        scheduled = log.entries[-1].schedule_at
        assert scheduled is None or scheduled >= seen


@given(streams(), limits, terminations)
def test_an_episode_id_is_assigned_once_and_invoked_at_most_once(
    stream: list[ExternalEvent], constraints: Constraints, ending: RunTermination
) -> None:
    """It does not matter how often it is put back, or which Pump invokes it."""
    log = MemoryDecisionLog()
    supervisor = Supervisor("g", constraints, log, FaultRuntime(ending))
    for event in stream:
        supervisor.drive(event)
    invoked = [entry.episode_id for entry in log.entries if entry.termination is not None]
    assert len(set(invoked)) == len(invoked)
    first_seen = list(dict.fromkeys(entry.episode_id for entry in log.entries))
    assert first_seen == list(range(len(first_seen)))


# --- which payloads are accepted: against a parser that is slow and plain ---

NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
ESCAPED = re.compile(rb'\\(?:["\\/bfnrt]|u([0-9a-fA-F]{4}))')
SPACE = b" \t\n\r"


class Refused(Exception):
    """Raised by the oracle for a text that it refuses."""


class Oracle:
    """RFC 8259 read one character at a time, with the reference's bounds."""

    def __init__(self, text: bytes) -> None:
        text.decode("utf-8")
        self.text, self.at = text, 0

    def document(self) -> str:
        """Read the text, which must be a single value, and return its first character."""
        self.space()
        first = self.text[self.at : self.at + 1].decode()
        self.value(0)
        self.space()
        if self.at != len(self.text):
            raise Refused
        return first

    def space(self) -> None:
        """Skip white space."""
        while self.text[self.at : self.at + 1] and self.text[self.at] in SPACE:
            self.at += 1

    def take(self, expected: bytes) -> bool:
        """Skip these bytes, if they are next."""
        if not self.text.startswith(expected, self.at):
            return False
        self.at += len(expected)
        return True

    def value(self, depth: int) -> None:
        """Skip a value at this depth."""
        if self.take(b"{"):
            self.members(depth + 1, b"}", keys=True)
        elif self.take(b"["):
            self.members(depth + 1, b"]", keys=False)
        elif self.take(b'"'):
            self.string()
        elif not (self.take(b"true") or self.take(b"false") or self.take(b"null")):
            self.number()

    def members(self, depth: int, end: bytes, *, keys: bool) -> None:
        """Skip the content of an object or an array, and its end."""
        if depth > 127:
            raise Refused
        self.space()
        if self.take(end):
            return
        while True:
            self.space()
            if keys:
                if not self.take(b'"'):
                    raise Refused
                self.string()
                self.space()
                if not self.take(b":"):
                    raise Refused
                self.space()
            self.value(depth)
            self.space()
            if self.take(end):
                return
            if not self.take(b","):
                raise Refused

    def string(self) -> None:
        """Skip the rest of a string."""
        high = False
        while True:
            byte = self.text[self.at : self.at + 1]
            if not byte or byte[0] < 0x20:
                raise Refused
            escape = ESCAPED.match(self.text, self.at)
            if byte == b"\\" and escape is None:
                raise Refused
            code = int(escape[1], 16) if escape is not None and escape[1] else 0
            low = 0xDC00 <= code < 0xE000
            if high != low:
                # Half of a pair alone.
                raise Refused
            high = 0xD800 <= code < 0xDC00
            if escape is not None:
                self.at = escape.end()
                continue
            self.at += 1
            if byte == b'"':
                return

    def number(self) -> None:
        """Skip a number that an f64 can represent."""
        match = NUMBER.match(self.text, self.at)
        if match is None or abs(float(match[0])) == float("inf"):
            raise Refused
        self.at = match.end()


def oracle_accepts(payload: bytes) -> bool:
    """Return whether a payload is empty, or one JSON object within the bounds."""
    try:
        return not payload or Oracle(payload).document() == "{"
    except (Refused, UnicodeDecodeError):
        return False


def accepted(payload: bytes) -> bool:
    """Return whether the kernel accepts a payload."""
    try:
        check_payload(payload)
    except ExternalEventPayloadError:
        return False
    return True


PIECES = [
    b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\", b"\\u", b"\\ud800", b"\\udc00", b"\\uD834\\uDD1E", b"\\n", b"\\x",
    b"\x00", b"\x1f", b"\x7f", b"\x80", b"\xc3", b"\xc3\xa9", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf",
    b"\xef\xbb\xbf", b"\xf0\x9d\x84\x9e", b"0", b"00", b"-", b"-0", b"1e400", b"-1e309", b"1e308", b"1e-400", b"1.",
    b".5", b"1e", b"1E+2", b"9" * 400, b"1" + b"0" * 308, b"2" + b"0" * 308, b"0." + b"9" * 400, b"true", b"nul",
    b"null", b"NaN", b"Infinity", b" ", b"\t", b"\n", b"\x0b", b"\xc2\xa0", b"//", b'{"a":1}', b'"a":', b"[[[[",
]  # fmt: skip
pieces = st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Generate a valid payload with some bytes replaced."""
    text = draw(payloads)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 3)))
        text = text[:start] + draw(st.sampled_from(PIECES) | st.binary(max_size=1)) + text[end:]
    return text


nested = st.builds(
    lambda depth, opening, within: opening * depth + within + {b"[": b"]", b'{"":': b"}"}[opening] * depth,
    st.integers(120, 132),
    st.sampled_from([b"[", b'{"":']),
    st.sampled_from([b"", b"1", b'"[[["', b"[]"]),
).map(lambda inner: b'{"a":' + inner + b"}")


@settings(max_examples=600)
@given(payloads | damaged() | pieces | pieces.map(lambda inner: b'{"a":%b}' % inner) | nested | st.binary(max_size=20))
@example(b'{"a":' + b"[" * 126 + b"]" * 126 + b"}")
@example(b'{"a":' + b"[" * 127 + b"]" * 127 + b"}")
@example(b'{"a":1' + b"0" * 400 + b"e-390}")
@example(b'{"a":"\\ud834\\udd1e"}')
@example(b'{"a":"\\udd1e\\ud834"}')
@example(b'{"a":1,"a":2}')
@example(b" \n{ } \r\n")
def test_a_payload_is_accepted_exactly_where_a_plain_parser_accepts_it(payload: bytes) -> None:
    """This holds for any bytes."""
    assert accepted(payload) == oracle_accepts(payload)


@given(payloads)
def test_a_sound_payload_survives_a_bundle_byte_for_byte(payload: bytes) -> None:
    """It is encoded and decoded."""
    event = ExternalEvent.with_payload("e", ExternalEventKind.Command, EventTime(0, 0), payload)
    bundle = decode_bundle(encode_bundle(capture([event], Constraints(), [])))
    assert bytes(bundle.events[0].payload) == payload
