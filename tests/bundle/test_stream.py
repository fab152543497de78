"""A bundle read as a stream has the same records and errors as its whole text when parsed, in bounded memory."""

from __future__ import annotations

import json
import os
import random
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.bundles import small_bundle
from tests.shared import conformance, shared

from ergo_capture import CaptureBundle
from ergo_capture.bundle.format import CaptureJsonStyle, encode_bundle
from ergo_capture.bundle.reader import elements, outline
from ergo_capture.bundle.reader.opening import HEAD_BYTES, BundleFormatError, identify_foreign
from ergo_capture.bundle.reader.stream import open_bundle
from ergo_capture.bundle.recorder import CapturingSession
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.effects import ActionEffect, EffectWrite, IntentField, IntentRecord, Value
from ergo_capture.kernel.events import ExternalEvent, ExternalEventKind
from ergo_capture.kernel.outcomes import ErrKind, RunTermination
from ergo_capture.kernel.ports import MemoryDecisionLog, RunResult
from ergo_capture.kernel.records import CapturedIntentAck
from ergo_capture.kernel.serde import bundle as serde
from ergo_capture.kernel.serde.parsing import parse
from ergo_capture.kernel.time import EventTime

TEXTS = [
    line[name]
    for file, names in (
        ("scenarios.jsonl", ("bundle_compact", "bundle_pretty")),
        ("bundles.jsonl", ("bundle_text",)),
        ("lenient.jsonl", ("bundle_text",)),
    )
    for line in conformance(file)
    for name in names
    if name in line
] + [path.read_text() for path in sorted((shared("real") / "ergo-cli").glob("*.json"))]


def whole(text: bytes) -> CaptureBundle | str:
    """Return the bundle as the kernel reads it from the whole parsed text, or the error's message."""
    try:
        return serde.read_bundle(parse(text.decode()))
    except (ValueError, RecursionError) as error:
        foreign = identify_foreign(text[:HEAD_BYTES])
        return str(error) if foreign is None else foreign[0]


def streamed(path: Path, text: bytes) -> CaptureBundle | str:
    """Return the bundle as a stream reads it from a file with that text, or the error's message."""
    path.write_bytes(text)
    try:
        with open_bundle(path) as stream:
            return CaptureBundle(
                stream.capture_version,
                stream.graph_id,
                stream.config,
                list(stream.events()),
                list(stream.decisions()),
                stream.adapter_provenance,
                stream.runtime_provenance,
                stream.egress_provenance,
            )
    except BundleFormatError as error:
        return error.message.removeprefix(f"read capture bundle '{path}': ")


class _Effects:
    """An engine: some episodes have effects and an ack, some are interrupted, some fail."""

    def run(self, graph_id: str, event_id: str, event: Any, deadline: EventTime | None) -> RunResult | RunTermination:
        number = int(event_id.rpartition(" ")[2])
        if number % 4 != 1:
            return RunTermination.Failed(ErrKind.SemanticError) if number % 5 == 0 else RunTermination.Completed
        value = Value(Series=(1.5, -0.0, 1e16)) if number % 2 else Value(String=f'"{number}": \\ é')
        intent = IntentRecord("send", f"i{number}", (IntentField("to", value), IntentField("n", Value(Number=-2.0))))
        effect = ActionEffect("set_context", (EffectWrite("k", value), EffectWrite("b", Value(Bool=True))), (intent,))
        ack = CapturedIntentAck(f"i{number}", "c", "s", "a", "ref" if number % 8 == 1 else None)
        return RunResult(RunTermination.Completed, (effect, effect), (ack,), "cut off" if number % 9 == 0 else None)


