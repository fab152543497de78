"""Derive the payload that the graph gets of each event from the line that was sent; the journal holds only the line.

A session, its recovery and the composing of its bundle do the same for each event, in order: ``bind`` it, decide it,
``settle`` its decision. So recovery derives the same payloads as the daemon did before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.decision_rows import DecisionOutcome, Refusal
from ergo_capture.journal.payloads import Contract, Interruption

if TYPE_CHECKING:
    from ergo_capture.adapter.binding import Binding
    from ergo_capture.adapter.contract import Bound
    from ergo_capture.adapter.events import HostedEvent
    from ergo_capture.adapter.store import ContextStore
    from ergo_capture.kernel.effects import ActionEffect
    from ergo_capture.kernel.events import ExternalEvent


class Derivation:
    """The payloads of one session, and its context store.

    Args:
        contract: how they are derived.
        store: the initial content of the context store, from a ROTATE frame; None in the first part.
        binding: the contract's binding, if the caller has it already.

    Raises:
        AdapterError: the adapter is refused, or the packages that adapters need are not installed.
    """

    def __init__(
        self, contract: Contract, store: Mapping[str, Any] | None = None, *, binding: Binding | None = None
    ) -> None:
        self._contract = contract
        self.binding = binding or _binding(contract.adapter, contract.numbers, contract.context_bytes)
        self.store: ContextStore = self.binding.store(msgspec.json.encode(store or {}))

    def read(self, body: bytes) -> list[HostedEvent]:
        """Return the events of a body of event lines.

        Raises:
            ValueError: a line is not one that the daemon accepts.
        """
        from ergo_capture.adapter.binding import read_hosted_lines  # noqa: PLC0415 - only where it is needed

        return read_hosted_lines(body, self._contract.numbers)

    def bind(self, event: HostedEvent) -> Bound | Refusal:
        """Return an event as the graph gets it, or its refusal."""
        from ergo_capture.adapter.binding import refusal_text  # noqa: PLC0415 - only where it is needed
        from ergo_capture.adapter.errors import AdapterError  # noqa: PLC0415 - as above

        try:
            return self.binding.bind(event, self.store)
        except AdapterError as error:
            return Refusal(error.code, refusal_text(error))

    def settle(self, effects: Iterable[ActionEffect]) -> Interruption | None:
        """Write the effects of a decision to the store; return the interruption of the run that this causes, if any."""
        adapter = self.binding.adapter
        if adapter is None:
            return None
        from ergo_capture.adapter.errors import AdapterError  # noqa: PLC0415 - as above

        try:
            for effect in effects:
                if effect.kind not in self._contract.routed:
                    self.store.apply(effect, adapter)
        except AdapterError as error:
            return Interruption(reason=error.code, message=error.message)
        return None

    def follow(
        self, event: HostedEvent, bound: Bound | Refusal, outcome: DecisionOutcome | Refusal
    ) -> ExternalEvent | Refusal:
        """Settle the recorded effects of an event, and return the event as it was decided, or its refusal.

        Args:
            event: the event.
            bound: the result of ``bind``.
            outcome: the event's decision or refusal in the journal.

        Raises:
            ValueError: the journal says that the event was refused and it was decided now, or the reverse.
        """
        if isinstance(outcome, Refusal):
            if not isinstance(bound, Refusal):
                raise ValueError(f"event {event.event_id!r} was refused, and is not refused now")  # noqa: TRY004
            return outcome
        if isinstance(bound, Refusal):
            raise ValueError(f"event {event.event_id!r} was decided, and is refused now: {bound.message}")  # noqa: TRY004
        # An interruption that an effect causes is in the journal too.
        self.settle(each.effect for each in outcome.effects)
        return bound.event

    def snapshot(self) -> dict[str, Any] | None:
        """Return the content of the store, for a ROTATE frame; None without an adapter."""
        return None if self.binding.adapter is None else self.store.snapshot()


@lru_cache(maxsize=8)
def _binding(adapter: str | None, numbers: Literal["reference", "exact"], context_bytes: int | None) -> Binding:
    from ergo_capture.adapter.binding import Binding  # noqa: PLC0415 - as above

    return Binding(adapter, numbers, context_bytes)


def is_not_installed(error: ErgoCaptureError) -> bool:
    """Return whether an error says that the packages that adapters need are not installed."""
    from ergo_capture.adapter.errors import EXTRA_MISSING, AdapterError  # noqa: PLC0415 - as above

    return isinstance(error, AdapterError) and error.code == EXTRA_MISSING
