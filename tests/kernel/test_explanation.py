"""A divergence is explained in words: what differs, the decisions before it, and its likely causes."""

from __future__ import annotations

from typing import Any

import pytest

from ergo_capture import ActionEffect, EventTime, RunTermination, first_divergence
from ergo_capture.kernel.effects import EffectWrite, Value
from ergo_capture.kernel.explanation import (
    Explanation,
    describe_decision,
    describe_outcome,
    explain,
    format_time,
    shortened,
)
from ergo_capture.kernel.outcomes import Decision, ErrKind
from ergo_capture.kernel.records import CapturedActionEffect, EpisodeInvocationRecord

UNAVAILABLE = RunTermination.Failed(ErrKind.AdapterUnavailable)
ERROR = RunTermination.Failed(ErrKind.RuntimeError)
SEMANTIC = RunTermination.Failed(ErrKind.SemanticError)
EFFECT = CapturedActionEffect.of(ActionEffect("k", ()))


def record(event_id: str = "e", **fields: Any) -> EpisodeInvocationRecord:
    """Return a decision that completed at the first attempt, but for some fields."""
    plain = {
        "decision": Decision.Invoke,
        "schedule_at": None,
        "episode_id": 0,
        "deadline": None,
        "termination": RunTermination.Completed,
        "retry_count": 0,
    }
    return EpisodeInvocationRecord(event_id, **(plain | fields))


def explained(captured: list[EpisodeInvocationRecord], replayed: list[EpisodeInvocationRecord]) -> Explanation:
    """Return the explanation of the first divergence of two streams."""
    divergence = first_divergence(captured, replayed)
    assert divergence is not None
    at = divergence.index
    return explain(divergence, captured[:at], captured[at:], replayed[at:])


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "'e'  Invoke  episode 0  Completed"),
        (
            {"decision": Decision.Defer, "schedule_at": EventTime(1, 500_000_000), "termination": None},
            "'e'  Defer  episode 0  until 1.5 s",
        ),
        ({"termination": SEMANTIC}, "'e'  Invoke  episode 0  Failed SemanticError"),
        ({"retry_count": 1}, "'e'  Invoke  episode 0  Completed  1 retry"),
        ({"retry_count": 2, "effects": (EFFECT,)}, "'e'  Invoke  episode 0  Completed  2 retries  1 effect"),
        ({"effects": (EFFECT, EFFECT)}, "'e'  Invoke  episode 0  Completed  2 effects"),
        ({"interruption": "cut"}, "'e'  Invoke  episode 0  Completed  interrupted: cut"),
        ({"interruption": "a\x1bb"}, "'e'  Invoke  episode 0  Completed  interrupted: 'a\\x1bb'"),
    ],
)
def test_a_decision_is_one_line(fields: dict[str, Any], line: str) -> None:
    """A field that is absent is left out, and control characters are escaped."""
    assert describe_decision(record(**fields)) == line


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"decision": Decision.Defer, "termination": None}, "Defer"),
        ({}, "Completed"),
        ({"retry_count": 1}, "Completed after 1 retry"),
        ({"termination": SEMANTIC}, "Failed SemanticError"),
        (
            {"termination": RunTermination.TimedOut, "retry_count": 2},
            "TimedOut after 2 retries, the engine: it took longer than the deadline",
        ),
        (
            {"termination": UNAVAILABLE},
            "Failed AdapterUnavailable, the engine: it was away, or ended before it answered",
        ),
        ({"termination": ERROR}, "Failed RuntimeError, the engine: it raised an error, or answered something invalid"),
    ],
)
def test_an_outcome_says_what_the_engine_did(fields: dict[str, Any], words: str) -> None:
    """The engine's part is told if the termination allows it."""
    assert describe_outcome(record(**fields)) == words


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (EventTime(0, 0), "0 s"),
        (EventTime(10, 0), "10 s"),
        (EventTime(10, 100_000_000), "10.1 s"),
        (EventTime(0, 1), "0.000000001 s"),
    ],
)
def test_a_time_is_in_seconds_without_trailing_zeros(time: EventTime, text: str) -> None:
    """A time is exact to the nanosecond."""
    assert format_time(time) == text


def test_a_long_value_is_shortened_to_300_characters() -> None:
    """The quotes count as characters; three dots replace the rest."""
    assert shortened("x" * 298) == '"' + "x" * 298 + '"'
    assert shortened("x" * 299) == '"' + "x" * 296 + "..."


a, b, c, d, e = (record(name) for name in "abcde")