def rich_bundle(count: int, payload: int = 40, *, limited: bool = True) -> CaptureBundle:
    """Return a bundle with every kind of record; with ``limited=False`` no episode is rate-limited."""
    limits = Constraints(max_per_window=20, rate_window=EventTime(5, 0), deadline=EventTime(9, 5), max_retries=1)
    session = CapturingSession(
        "g: [{", limits if limited else Constraints(), MemoryDecisionLog(), _Effects(), "rpv1:x", "apv1:y"
    )
    for number in range(count):
        kind = list(ExternalEventKind)[number % 3]
        text = b"" if number % 7 == 0 else json.dumps({"é": "x" * payload, "n": number}).encode()
        session.on_event(ExternalEvent.with_payload(f"2026-01-02 : {number}", kind, EventTime(number // 3, 7), text))
    return session.into_bundle()


def without_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have serde read every element."""
    for reader in (elements.EVENTS, elements.DECISIONS):
        monkeypatch.setattr(reader, "read_block", lambda _block: None)


@pytest.mark.parametrize("block", [1, 3, 64, 1 << 18])
def test_a_stream_reads_every_conformance_text_like_the_whole_text(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle or the message is the same, whatever the block size."""
    monkeypatch.setattr(elements, "_BLOCK", block)
    monkeypatch.setattr(outline, "_BLOCK", block)
    for text in TEXTS:
        expected = whole(text.encode())
        assert streamed(tmp_path / "b", text.encode()) == expected
    assert sum(isinstance(whole(text.encode()), str) for text in TEXTS) > 5


RICH = rich_bundle(40)
COMPACT = encode_bundle(RICH)
PRETTY = encode_bundle(RICH, CaptureJsonStyle.Pretty)
#: Every decision of it is invoked, and completed at once.
PLAIN = encode_bundle(small_bundle(events=40))


@pytest.mark.parametrize("text", [COMPACT, PRETTY], ids=["compact", "pretty"])
def test_our_own_bundles_are_read_block_by_block(text: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In either style, no element is read by itself."""
    slow: list[Any] = []
    monkeypatch.setattr(elements.ElementCursor, "_read_one", lambda self, text: slow.append(text))
    assert streamed(tmp_path / "b", text) == RICH
    assert slow == []


@pytest.mark.parametrize("text", [COMPACT, PRETTY], ids=["compact", "pretty"])
@pytest.mark.parametrize("block", [1, 500, 1 << 18])
def test_reading_element_by_element_gives_the_same_bundle(
    text: bytes, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Usual texts are read the way unusual ones are."""
    without_fast_path(monkeypatch)
    monkeypatch.setattr(elements, "_BLOCK", block)
    assert streamed(tmp_path / "b", text) == RICH


def shuffled(value: Any, chance: random.Random) -> Any:
    """Return a JSON value with the fields of its objects in another order."""
    if isinstance(value, dict):
        pairs = [(key, shuffled(item, chance)) for key, item in value.items()]
        chance.shuffle(pairs)
        return dict(pairs)
    return [shuffled(item, chance) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("indent", [None, 1])
def test_fields_may_have_any_order(indent: int | None, tmp_path: Path) -> None:
    """This includes the bundle's own fields: decisions may precede events."""
    chance = random.Random(5)
    for _ in range(10):
        text = json.dumps(shuffled(json.loads(COMPACT), chance), indent=indent).encode()
        assert streamed(tmp_path / "b", text) == RICH


def test_a_bundle_may_be_an_array_of_its_fields(tmp_path: Path) -> None:
    """Serde reads any struct so, on every level."""
    fields = list(json.loads(COMPACT).values())
    assert streamed(tmp_path / "b", json.dumps(fields).encode()) == RICH
    fields[3] = [list(event.values()) for event in fields[3]]
    assert streamed(tmp_path / "b", json.dumps(fields).encode()) == RICH


def replaced(old: bytes, new: bytes, number: int = 1) -> bytes:
    """Return the compact text with one occurrence of something replaced, which is not the first."""
    parts = COMPACT.split(old)
    assert len(parts) > number + 1
    return old.join(parts[:number]) + new + old.join(parts[number:])


ODD: dict[str, Callable[[], bytes]] = {
    "repeated field": lambda: replaced(b'"kind":', b'"kind":"Pump","kind":'),
    "repeated shuffled field": lambda: replaced(b'"kind":', b'"k\\u0069nd":"Pump","kind":'),
    "repeated spaced field": lambda: replaced(b'"kind":', b'"kind" :"Pump","kind":'),
    "shuffled field": lambda: replaced(b'"kind":', b'"k\\u0069nd":'),
    "spaced field": lambda: replaced(b'"kind":', b'"kind" \n: '),
    "unknown field": lambda: replaced(b'"kind":', b'"kin":[{"event_id":1},{"event_id":"]}"}],"kind":'),
    "bundle in a field": lambda: replaced(b'"kind":', b'"kin":' + COMPACT + b',"kind":'),
    "quotes in a field": lambda: replaced(b'"kind":', b'"kin":"\\"\\\\","kind":'),
    "unknown field of a decision": lambda: replaced(b'"decision":', b'"deci":[[{}]],"decision":'),
    "unknown field of an effect": lambda: replaced(b'"writes":', b'"write":[{"key":1}],"writes":'),
    "repeated field of an effect": lambda: replaced(b'"writes":', b'"writes":[],"writes":'),
    "empty intents": lambda: replaced(b'"intents":[', b'"intents":[],"intents":['),
    "missing field": lambda: replaced(b'"kind":"Command",', b""),
    "missing nanoseconds": lambda: replaced(b',"nanos":7}', b"}"),
    "missing and repeated nanoseconds": lambda: replaced(b',"nanos":7}', b"}").replace(
        b'"nanos":7', b'"nanos":7,"nanos":7', 1
    ),
    "missing schedule": lambda: replaced(b'"schedule_at":null,', b""),
    "negative zero for nothing": lambda: replaced(b'"nanos":7', b'"nanos":-0'),
    "negative zero payload": lambda: replaced(b'"payload":[', b'"payload":[-0,'),
    "negative zero number": lambda: replaced(b'{"Number":-2.0}', b'{"Number":-0}'),
    "float for an integer": lambda: replaced(b'"secs":3,', b'"secs":3.0,'),
    "carry": lambda: replaced(b'"nanos":7', b'"nanos":4294967295'),
    "late": lambda: replaced(b'"secs":3,', b'"secs":18446744073709551615,'),
    "too late": lambda: replaced(b'"secs":3,', b'"secs":18446744073709551616,'),
    "negative": lambda: replaced(b'"secs":3,', b'"secs":-3,'),
    "byte too large": lambda: replaced(b'"payload":[', b'"payload":[256,'),
    "unit variant as an object": lambda: replaced(b'"Completed"', b'{"Completed":null}'),
    "Tick": lambda: replaced(b'"Pump"', b'"Tick"'),
    "wrong kind": lambda: replaced(b'"Pump"', b'"pump"'),
    "failure": lambda: replaced(b'{"Failed":"SemanticError"}', b'{"Failed":{"Cancelled":null}}', 1),
    "lone surrogate": lambda: replaced(b'"event_id":"', b'"event_id":"\\ud800'),
    "not UTF-8": lambda: replaced(b'"event_id":"', b'"event_id":"\xff'),
    "raw newline": lambda: replaced(b'"event_id":"', b'"event_id":"\n'),
    "huge float": lambda: replaced(b'{"Number":-2.0}', b'{"Number":1e999}'),
    "long digits": lambda: replaced(b'"secs":3,', b'"secs":' + b"3" * 5000 + b","),
    "trailing comma": lambda: COMPACT.replace(b"}],", b"},],", 1),
    "double comma": lambda: replaced(b"},{", b"},,{"),
    "no comma": lambda: replaced(b"},{", b"}{"),
    "wrong bracket": lambda: replaced(b"},{", b"],{"),
    "number for an event": lambda: replaced(b'},{"event_id"', b'},7,{"event_id"'),
    "null for an event": lambda: replaced(b'},{"event_id"', b'},null,{"event_id"'),
    "null for the events": lambda: COMPACT[: COMPACT.index(b"[")] + b"null" + COMPACT[COMPACT.index(b'],"dec') + 1 :],
    "object for the events": lambda: COMPACT[: COMPACT.index(b"[")] + b"{}" + COMPACT[COMPACT.index(b'],"dec') + 1 :],
    "string for the events": lambda: COMPACT[: COMPACT.index(b"[")] + b'"["' + COMPACT[COMPACT.index(b'],"dec') + 1 :],
    "blank lists": lambda: (
        COMPACT[: COMPACT.index(b"[") + 1] + b" " * 600_000 + COMPACT[COMPACT.index(b'],"decisions') :]
    ),
    "events twice": lambda: COMPACT.replace(b'"decisions":[', b'"events":[],"decisions":[', 1),
    "shuffled events": lambda: COMPACT.replace(b'"events":[', b'"\\u0065vents":[', 1),
    "unknown list": lambda: COMPACT.replace(b'"events":[', b'"event":[],"events":[', 1),
    "list in the limits": lambda: COMPACT.replace(b'"config":{', b'"config":{"events":[1],', 1),
    "trailing text": lambda: COMPACT + b"x",
    "trailing bracket": lambda: COMPACT + b"]",
    "two bundles": lambda: COMPACT + COMPACT,
    "trailing blank": lambda: COMPACT + b" \r\n\t" * 1000,
    "leading blank": lambda: b" \r\n\t" * 1000 + COMPACT,
    "byte order mark": lambda: b"\xef\xbb\xbf" + COMPACT,
    "trailing NUL": lambda: COMPACT + b"\0" * 1000,
    "empty": lambda: b"",
    "blank": lambda: b"  ",
    "binary": lambda: bytes(range(256)) * 4000,
    "brackets": lambda: b"[" * 100_000,
    "string": lambda: b'"' + b"x" * 600_000,
}


@pytest.mark.parametrize("name", ODD)
def test_an_unusual_text_is_read_like_the_whole_text(name: str, tmp_path: Path) -> None:
    """Serde is lenient or strict, or a fast path could misread: records and messages are the same."""
    text = ODD[name]()
    expected, found = whole(text), streamed(tmp_path / "b", text)
    if isinstance(expected, str):
        assert isinstance(found, str)
        assert found == expected or name in {"brackets", "not UTF-8", "byte order mark", "binary"}, (found, expected)
    else:
        assert found == expected
        assert encode_bundle(found) == encode_bundle(expected)


def test_a_text_cut_anywhere_is_refused_with_the_same_message(tmp_path: Path) -> None:
    """The text is cut at every second byte."""
    text = encode_bundle(rich_bundle(4, payload=0))
    for cut in range(0, len(text) - 2, 2):
        assert streamed(tmp_path / "b", text[:cut]) == whole(text[:cut]), cut


@pytest.mark.parametrize("seed", range(3))
def test_a_randomly_changed_text_is_read_like_the_whole_text(seed: int, tmp_path: Path) -> None:
    """Bytes are replaced, removed and inserted, in both styles."""
    chance = random.Random(seed)
    accepted = 0
    for _ in range(60):
        text = bytearray(chance.choice([COMPACT, PRETTY, PLAIN, PLAIN]))
        for _ in range(chance.randint(1, 2)):
            at = chance.randrange(len(text))
            text[at : at + chance.choice([0, 1, 1, 1])] = bytes([chance.choice(b'"\\{}[],: 0-1etu\n\xc3')])
        expected, found = whole(bytes(text)), streamed(tmp_path / "b", bytes(text))
        if isinstance(expected, str):
            assert isinstance(found, str), bytes(text)
        else:
            accepted += 1
            assert found == expected
    assert accepted


# --- reading as a stream ---


def test_a_stream_can_be_iterated_several_times_at_once(tmp_path: Path) -> None:
    """Each iterator begins at the first record."""
    path = tmp_path / "b"
    path.write_bytes(COMPACT)
    with open_bundle(path) as stream:
        pairs = list(zip(stream.events(), stream.decisions(), stream.events(), strict=True))
        assert [(event.event_id, decision.event_id, again.event_id) for event, decision, again in pairs] == [
            (event.event_id,) * 3 for event in RICH.events
        ]
        assert list(stream.decisions()) == RICH.decisions


def test_elements_before_a_bad_one_are_yielded(tmp_path: Path) -> None:
    """The error names the bad one's place in the list."""
    path = tmp_path / "b"
    path.write_bytes(replaced(b'"kind":"Pump"', b'"kind":"Plump"', 5))
    found: list[Any] = []
    with open_bundle(path) as stream:
        with pytest.raises(BundleFormatError, match=r"unknown variant `Plump`.* - at `\$.events\[12\].kind`") as caught:
            found.extend(stream.events())
        assert len(list(stream.decisions())) == 40
    assert found == RICH.events[:12]
    assert caught.value.path == str(path)


def test_a_missing_file_is_an_error_with_its_path(tmp_path: Path) -> None:
    """A directory is an error too."""
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ErgoCaptureError, match=f"read capture bundle '{path}': ") as caught:
            open_bundle(path)
        assert caught.value.hint


def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    """A shell's process substitution makes such a pipe."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(PRETTY,))
    writer.start()
    with open_bundle(path) as stream:
        assert [list(stream.events()), list(stream.decisions())] == [RICH.events, RICH.decisions]
    writer.join()


def test_memory_does_not_grow_with_the_bundle(tmp_path: Path) -> None:
    """Ten times as many events take no more memory, in either style."""

    def peak(count: int, style: CaptureJsonStyle) -> int:
        path = tmp_path / "b"
        path.write_bytes(encode_bundle(rich_bundle(count, payload=400), style))
        tracemalloc.start()
        with open_bundle(path) as stream:
            assert sum(1 for _ in zip(stream.events(), stream.decisions(), strict=True)) == count
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert path.stat().st_size > count * 1000
        return used

    for style in CaptureJsonStyle:
        assert peak(2000, style) < 1.25 * peak(300, style) + 1_000_000
