"""Check events as columns: their hashes and their payloads."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

import msgspec

from ergo_capture.bundle.reader.blocks import EventColumns
from ergo_capture.kernel.events import ExternalEventKind, TimeLike, are_payloads

#: The least size for which a second process pays, in bytes: starting one takes as long as reading 8 MiB.
WORTH_A_PROCESS: Final = 16 << 20


class Unproven(Exception):
    """The bundle is unsound, or sound in an unusual way that the proof does not cover."""


class CheckedEvents(msgspec.Struct, frozen=True):
    """Sound events without their payloads."""

    ids: list[str]
    #: Empty if the run has no limits, so that no decision depends on time.
    times: Sequence[TimeLike]
    kinds: list[ExternalEventKind]

    def part(self, start: int, stop: int) -> CheckedEvents:
        """Return the events from ``start`` to before ``stop``."""
        return CheckedEvents(self.ids[start:stop], self.times[start:stop], self.kinds[start:stop])


def check_events(events: EventColumns) -> CheckedEvents:
    """Check the hashes and payloads of events; return the events without their payloads.

    Raises:
        Unproven: they are not all sound.
    """
    if [sha256(payload).hexdigest() for payload in events.payloads] != events.hashes:
        raise Unproven
    if not are_payloads(events.payloads):
        raise Unproven
    return CheckedEvents(events.ids, events.times, events.kinds)