@pytest.mark.parametrize(
    ("captured", "replayed", "kind", "field", "sentence"),
    [
        (
            [a, b, c],
            [b, c],
            "missing",
            "event_id",
            "decision 0, event 'a': captured, and not replayed; the replay has event 'b' here",
        ),
        (
            [a, c],
            [a, b, c],
            "extra",
            "event_id",
            "decision 1, event 'c': event 'b' is replayed before it, and was not captured",
        ),
        (
            [a, b],
            [b, a],
            "reordered",
            "event_id",
            "decision 0, event 'a': captured here, and replayed further on; the replay has event 'b' here",
        ),
        ([a, c], [b, c], "changed", "event_id", "decision 0, event 'a': event_id was captured as \"a\" and replayed as \"b\""),
        ([a, b], [a], "missing", "missing", "decision 1, event 'b': captured, and nothing leads to it in the replay"),
        ([a], [a, b], "extra", "extra", "decision 1, event 'b': the replay leads to it, and it was not captured"),
    ],
)  # fmt: skip
def test_a_moved_decision_is_told_from_a_changed_one(
    captured: list[EpisodeInvocationRecord],
    replayed: list[EpisodeInvocationRecord],
    kind: str,
    field: str,
    sentence: str,
) -> None:
    """The decisions that follow on either side tell the two apart."""
    found = explained(captured, replayed)
    assert (found.kind, found.field, found.sentence) == (kind, field, sentence)
    assert sentence.startswith(f"decision {found.index}, event '{found.event_id}': ")


def test_the_last_three_decisions_before_it_are_shown() -> None:
    """They have their places in the stream, whose beginning need not be given."""
    divergence = first_divergence([a, b, c, d, e, a], [a, b, c, d, e, b])
    assert divergence is not None
    found = explain(divergence, [b, c, d, e])
    assert (
        found.before == [f"{place}  '{name}'  Invoke  episode 0  Completed" for place, name in enumerate("abcde")][2:]
    )
    assert found.engine == ""


def write(number: float) -> CapturedActionEffect:
    """Return an effect that writes a number."""
    return CapturedActionEffect.of(ActionEffect("k", (EffectWrite("x", Value(Number=number)),)))


@pytest.mark.parametrize(
    ("captured", "replayed", "sentence"),
    [
        ((EFFECT,), (EFFECT, EFFECT), "1 effect was captured and 2 replayed"),
        (
            (EFFECT, write(1.0)),
            (EFFECT, write(2.0)),
            (
                'effect 1 was captured as {"kind":"k","writes":[{"key":"x","value":{"Number":1.0}}]}'
                ' and replayed as {"kind":"k","writes":[{"key":"x","value":{"Number":2.0}}]}'
            ),
        ),
        (
            (EFFECT, CapturedActionEffect(ActionEffect("k", ()), "abc")),
            (EFFECT, EFFECT),
            "effect 1 is the same, and its hash was captured as abc",
        ),
    ],
)
def test_effects_differ_in_number_content_or_hash(
    captured: tuple[CapturedActionEffect, ...], replayed: tuple[CapturedActionEffect, ...], sentence: str
) -> None:
    """The first effect that differs is shown on both sides."""
    found = explained([record(effects=captured)], [record(effects=replayed)])
    assert found.sentence == f"decision 0, event 'e': {sentence}"
    assert [effect["effect_hash"] for effect in found.captured] == [effect.effect_hash for effect in captured]
    assert found.replayed[0]["effect"]["kind"] == "k"


@pytest.mark.parametrize(
    ("captured", "replayed", "engine", "first"),
    [
        (
            record(termination=RunTermination.TimedOut),
            record(),
            "it took longer than the deadline",
            "a deadline passed on one machine and not on the other",
        ),
        (
            record(termination=UNAVAILABLE),
            record(),
            "it was away, or ended before it answered",
            "the engine failed at the capture and not now, which says nothing about the graph",
        ),
        (
            record(termination=ERROR, retry_count=1),
            record(termination=ERROR),
            "it raised an error, or answered something invalid",
            "the engine failed at the capture and not now, which says nothing about the graph",
        ),
        (
            record(termination=ERROR, effects=(EFFECT,)),
            record(termination=ERROR),
            "it raised an error, or answered something invalid",
            "the engine failed at the capture and not now, which says nothing about the graph",
        ),
        (
            record(),
            record(termination=ERROR),
            "",
            "the engine is not the one that ran: compare the bundle's runtime_provenance with what it says of itself",
        ),
        (
            record(termination=ERROR, episode_id=1),
            record(termination=ERROR),
            "",
            "the limits in the bundle's config are not those that were in force",
        ),
    ],
)
def test_a_captured_failure_of_the_engine_is_the_likely_cause(
    captured: EpisodeInvocationRecord, replayed: EpisodeInvocationRecord, engine: str, first: str
) -> None:
    """This applies if the outcome differs and the decision does not."""
    found = explained([captured], [replayed])
    assert (found.engine, found.causes[0]) == (engine, first)


def test_two_decisions_in_another_order_were_put_so() -> None:
    """The other cause named is that two captures were mixed."""
    assert explained([a, b], [b, a]).causes == [
        "events or decisions were put in another order, or two captures were mixed",
        "the bundle was edited after the capture",
    ]


def test_a_whole_decision_is_shown_as_json() -> None:
    """Its effects are included; the other side is None."""
    found = explained([record("e", deadline=EventTime(1, 2), effects=(EFFECT,))], [])
    assert found.replayed is None
    assert found.captured == {
        "event_id": "e",
        "decision": "Invoke",
        "schedule_at": None,
        "episode_id": 0,
        "deadline": {"secs": 1, "nanos": 2},
        "termination": "Completed",
        "retry_count": 0,
        "effects": [{"effect": {"kind": "k", "writes": []}, "effect_hash": EFFECT.effect_hash}],
        "intent_acks": [],
        "interruption": None,
    }
