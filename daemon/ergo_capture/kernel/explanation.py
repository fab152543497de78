"""Explain a divergence: in words, and as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from ergo_capture.kernel.effects import encode_effect
from ergo_capture.kernel.events import TimeLike
from ergo_capture.kernel.outcomes import Decision, ErrKind, RunTermination
from ergo_capture.kernel.records import CapturedActionEffect, EpisodeInvocationRecord
from ergo_capture.kernel.replay import Divergence
from ergo_capture.units import counted

#: How many decisions before the divergence are shown.
CONTEXT: Final = 3
#: How many decisions after it are searched, to tell decisions in another order from missing ones.
AHEAD: Final = 16

_LIMITS: Final = (
    "the limits in the bundle's config are not those that were in force",
    "an event before it was removed, added, or has another time",
)
_EDITED: Final = "the bundle was edited after the capture"
_ENGINE: Final = (
    "the engine is not the one that ran: compare the bundle's runtime_provenance with what it says of itself",
    "the engine depends on something besides the event: a clock, a network, chance, or what it kept from before",
)
_DEADLINE: Final = "a deadline passed on one machine and not on the other"
_FAILED_THEN: Final = "the engine failed at the capture and not now, which says nothing about the graph"
_CAUSES: Final = {
    "event_id": ("events or decisions were put in another order, or two captures were mixed", _EDITED),
    "decision": _LIMITS,
    "schedule_at": _LIMITS,
    "episode_id": (*_LIMITS, "a decision before it was removed or added"),
    "deadline": ("the deadline in the bundle's config is not the one that was in force", _EDITED),
    "termination": (*_ENGINE, _DEADLINE, _EDITED),
    "retry_count": ("what failed for a while at the capture did not fail now, or the reverse", *_ENGINE),
    "effects": (*_ENGINE, "the graph or its data changed between capture and replay", _EDITED),
    "payload": ("an effect before it, or the payload, was edited after the capture", "a part before it is missing"),
    "effect_hash": ("an effect was edited after the capture: its hash is not that of its content",),
    "missing": ("events were removed from the bundle, and their decisions were not", _EDITED),
    "extra": ("the bundle is cut: decisions are gone from its end", _EDITED),
}

#: The meaning of a captured termination for the engine, as a daemon records it.
_ENGINE_THEN: Final = {
    RunTermination.Failed(ErrKind.AdapterUnavailable): "it was away, or ended before it answered",
    RunTermination.Failed(ErrKind.RuntimeError): "it raised an error, or answered something invalid",
    RunTermination.TimedOut: "it took longer than the deadline",
}


class Explanation(msgspec.Struct, frozen=True):
    """The first difference of two decision streams, and its likely causes."""

    #: ``changed``, ``missing``, ``extra`` or ``reordered``.
    kind: str
    #: Position in the decision stream, from 0.
    index: int
    event_id: str
    #: The field that differs, or ``missing`` / ``extra`` for a whole decision.
    field: str
    captured: Any
    replayed: Any
    #: The decisions before it, which are the same in both, the nearest last.
    before: list[str]
    causes: list[str]
    sentence: str
    #: The engine's failure at the capture, in words; empty for none.
    engine: str = ""


def explain(
    divergence: Divergence,
    before: Sequence[EpisodeInvocationRecord],
    captured_ahead: Sequence[EpisodeInvocationRecord] = (),
    replayed_ahead: Sequence[EpisodeInvocationRecord] = (),
) -> Explanation:
    """Return the explanation of a divergence.

    Args:
        divergence: the first divergence of two streams.
        before: decisions before it, in order; the last CONTEXT of them are shown.
        captured_ahead: the captured decisions from the divergence on, up to AHEAD of them.
        replayed_ahead: the replayed decisions likewise.
    """
    kind = _kind(divergence, captured_ahead, replayed_ahead)
    captured, replayed = to_builtins(divergence.captured), to_builtins(divergence.replayed)
    then = _engine_then(divergence, captured_ahead)
    first = divergence.index - len(before)
    shown = [f"{first + place}  {describe_decision(record)}" for place, record in enumerate(before)][-CONTEXT:]
    return Explanation(
        kind=kind,
        index=divergence.index,
        event_id=divergence.event_id,
        field=divergence.field,
        captured=captured,
        replayed=replayed,
        before=shown,
        causes=list(_causes(divergence.field, then)),
        sentence=_sentence(kind, divergence, captured, replayed),
        engine="" if then is None else _ENGINE_THEN[then],
    )


def _engine_then(divergence: Divergence, captured: Sequence[EpisodeInvocationRecord]) -> RunTermination | None:
    """Return the captured termination, if it shows a failure of the engine and the outcome differs."""
    if divergence.field not in ("termination", "retry_count", "effects") or not captured:
        return None
    termination = captured[0].termination
    return termination if termination in _ENGINE_THEN else None


def _causes(field: str, then: RunTermination | None) -> Sequence[str]:
    if then is RunTermination.TimedOut:
        return (_DEADLINE, *_ENGINE, _EDITED)
    if then is not None:
        return (_FAILED_THEN, _EDITED)
    return _CAUSES[field]


def _kind(
    divergence: Divergence,
    captured: Sequence[EpisodeInvocationRecord],
    replayed: Sequence[EpisodeInvocationRecord],
) -> str:
    if divergence.field in ("missing", "extra"):
        return divergence.field
    if divergence.field == "event_id":
        behind = {record.event_id for record in captured[1:]}, {record.event_id for record in replayed[1:]}
        moved = divergence.replayed in behind[0], divergence.captured in behind[1]
        if all(moved):
            return "reordered"
        # If only one side has the other's decision further on, something was inserted or removed before it.
        if moved[0]:
            return "missing"
        if moved[1]:
            return "extra"
    return "changed"


def _sentence(kind: str, divergence: Divergence, captured: Any, replayed: Any) -> str:
    where = f"decision {divergence.index}, event {divergence.event_id!r}"
    if divergence.field == "missing":
        return f"{where}: captured, and nothing leads to it in the replay"
    if divergence.field == "extra":
        return f"{where}: the replay leads to it, and it was not captured"
    if kind == "reordered":
        return f"{where}: captured here, and replayed further on; the replay has event {divergence.replayed!r} here"
    if kind == "missing":
        return f"{where}: captured, and not replayed; the replay has event {divergence.replayed!r} here"
    if kind == "extra":
        return f"{where}: event {divergence.replayed!r} is replayed before it, and was not captured"
    if divergence.field == "effects":
        return f"{where}: {_effects(divergence.captured, divergence.replayed)}"
    return f"{where}: {divergence.field} was captured as {shortened(captured)} and replayed as {shortened(replayed)}"


def _effects(captured: Sequence[CapturedActionEffect], replayed: Sequence[CapturedActionEffect]) -> str:
    if len(captured) != len(replayed):
        return f"{counted(len(captured), 'effect')} {'was' if len(captured) == 1 else 'were'} captured and {len(replayed)} replayed"
    for place, (one, other) in enumerate(zip(captured, replayed, strict=True)):
        if one.effect != other.effect:
            return f"effect {place} was captured as {shortened(to_builtins(one.effect))} and replayed as {shortened(to_builtins(other.effect))}"
    place = next(place for place, pair in enumerate(zip(captured, replayed, strict=True)) if pair[0] != pair[1])
    return f"effect {place} is the same, and its hash was captured as {captured[place].effect_hash}"


def describe_decision(record: EpisodeInvocationRecord) -> str:
    """Return a decision as one line of text."""
    return f"{record.event_id!r}  {describe_without_id(record)}"


def describe_without_id(record: EpisodeInvocationRecord) -> str:
    """Return a decision as one line of text, without the event id."""
    parts = [_DECISIONS[record.decision], f"episode {record.episode_id}"]
    if record.schedule_at is not None:
        parts.append(f"until {format_time(record.schedule_at)}")
    if record.termination is not None:
        parts.append(_termination_in_words(record.termination))
    if record.retry_count:
        parts.append(_retries(record.retry_count))
    if record.effects:
        parts.append(f"{len(record.effects)} {'effect' if len(record.effects) == 1 else 'effects'}")
    if record.interruption is not None:
        parts.append(f"interrupted: {escaped(record.interruption)}")
    return "  ".join(parts)


_DECISIONS: Final = {decision: decision.value for decision in Decision}


def describe_outcome(record: EpisodeInvocationRecord) -> str:
    """Return the end of a decision's episode in words; for a decision without an episode, the decision."""
    if record.termination is None:
        return record.decision.value
    retries = f" after {_retries(record.retry_count)}" if record.retry_count else ""
    then = _ENGINE_THEN.get(record.termination)
    return _termination_in_words(record.termination) + retries + ("" if then is None else f", the engine: {then}")


