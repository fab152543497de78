"""A proof gives the same verdict on every bundle as the judge, which looks at each event by itself."""

from __future__ import annotations

import asyncio
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.bundle.test_properties import capture, limits, plans, streams
from tests.bundle.test_stream import ODD, TEXTS, rich_bundle
from tests.bundles import small_bundle

from ergo_capture import (
    CaptureBundle,
    CaptureJsonStyle,
    encode_bundle,
)
from ergo_capture.bundle import verify
from ergo_capture.bundle.proving import checking, prover, workers
from ergo_capture.bundle.reader import elements
from ergo_capture.bundle.reader.stream import BundleStream
from ergo_capture.bundle.verify import Verdict, verify_bundle
from ergo_capture.engine import replaying
from ergo_capture.engine.replaying import ReplayOptions, Strictness, replay_stream
from ergo_capture.engine.scripted import FixedEngine
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel import events
from ergo_capture.kernel.events import ExternalEventPayloadError, are_payloads, check_payload


def said(path: Path) -> Any:
    """Return a bundle's verdict in a form that can be compared, or the error's message."""
    try:
        verdict = verify_bundle(path)
    except ErgoCaptureError as error:
        return error.message, error.hint
    return comparable(verdict)


def comparable(verdict: Verdict) -> Any:
    """Return a verdict in a form that can be compared."""
    complaint = verdict.complaint
    return (
        verdict.graph_id,
        verdict.events,
        verdict.decisions,
        None if complaint is None else (complaint.kind, complaint.message, complaint.event_id),
        verdict.divergence,
        verdict.notes,
        verdict.details,
    )


def judged(path: Path) -> Any:
    """Return the same as ``said``, but without a proof and without guessing the ends of lists."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "prove", lambda *_args, **_more: None)
        return said(path)


def is_proven(path: Path) -> bool:
    """Return whether there is a proof."""
    with BundleStream(path, guess=True) as stream:
        return prover.prove(stream) is not None


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a bundle file."""
    return tmp_path_factory.mktemp("proving") / "b.capture.json"


def agree(place: Path, text: bytes) -> Any:
    """Write a bundle, check that both give the same verdict, and return it."""
    place.write_bytes(text)
    found = said(place)
    assert found == judged(place)
    return found


bundles = st.builds(capture, streams(), limits, plans())


@given(bundles, st.sampled_from(CaptureJsonStyle), st.sampled_from([1, 300, 1 << 15]))
def test_a_sound_bundle_is_proven(place: Path, bundle: CaptureBundle, style: CaptureJsonStyle, block: int) -> None:
    """Its limits, the ends of its episodes, its style and the size of the blocks do not matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elements, "_BLOCK", block)
        agree(place, encode_bundle(bundle, style))
        assert is_proven(place)


def changed(bundle: CaptureBundle, style: CaptureJsonStyle, changes: list[tuple[str, int, Any]]) -> bytes:
    """Return a bundle's text with values of its JSON replaced."""
    value = json.loads(encode_bundle(bundle))
    for name, place, new in changes:
        listed, _, field = name.partition(".")
        if not value[listed]:
            continue
        item = value[listed][place % len(value[listed])]
        if field == "-":
            value[listed].remove(item)
        elif field == "+":
            value[listed].append(item)
        elif field == "payload":
            item["payload"] = list(new)
            item["payload_hash"] = hashlib.sha256(new).hexdigest()
        else:
            item[field] = new
    if style is CaptureJsonStyle.Pretty:
        return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


