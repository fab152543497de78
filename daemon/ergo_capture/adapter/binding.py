"""Derive the events that a graph gets from those that were sent: bind them to an adapter, or make them canonical."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from ergo_capture.adapter.canonical import Numbers, read_json
from ergo_capture.adapter.contract import Adapter, Bound, load_adapter
from ergo_capture.adapter.egress import check_intents
from ergo_capture.adapter.errors import INVALID_EFFECT, AdapterError
from ergo_capture.adapter.events import HostedEvent, without_adapter
from ergo_capture.adapter.store import SET_CONTEXT, ContextStore
from ergo_capture.kernel.effects import ActionEffect
from ergo_capture.kernel.events import ExternalEventKind
from ergo_capture.kernel.time import EventTime


class Binding:
    """Binds the events of one graph. With the events and the effects, it determines every payload.

    Args:
        adapter: the adapter's manifest, in YAML; None without an adapter: payloads are then only made canonical.
        numbers: how the numbers of payloads are read.
        context_bytes: bytes of JSON that the context store may take; 0 or None for no limit.
        name: the manifest's name in messages.

    Raises:
        AdapterError: the manifest is refused, or the packages that adapters need are not installed.
    """

    def __init__(
        self,
        adapter: str | None,
        numbers: Numbers = "reference",
        context_bytes: int | None = None,
        *,
        name: str = "adapter.yaml",
    ) -> None:
        self.adapter: Adapter | None = None if adapter is None else load_adapter(adapter, numbers=numbers, name=name)
        self.numbers: Numbers = numbers
        self._limit = context_bytes or None

    def store(self, text: bytes | str = b"{}") -> ContextStore:
        """Return a context store with the content that ``ContextStore.to_json`` wrote; empty by default."""
        return ContextStore.from_json(text, limit=self._limit)

    def admit(self, event: HostedEvent) -> None:
        """Raise if an event is invalid for every content of the context store.

        Raises:
            AdapterError: SCHEMA_VIOLATION.
        """
        if self.adapter is not None:
            self.adapter.admit(event)
        else:
            without_adapter(event)

    def bind(self, event: HostedEvent, store: ContextStore) -> Bound:
        """Return an event as the graph gets it, and the keys that came from the store.

        Raises:
            AdapterError: SCHEMA_VIOLATION.
        """
        bound = Bound(without_adapter(event), ()) if self.adapter is None else self.adapter.bind(event, store)
        if event.semantic_kind is None:
            return bound
        # Keep the semantic kind: engines get it.
        return Bound(msgspec.structs.replace(bound.event, semantic_kind=event.semantic_kind), bound.taken)

    def check_effects(self, effects: Iterable[ActionEffect], routed: Iterable[str] = ()) -> None:
        """Check that the effects of an episode may be applied.

        Args:
            effects: the effects.
            routed: the kinds that egress channels carry out.

        Raises:
            AdapterError: INVALID_EFFECT.
        """
        if self.adapter is None:
            return
        scratch = ContextStore()
        for effect in effects:
            if effect.kind in routed:
                check_intents(effect)
                continue
            if effect.kind == SET_CONTEXT and effect.intents:
                raise AdapterError(
                    INVALID_EFFECT,
                    f"handler-owned effect '{effect.kind}' must not carry intents",
                    where=f"effect '{effect.kind}'",
                    fix="let the engine report what the graph's actions declare",
                )
            scratch.apply(effect, self.adapter)


#: How many characters of a refusal's message are kept: it may quote a payload.
_MAX_MESSAGE: Final = 500


def refusal_text(error: AdapterError) -> str:
    """Return the reason why an event is refused: the violation, its place in the payload, and the rule."""
    rule = "" if not error.rule else f", by '{error.rule}'"
    where = f" (at {error.where}{rule})"
    return (
        f"{error.message[: _MAX_MESSAGE - len(where)]}{where}"
        if len(where) < _MAX_MESSAGE
        else error.message[:_MAX_MESSAGE]
    )


class _Event(msgspec.Struct, frozen=True, gc=False):
    event_id: str
    kind: ExternalEventKind
    at: EventTime
    #: Of any type: a value that is not a string counts as none.
    semantic_kind: object = None
    payload: msgspec.Raw = msgspec.Raw(b"null")


class _Line(msgspec.Struct, frozen=True, gc=False):
    event: _Event


_lines: Final = msgspec.json.Decoder(_Line)


def read_hosted_line(line: bytes, numbers: Numbers) -> HostedEvent:
    """Return the event of a line that was checked as one: ``{"type":"event","event":{...}}``.

    Raises:
        ValueError: it is not an event, or a number of its payload is beyond f64.
    """
    return _hosted(_lines.decode(line).event, numbers)


def read_hosted_lines(body: bytes, numbers: Numbers) -> list[HostedEvent]:
    """Return the events of an EVENTS body, or of any lines that were admitted.

    Raises:
        ValueError: a line is not an event.
    """
    return [_hosted(line.event, numbers) for line in _lines.decode_lines(body)]


def _hosted(event: _Event, numbers: Numbers) -> HostedEvent:
    kind, payload = event.semantic_kind, bytes(event.payload)
    return HostedEvent(
        event.event_id,
        event.kind,
        event.at,
        kind if isinstance(kind, str) else None,
        None if payload == b"null" else read_json(payload, numbers),
    )