def _termination_in_words(termination: RunTermination) -> str:
    return termination.name if termination.err is None else f"{termination.name} {termination.err.value}"


def _retries(count: int) -> str:
    return f"{count} {'retry' if count == 1 else 'retries'}"


def escaped(text: str) -> str:
    """Return untrusted text for a terminal: one line, with control characters escaped, which a terminal would obey."""
    return text if text.isprintable() else ascii(text)


def format_time(time: TimeLike) -> str:
    """Return a time in seconds, without trailing zeros."""
    if not time.nanos:
        return f"{time.secs} s"
    return f"{time.secs}.{time.nanos:09}".rstrip("0") + " s"


def to_builtins(value: Any) -> Any:
    """Return a value of a record as JSON types."""
    if isinstance(value, EpisodeInvocationRecord):
        return {name: to_builtins(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, CapturedActionEffect):
        return {"effect": msgspec.json.decode(encode_effect(value.effect)), "effect_hash": value.effect_hash}
    if isinstance(value, tuple | list):
        return [to_builtins(item) for item in value]
    if hasattr(value, "to_builtins"):
        return value.to_builtins()
    return msgspec.to_builtins(value)


def shortened(value: Any) -> str:
    """Return JSON types as text, shortened if it is long."""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


_LONGEST: Final = 300