EFFECT = {"effect": {"kind": "k", "writes": [{"key": "k", "value": {"Number": 9.773333333333333}}]}, "effect_hash": "0"}
HASHED = EFFECT | {
    "effect_hash": hashlib.sha256(json.dumps(EFFECT["effect"], separators=(",", ":")).encode()).hexdigest()
}
payload_texts = st.sampled_from(
    [b'{"a":"x', b'y"}', b"{},{}", b"{}", b"", b"[]", b"1", b'{"a":1', b'"b":2}', b'{"a":[{}', b"{}]}", b' {"b":[[]]}',
     b'{"a":1e999}', b'{"a":1.7976931348623158e308}', b'{"a":"\n"}', b'{"a":"\xff"}', b"{}\n,\n{}", b",", b"{} ",
     b'{"a":' + b"[" * 127 + b"]" * 127 + b"}", b'{"a":' * 128 + b"1" + b"}" * 128, b'{"a":' * 127 + b"1" + b"}" * 127]
)  # fmt: skip
changes = st.lists(
    st.tuples(st.just("events.payload"), st.integers(0, 30), payload_texts)
    | st.tuples(st.sampled_from(["events.event_id", "decisions.event_id"]), st.integers(0, 30), st.sampled_from(["", "a", '"']))
    | st.tuples(st.just("events.payload_hash"), st.integers(0, 30), st.just("0" * 64))
    | st.tuples(st.just("events.kind"), st.integers(0, 30), st.sampled_from(["Pump", "Tick", "Command", "x"]))
    | st.tuples(st.just("decisions.decision"), st.integers(0, 30), st.sampled_from(["Invoke", "Defer", "Skip"]))
    | st.tuples(st.just("decisions.episode_id"), st.integers(0, 30), st.integers(0, 5))
    | st.tuples(st.just("decisions.retry_count"), st.integers(0, 30), st.integers(0, 3))
    | st.tuples(st.just("decisions.termination"), st.integers(0, 30), st.sampled_from([None, "Aborted", {"Failed": "Cancelled"}]))
    | st.tuples(st.just("decisions.schedule_at"), st.integers(0, 30), st.sampled_from([None, {"secs": 1, "nanos": 0}]))
    | st.tuples(st.just("decisions.effects"), st.integers(0, 30), st.sampled_from([[], [EFFECT], [HASHED]]))
    | st.tuples(st.just("decisions.interruption"), st.integers(0, 30), st.sampled_from([None, "cut off"]))
    | st.tuples(st.sampled_from(["events.-", "events.+", "decisions.-", "decisions.+"]), st.integers(0, 30), st.none()),
    max_size=4,
)  # fmt: skip


@settings(max_examples=150)
@given(bundles, st.sampled_from(CaptureJsonStyle), changes, st.sampled_from([40, 1 << 15]))
def test_a_changed_bundle_gets_the_judges_verdict(
    place: Path, bundle: CaptureBundle, style: CaptureJsonStyle, changes: list[tuple[str, int, Any]], block: int
) -> None:
    """Every complaint is the same, wherever values were changed, removed or repeated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elements, "_BLOCK", block)
        agree(place, changed(bundle, style, changes))


@settings(max_examples=150)
@given(
    bundles,
    st.sampled_from(CaptureJsonStyle),
    st.lists(
        st.tuples(st.integers(0, 1 << 30), st.integers(0, 2), st.sampled_from([*b'"\\{}[],: 0-1eu\n\xc3'])), max_size=3
    ),
)
def test_a_damaged_text_gets_the_judges_verdict(
    place: Path, bundle: CaptureBundle, style: CaptureJsonStyle, damage: list[tuple[int, int, int]]
) -> None:
    """Bytes were replaced, removed or inserted."""
    text = bytearray(encode_bundle(bundle, style))
    for place_of, count, byte in damage:
        at = place_of % len(text)
        text[at : at + count] = bytes([byte])
    agree(place, bytes(text))


def said_by_workers(path: Path, stretch: int) -> Any:
    """Return the same as ``said``, from two workers, with stretches of so many bytes.

    Threads stand in for processes: starting processes for thirty bundles takes a second, and other tests use them.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "ProcessPoolExecutor", lambda jobs, **_: ThreadPoolExecutor(jobs))
        patch.setattr(checking, "WORTH_A_PROCESS", 0)
        patch.setattr(workers, "STRETCH", stretch)
        patch.setattr(workers, "_SEARCHED", stretch)
        try:
            return comparable(verify_bundle(path, jobs=2))
        except ErgoCaptureError as error:
            return error.message, error.hint


@given(bundles, st.sampled_from(CaptureJsonStyle), changes, st.sampled_from([1, 100, 1000]))
def test_workers_give_the_judges_verdict(
    place: Path, bundle: CaptureBundle, style: CaptureJsonStyle, changes: list[tuple[str, int, Any]], stretch: int
) -> None:
    """The list may be cut anywhere."""
    place.write_bytes(changed(bundle, style, changes))
    assert said_by_workers(place, stretch) == judged(place)


def test_every_conformance_text_gets_one_verdict_from_any_number_of_processes(place: Path) -> None:
    """One process and two give the same verdict."""
    for text in TEXTS:
        place.write_text(text)
        assert said_by_workers(place, 300) == said(place)


