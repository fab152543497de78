"""Check a run against the adapter that it was captured with: payloads, effects, and values of the context store.

The context store is rebuilt from the effects. Each payload has to be canonical, match the adapter's schema, and have a
value for every key that the store holds and the schema names. Payload and store show which keys have the store's value;
the manifest's ``merged`` proves that the same keys had it at the capture.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice, repeat, zip_longest
from typing import Any, Final

import msgspec

from ergo_capture.adapter.canonical import write_json
from ergo_capture.adapter.contract import Adapter
from ergo_capture.adapter.errors import INVALID_EFFECT, KEY_MISSING, SCHEMA_VIOLATION, AdapterError
from ergo_capture.adapter.store import SET_CONTEXT, ContextStore
from ergo_capture.bundle.merged import MergedDigest
from ergo_capture.bundle.reader.stream import RecordStream
from ergo_capture.kernel.effects import ActionEffect
from ergo_capture.kernel.records import EpisodeInvocationRecord, ExternalEventRecord
from ergo_capture.kernel.replay import check_provenance

#: A payload is not the canonical text of one JSON object.
NOT_CANONICAL: Final = "payload_not_canonical"
#: The payloads hold other values of the store than the manifest's ``merged`` was computed from.
MERGED_DIFFERS: Final = "merged_differs"
#: The store at the beginning, by the manifest, is not the one that the part before it left.
STORE_DIFFERS: Final = "store_differs"
#: How many places are named if ``merged`` differs.
_PLACES: Final = 3


class Beginning(msgspec.Struct, frozen=True):
    """The state in which a run begins, and further facts from its manifest."""

    #: The context store before the first event, as JSON; None if unknown.
    store: bytes | None = b"{}"
    #: The context store at the end of the part before, as JSON; None if that part was not checked.
    handed_over: bytes | None = None
    #: The events' semantic kinds; None where they are not known.
    kinds: Iterable[str | None] | None = None
    #: The manifest's ``merged``.
    merged: str | None = None
    #: The manifest's reason for the interruption of the run; if it is an effect's error, the last decision caused it.
    interruption: str | None = None


class Problem(msgspec.Struct, frozen=True):
    """The first difference between a run and what the adapter derives from its events and effects."""

    code: str
    message: str
    hint: str
    #: The index of the event; None if the problem is one of the whole run.
    index: int | None = None
    event_id: str | None = None
    #: The place in the payload or among the effects.
    where: str | None = None
    #: The payload, as captured.
    payload: str | None = None
    #: The payload that the host would have derived; None if unknown.
    expected: str | None = None

    @property
    def is_divergence(self) -> bool:
        """Whether the payload differs from the derived one, rather than being unsound by itself."""
        return self.code == KEY_MISSING


class Adapted(msgspec.Struct, frozen=True):
    """The result of checking a run against its adapter."""

    provenance: str
    #: Events that were checked: all, or those before the problem.
    events: int
    #: Events that hold a value of the store.
    merged_events: int
    #: Whether each event was checked with the schema of its own kind; otherwise any schema may accept it.
    by_kind: bool
    #: Whether ``merged`` proves the values of the store.
    proved: bool
    #: Whether the store at the beginning is known.
    store_known: bool
    #: The store at the end, as JSON; None where it is not known.
    store: bytes | None
    problem: Problem | None


def check_adapted(
    stream: RecordStream,
    adapter: Adapter,
    beginning: Beginning = Beginning(),  # noqa: B008 - it is frozen
    *,
    only_decided: bool = False,
) -> Adapted:
    """Check a run against its adapter.

    Args:
        stream: the run; its hashes and decisions are not checked.
        adapter: the adapter.
        beginning: what is known of the run.
        only_decided: whether events after the last decision are left out: those of a session that goes on.

    Raises:
        ReplayError: the run was made with another adapter, or with none.
        ErgoCaptureError: it cannot be read.
    """
    check_provenance(stream, adapter.provenance, stream.runtime_provenance)
    return _Check(stream, adapter, beginning).run(only_decided=only_decided)


class _Check:
    def __init__(self, stream: RecordStream, adapter: Adapter, beginning: Beginning) -> None:
        self.stream = stream
        self.adapter = adapter
        self.beginning = beginning
        known = beginning.store if beginning.handed_over is None else beginning.handed_over
        self.is_known = known is not None
        self.store = ContextStore.from_json(known or b"{}")
        self.digest = MergedDigest()
        self.merged_events = 0
        #: The places at which a payload has another value than the store: it was sent, or changed since.
        self.others: list[str] = []
        self.others_beyond = 0

    def run(self, *, only_decided: bool) -> Adapted:
        events = 0
        problem = self._check_beginning()
        if problem is None:
            for index, (event, kind, decision) in enumerate(self._records()):
                if event is None or (decision is None and only_decided):
                    break
                problem = self._check(index, event, kind, decision)
                if problem is not None:
                    break
                events += 1
        merged = self.beginning.merged
        is_proved = problem is None and merged is not None and self.is_known and not only_decided
        if is_proved and merged != self.digest.hexdigest():
            is_proved, problem = False, self._differs()
        return Adapted(
            self.adapter.provenance,
            events,
            self.merged_events,
            self.beginning.kinds is not None,
            is_proved,
            self.is_known,
            self.store.to_json() if self.is_known and problem is None else None,
            problem,
        )

    def _records(
        self,
    ) -> Iterator[tuple[ExternalEventRecord | None, str | None, EpisodeInvocationRecord | None]]:
        kinds = repeat(None) if self.beginning.kinds is None else iter(self.beginning.kinds)
        for event, decision in zip_longest(self.stream.events(), self.stream.decisions()):
            yield event, next(kinds, None), decision

    def _is_last(self, index: int) -> bool:
        return next(islice(self.stream.events(), index + 1, None), None) is None

    def _check_beginning(self) -> Problem | None:
        stated, handed = self.beginning.store, self.beginning.handed_over
        if stated is None or handed is None or ContextStore.from_json(stated).to_json() == handed:
            return None
        return Problem(
            STORE_DIFFERS,
            f"its manifest says that the context store began as {_shortened(stated)}, and the part before it left "
            f"{_shortened(handed)}",
            "take part and manifest from a backup, or name the parts of one session in their order",
        )

    def _check(
        self, index: int, event: ExternalEventRecord, kind: str | None, decision: EpisodeInvocationRecord | None
    ) -> Problem | None:
        payload: dict[str, Any] = {}
        try:
            payload = self._decode(event.payload)
            if self.beginning.kinds is not None and kind is None:
                raise AdapterError(
                    SCHEMA_VIOLATION, "it has no semantic kind", where="semantic_kind", fix="take it from a backup"
                )
            self.adapter.check_captured(payload, self.store, kind)
            self._note_values(index, event, payload)
            for captured in () if decision is None else decision.effects:
                self._apply(captured.effect)
        except AdapterError as error:
            if error.code == INVALID_EFFECT == self.beginning.interruption and self._is_last(index):
                return None
            captured_text = event.payload.decode(errors="replace")
            expected = None
            if error.code == KEY_MISSING:
                key = error.where.removeprefix("$.")
                expected = write_json(payload | {key: self.store.get(key)}).decode()
            return Problem(
                error.code, error.message, error.fix, index, event.event_id, error.where, captured_text, expected
            )
        return None

    def _decode(self, payload: bytes) -> dict[str, Any]:
        try:
            value = msgspec.json.decode(payload)
            text = write_json(value)
        except (ValueError, RecursionError) as error:
            reason = "there is none" if not payload else str(error)
            raise _not_canonical(f"the payload is not a JSON object: {reason}", "$") from error
        if not isinstance(value, dict):
            raise _not_canonical("the payload is not a JSON object", "$")
        if text != payload:
            place = next(
                (place for place, pair in enumerate(zip(text, payload, strict=False)) if pair[0] != pair[1]), 0
            )
            raise _not_canonical("the payload is not in canonical form", f"byte {place}")
        return value

    def _note_values(self, index: int, event: ExternalEventRecord, payload: dict[str, Any]) -> None:
        if not len(self.store):
            return
        held = self.store.held_by(payload)
        self.digest.add(index, held)
        self.merged_events += bool(held)
        for key in sorted(payload.keys() & self.store.keys() - set(held)):
            if len(self.others) < _PLACES:
                values = f"{_shortened(write_json(payload[key]))}, the store has {_shortened(write_json(self.store.get(key)))}"
                self.others.append(f"event {index}, {event.event_id!r}, has {key!r} as {values}")
            else:
                self.others_beyond += 1

    def _apply(self, effect: ActionEffect) -> None:
        kind = effect.kind
        # An effect with intents was routed to a channel.
        if kind == SET_CONTEXT and not effect.intents:
            self.store.apply(effect, self.adapter)
        elif kind not in self.adapter.effects:
            raise _bad_effect(f"the adapter takes no effect '{kind}'", kind)
        elif effect.writes:
            raise _bad_effect(f"effect '{kind}' is a channel's, and carries writes", kind)
        elif any(intent.kind != kind for intent in effect.intents):
            raise _bad_effect(f"effect '{kind}' carries an intent of another kind", kind)

    def _differs(self) -> Problem:
        hint = "take the bundle and its manifest from a backup"
        if self.others:
            more = f", and {self.others_beyond} more" if self.others_beyond else ""
            hint += f"; values that are not the store's, whether they were sent so or changed since: {'; '.join(self.others)}{more}"
        return Problem(
            MERGED_DIFFERS,
            "the values of the context store in its payloads are not those of its manifest's `merged`: a payload, an "
            "effect or the manifest was changed",
            hint,
        )


def _not_canonical(message: str, where: str) -> AdapterError:
    return AdapterError(NOT_CANONICAL, message, where=where, fix="take the bundle from a backup, or from the journal")


def _bad_effect(message: str, kind: str) -> AdapterError:
    return AdapterError(INVALID_EFFECT, message, where=f"effect '{kind}'", fix="take the bundle from a backup")


def _shortened(value: bytes) -> str:
    text = value.decode(errors="replace")
    return text if len(text) <= 80 else text[:77] + "..."
