"""Write the result of a salvage: the bundle, and a scenario of the events without a provable decision beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Self

import msgspec

from ergo_capture.bundle.format import BundleHead
from ergo_capture.bundle.names import bundle_stem
from ergo_capture.bundle.placement import NewBundle, find_place
from ergo_capture.bundle.reader.blocks import EventColumns
from ergo_capture.bundle.verify import verify_bundle
from ergo_capture.bundle.writer.elements import Elements
from ergo_capture.bundle.writer.sink import BundleWriter
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.records import (
    EpisodeInvocationRecord,
    ExternalEventRecord,
    encode_constraints,
    encode_decision,
    encode_event,
    encode_event_columns,
    encode_time,
)
from ergo_capture.storage import directory_lock
from ergo_capture.storage.atomic import AtomicFile, put_in_place

#: How many bytes of elements are written at a time.
_BLOCK_BYTES: Final = 256 * 1024
_encode: Final = msgspec.json.Encoder().encode


def rest_path(bundle: Path) -> Path:
    """Return the path of the scenario beside a salvaged bundle."""
    return bundle.with_name(f"{bundle_stem(bundle).removesuffix('.json')}.rest.scenario.json")


class SalvageOutput:
    """The files of a salvage; a context manager. Without ``finish``, they are removed.

    Args:
        head: the fields of the bundle other than events and decisions.
        destination: the bundle file.
        part: the number of the bundle's part, if it must not replace others (``placement.py``); None if it may.

    Raises:
        CaptureWriteError: a directory or a temporary file could not be created.
    """

    def __init__(self, head: BundleHead, destination: Path, part: int | None = None) -> None:
        #: The path of the bundle, after ``finish``.
        self.destination = destination
        #: Whether a finished bundle with the same text was there already; it and its manifest were kept.
        self.stood = False
        #: The existing bundle that has the wanted name; None if this one has it.
        self.beside: Path | None = None
        self._part = part
        self._head = head
        self._bundle = BundleWriter(destination, head)
        self._rest: _Scenario | None = None
        #: The text of events and of decisions that were not written yet, their number, and the bytes of the events.
        self._events: list[bytes] = []
        self._decisions: list[bytes] = []
        self._count = self._waiting = 0

    def keep(self, event: ExternalEventRecord, decision: EpisodeInvocationRecord) -> None:
        """Add an event and its decision to the bundle.

        Raises:
            CaptureWriteError: the bundle could not be written.
        """
        self._keep(encode_event(event), encode_decision(decision), 1)

    def keep_block(self, events: EventColumns, decisions: bytes) -> None:
        """Add events and the text of their decisions to the bundle.

        Raises:
            CaptureWriteError: the bundle could not be written.
        """
        self._keep(encode_event_columns(*events), decisions, len(events))

    def _keep(self, events: bytes, decisions: bytes, count: int) -> None:
        self._events += (b",", events)
        self._decisions += (b",", decisions)
        self._count += count
        self._waiting += len(events)
        if self._waiting > _BLOCK_BYTES:
            self._flush()

    def set_aside(self, event: ExternalEventRecord) -> None:
        """Add an event to the scenario.

        Raises:
            CaptureWriteError: the scenario could not be written.
        """
        if self._rest is None:
            self._rest = _Scenario(rest_path(self.destination), self._head)
        self._rest.add(event)

    def finish(self, kept: int, proven: str = "") -> None:
        """Verify the bundle, and give the files their names.

        Args:
            kept: the number of events in the bundle.
            proven: SHA-256 of a text that was verified, in hex; a bundle with that text is only read back.

        Raises:
            CaptureWriteError: a file could not be written; the destination is unchanged.
            ErgoCaptureError: the written bundle does not verify.
        """
        self._flush()
        self._bundle.finish()
        if self._bundle.sink.digest == proven:
            self._bundle.sink.read_back()
        elif not self._verifies(kept):
            raise ErgoCaptureError(
                f"recover into '{self.destination}': the written bundle does not verify",
                op="recover",
                path=self.destination,
                hint="check the disk that it was written to; the source is unchanged",
            )
        # No other process may publish between the look and the renaming.
        with directory_lock(self.destination.parent):
            if self._part is not None:
                sink = self._bundle.sink
                new = NewBundle(self._bundle.file.path, sink.size, sink.digest)
                place = find_place(self.destination, self._part, new)
                self.destination, self.stood, self.beside = place.bundle, place.standing is not None, place.beside
            if self._rest is not None:
                self._rest.commit(rest_path(self.destination))
            if not self.stood:
                put_in_place(self._bundle.file.leave(), self.destination)

    def _verifies(self, kept: int) -> bool:
        verdict = verify_bundle(self._bundle.file.path)
        return verdict.ok and (verdict.events, verdict.decisions) == (kept, kept)

    def _flush(self) -> None:
        if self._count:
            self._bundle.write(
                Elements(b"".join(self._events), self._count, ()),
                Elements(b"".join(self._decisions), self._count, ()),
            )
            self._events.clear()
            self._decisions.clear()
            self._count = self._waiting = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self._bundle.__exit__(*details)
        if self._rest is not None:
            self._rest.file.abort()


class _Scenario:
    """A scenario file (``kernel/scenario.py``) of the events that were set aside."""

    def __init__(self, path: Path, head: BundleHead) -> None:
        self.file = AtomicFile(path, what="scenario")
        self._text = bytearray(
            b'{"graph_id":%b,"constraints":%b,"adapter_provenance":%b,"runtime_provenance":%b,"events":['
            % (
                _encode(head.graph_id),
                encode_constraints(head.config),
                _encode(head.adapter_provenance),
                _encode(head.runtime_provenance),
            )
        )
        self._separator = b""

    def add(self, event: ExternalEventRecord) -> None:
        """Append an event."""
        self._text += b'%b{"event_id":%b,"kind":"%b","at":%b,"payload_utf8":%b}' % (
            self._separator,
            _encode(event.event_id),
            event.kind.value.encode(),
            encode_time(event.event_time),
            _encode(event.payload.decode()) if event.payload else b"null",
        )
        self._separator = b","
        if len(self._text) > _BLOCK_BYTES:
            self.file.write(self._text)
            self._text.clear()

    def commit(self, path: Path) -> None:
        """Write the end of the scenario and make it durable under a name in its directory."""
        self._text += b"]}\n"
        self.file.write(self._text)
        put_in_place(self.file.leave(), path)
