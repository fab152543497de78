"""Whether the events of a bundle are what they say: hashes, ids, payloads."""

from __future__ import annotations

from itertools import islice

from ergo_capture.bundle.reader.stream import RecordStream
from ergo_capture.kernel.events import EventLike
from ergo_capture.kernel.records import ExternalEventRecord
from ergo_capture.kernel.replay import ReplayError, duplicate_event_id, rehydrate
from ergo_capture.kernel.uniqueness import SeenIds


class Soundness:
    """Looks at events one after the other; memory grows by 13 to 27 bytes an event, for its id.

    Args:
        stream: where the events are from, to look one up again.
        unique: whether no id may come twice.
    """

    def __init__(self, stream: RecordStream, *, unique: bool = True) -> None:
        self._stream = stream
        self._ids = SeenIds() if unique else None
        # Why one for each: whichever comes first in the file, the reference looks for them one after the other.
        self._wrong_hash: ReplayError | None = None
        self._repeated: ReplayError | None = None
        self._bad_payload: ReplayError | None = None

    @property
    def complaint(self) -> ReplayError | None:
        """What the reference would say of the events so far (``replay::validate_bundle``, ``validate_bundle_strict``)."""
        return self._wrong_hash or self._repeated or self._bad_payload

    def check(self, index: int, record: ExternalEventRecord) -> EventLike | None:
        """Look at the next event; returns it as the supervisor takes it, None where it is not what it says."""
        if self._wrong_hash is not None:
            return None
        event = None
        try:
            event = rehydrate(record)
        except ReplayError as error:
            if error.kind == "HashMismatch":
                self._wrong_hash = error
                return None
            self._bad_payload = self._bad_payload or error
        ids, name = self._ids, record.event_id
        if ids is not None and self._repeated is None and ids.add(name) and self._is_before(name, index):
            self._repeated = duplicate_event_id(name)
        return event

    def check_all(self, *, payloads: bool = True) -> None:
        """Look at every event of the stream.

        Raises:
            ReplayError: the complaint, where there is one; without ``payloads``, one about a hash or an id.
        """
        for index, record in enumerate(self._stream.events()):
            self.check(index, record)
        if self.complaint is not None and (payloads or self.complaint is not self._bad_payload):
            raise self.complaint

    def _is_before(self, event_id: str, index: int) -> bool:
        """Why another look: the ids are known by their hashes only."""
        return any(event.event_id == event_id for event in islice(self._stream.events(), index))

    def __repr__(self) -> str:
        return f"<Soundness, {'nothing wrong so far' if self.complaint is None else self.complaint}>"
