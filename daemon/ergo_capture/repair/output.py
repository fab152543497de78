"""The files that a salvage writes: the bundle, and beside it the events that have no provable decision."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

import msgspec

from ergo_capture.bundle.names import bundle_stem
from ergo_capture.bundle.verify import verify_bundle
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.records import (
    MIDDLE,
    EpisodeInvocationRecord,
    ExternalEventRecord,
    encode_constraints,
    encode_decision,
    encode_event,
    encode_head,
    encode_tail,
    encode_time,
)
from ergo_capture.repair.report import BundleHead
from ergo_capture.storage.atomic import AtomicFile, create_parents

#: Bytes written, or copied, at a time.
_WRITE_BYTES: Final = 256 * 1024
_encode: Final = msgspec.json.Encoder().encode


def rest_path(bundle: Path) -> Path:
    """Where the events without provable decisions go that belong to a bundle."""
    return bundle.with_name(f"{bundle_stem(bundle).removesuffix('.json')}.rest.scenario.json")


class _Elements:
    """A file to which elements are written with commas between them, some at a time."""

    def __init__(self, destination: Path) -> None:
        self.file = AtomicFile(destination)
        self._waiting: list[bytes] = []
        self._bytes = 0
        self._any = False

    def add(self, element: bytes) -> None:
        self._waiting += (b",", element) if self._any else (element,)
        self._any = True
        self._bytes += len(element)
        if self._bytes > _WRITE_BYTES:
            self.flush()

    def write(self, text: bytes) -> None:
        self.flush()
        self.file.write(text)

    def flush(self) -> None:
        self.file.write(b"".join(self._waiting))
        self._waiting.clear()
        self._bytes = 0

    def __repr__(self) -> str:
        return f"<_Elements of {self.file!r}>"


class SalvageOutput:
    """The bundle that is being written, its decisions apart until all events are there, and the other events."""

    def __init__(self, head: BundleHead, destination: Path) -> None:
        create_parents(destination)
        self._head = head
        self._destination = destination
        self._rest: _Elements | None = None
        with ExitStack() as undo:
            self._events = _Elements(destination)
            undo.callback(self._events.file.abort)
            self._decisions = _Elements(destination)
            undo.callback(self._decisions.file.abort)
            self._events.write(encode_head(head.graph_id, head.config))
            undo.pop_all()

    def keep(self, event: ExternalEventRecord, decision: EpisodeInvocationRecord) -> None:
        """Put an event and its decision into the bundle."""
        self._events.add(encode_event(event))
        self._decisions.add(encode_decision(decision))

    def set_aside(self, event: ExternalEventRecord) -> None:
        """Put an event beside the bundle."""
        if self._rest is None:
            self._rest = _Elements(rest_path(self._destination))
            head = self._head
            self._rest.write(
                b'{"graph_id":%b,"constraints":%b,"adapter_provenance":%b,"runtime_provenance":%b,"events":['
                % (
                    _encode(head.graph_id),
                    encode_constraints(head.config),
                    _encode(head.adapter_provenance),
                    _encode(head.runtime_provenance),
                )
            )
        self._rest.add(_scenario_event(event))

    def finish(self, kept: int) -> None:
        """Put the bundle together, verify it, and give the files their names.

        Raises:
            CaptureWriteError: a file could not be written; the destination is as it was.
            ErgoCaptureError: what was written does not verify.
        """
        head, bundle = self._head, self._events
        bundle.write(MIDDLE)
        self._decisions.flush()
        with self._decisions.file.path.open("rb") as decisions:
            while block := decisions.read(_WRITE_BYTES):
                bundle.write(block)
        bundle.write(encode_tail(head.adapter_provenance, head.runtime_provenance, head.egress_provenance) + b"\n")
        self._decisions.file.abort()
        verdict = verify_bundle(bundle.file.path)
        if not verdict.ok or (verdict.events, verdict.decisions) != (kept, kept):
            raise ErgoCaptureError(
                f"recover into '{self._destination}': what was written does not verify",
                op="recover",
                path=self._destination,
                hint="check the disk that it was written to; the source is as it was",
            )
        if self._rest is not None:
            self._rest.write(b"]}\n")
            self._rest.file.commit()
        bundle.file.commit()

    def __repr__(self) -> str:
        return f"<SalvageOutput {self._destination}, {self._events.file.bytes_written} bytes written>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for part in (self._events, self._decisions, self._rest):
            if part is not None:
                part.file.abort()


def _scenario_event(event: ExternalEventRecord) -> bytes:
    payload = _encode(event.payload.decode()) if event.payload else b"null"
    return b'{"event_id":%b,"kind":"%b","at":%b,"payload_utf8":%b}' % (
        _encode(event.event_id),
        event.kind.value.encode(),
        encode_time(event.event_time),
        payload,
    )