def test_workers_prove_a_sound_bundle(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has limits, effects, failures and pumps; the judge is not called."""
    monkeypatch.setattr(checking, "WORTH_A_PROCESS", 0)
    monkeypatch.setattr(workers, "STRETCH", 5000)
    for limited in (False, True):
        for style in CaptureJsonStyle:
            place.write_bytes(encode_bundle(rich_bundle(500, limited=limited), style))
            with BundleStream(place, guess=True) as stream:
                proof = prover.prove(stream, jobs=2)
            assert proof is not None
            assert proof.events == 500


def test_a_bundle_that_is_replaced_meanwhile_is_not_proven(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that opens another file of the same name gives no answer."""
    monkeypatch.setattr(checking, "WORTH_A_PROCESS", 0)
    place.write_bytes(encode_bundle(rich_bundle(50)))
    with BundleStream(place) as stream:
        other = place.with_suffix(".other")
        plain = stream.plain_file()
        assert plain is not None
        other.write_bytes(place.read_bytes())
        other.replace(place)
        monkeypatch.setattr(stream, "plain_file", lambda: plain)
        assert prover.prove(stream, jobs=2) is None


@pytest.mark.parametrize("name", ODD)
def test_an_unusual_text_gets_the_judges_verdict(name: str, place: Path) -> None:
    """Serde may be lenient or strict, and lists may not be where they seem to be."""
    agree(place, ODD[name]())


def test_every_conformance_text_gets_the_judges_verdict(place: Path) -> None:
    """This includes the reference's own bundles and those that it refuses."""
    for text in TEXTS:
        agree(place, text.encode())


def test_a_bundle_within_a_field_is_not_taken_for_the_bundle(place: Path) -> None:
    """The reference ignores unknown fields of a decision, even one that ends like a bundle."""
    text = encode_bundle(rich_bundle(20, limited=False))
    inner = text.rstrip()[1:-1]
    first, rest = text.split(b'"decision":', 1)
    for field in (b'"x":{%b},' % inner, b'"x":[],"decisions":[],"adapter_provenance":1,'):
        found = agree(place, first + field + b'"decision":' + rest)
        assert found[1:5] == (20, 20, None, None)


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("style", CaptureJsonStyle)
def test_effects_failures_and_pumps_are_proven(*, limited: bool, style: CaptureJsonStyle, place: Path) -> None:
    """A bundle with every kind of record needs no judge."""
    place.write_bytes(encode_bundle(rich_bundle(200, limited=limited), style))
    assert is_proven(place)


#: The separator of ``are_payloads``, and texts that may look like it.
between = st.sampled_from(
    [b"9223372036854775807", b'{"a":9223372036854775807}', b'{"a":[9223372036854775807]}', b'{"a":[1', b"2]}", b'{"a":[1]}',
     b'{"a":{"b":[{"c":[[0]]}]}}', b'{"a":', b"{", b"}", b'{"a":18446744073709551615,"b":1e308,"c":-1e309}']
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(payload_texts | between | st.binary(max_size=4), max_size=5))
@example([b'{"a":"x', b'y"}', b"{},{}"])
@example([b"{},{}", b'{"a":1', b'"b":2}'])
@example([b'{"a":[{}', b"{}]}", b"{},{}"])
@example([b'{"a":[1', b"2]}", b"{},{}", b"{}"])
@example([b"{}", b"9223372036854775807", b"{}"])
@example([b'{"a":', b"}"])
def test_payloads_are_accepted_together_where_each_is(payloads: list[bytes]) -> None:
    """This also holds if the defect of one payload makes up for that of another."""

    def is_accepted(payload: bytes) -> bool:
        try:
            check_payload(payload)
        except ExternalEventPayloadError:
            return False
        return True

    assert are_payloads(payloads) == all(map(is_accepted, payloads))


def test_usual_payloads_are_accepted_without_a_look_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """These are objects with and without arrays, empty objects, and absent payloads."""
    monkeypatch.setattr(events, "check_payload", None)
    assert are_payloads([])
    assert are_payloads([b"", b"{}", b'{"a":{"b":1.5}}', b'{"a":[{"b":[null,-1]}],"a":"[{"}'] * 100)


def replayed(path: Path, *, strict: bool) -> Any:
    """Return the result of a replay with the fixed engine, or the error's message."""
    provenances = Strictness("none", "rpv1:plan") if strict else None
    try:
        with BundleStream(path, guess=not strict) as stream:
            return asyncio.run(replay_stream(stream, FixedEngine(), ReplayOptions(provenances)))
    except ErgoCaptureError as error:
        return error.message, error.hint


@given(bundle=bundles, changes=changes, strict=st.booleans())
def test_a_replay_with_the_fixed_engine_is_the_same_with_a_proof(
    place: Path, bundle: CaptureBundle, changes: list[tuple[str, int, Any]], *, strict: bool
) -> None:
    """The replay may be strict or not, and may diverge or not."""
    place.write_bytes(changed(bundle, CaptureJsonStyle.Compact, changes))
    found = replayed(place, strict=strict)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replaying, "prove", lambda *_args, **_more: None)
        assert found == replayed(place, strict=strict)


def test_a_replay_of_a_completed_run_with_the_fixed_engine_is_proven(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No event is looked at by itself."""
    place.write_bytes(encode_bundle(small_bundle(events=50)))
    monkeypatch.setattr(replaying, "_Replay", None)
    assert replayed(place, strict=False).decisions == 50
