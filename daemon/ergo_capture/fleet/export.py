"""Write a bundle's events and decisions as Parquet: one row an event, with its decision."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import msgspec

from ergo_capture.bundle.reader.stream import RecordStream
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.extras import import_extra
from ergo_capture.kernel.effects import encode_effect
from ergo_capture.kernel.records import EpisodeInvocationRecord, ExternalEventRecord
from ergo_capture.storage.atomic import AtomicFile, create_parents

#: The columns with their types, in pyarrow's names. `ergo-capture help fleet` explains them. Columns of decisions are
#: NULL for undecided events.
COLUMNS: Final[Mapping[str, str]] = {
    "session": "string",
    "part": "int64",
    "index": "int64",
    "event_id": "string",
    "kind": "string",
    "at": "timestamp[us, tz=UTC]",
    "at_secs": "uint64",
    "at_nanos": "uint32",
    "payload": "string",
    "payload_hash": "string",
    "decision": "string",
    "episode_id": "uint64",
    "schedule_at_secs": "uint64",
    "schedule_at_nanos": "uint32",
    "deadline_secs": "uint64",
    "deadline_nanos": "uint32",
    "termination": "string",
    "retry_count": "uint64",
    "effects": "list<string>",
    "effect_hashes": "list<string>",
    "intent_acks": "list<string>",
    "interruption": "string",
}
#: The most rows, and bytes of payloads, of a row group, which is held in memory.
_GROUP_ROWS: Final = 16_384
_GROUP_BYTES: Final = 32 << 20
#: The seconds of the last time that a date can have.
_MAX_SECS: Final = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp())


def import_pyarrow() -> Any:
    """Return the module, with its Parquet.

    Raises:
        ErgoCaptureError: the extra is not installed.
    """
    return import_extra("arrow", "pyarrow", "pyarrow.parquet", purpose="write Parquet")


def export(stream: RecordStream, destination: Path, *, session: str, part: int = 1, first_event: int = 0) -> int:
    """Write a run as a Parquet file, atomically, and return the number of its rows.

    Args:
        stream: the run.
        destination: the file.
        session: the id of its session.
        part: the part of the session.
        first_event: index in the session of the run's first event.

    Raises:
        ErgoCaptureError: the run cannot be read, its decisions do not belong to its events, or the extra is not
            installed.
        CaptureWriteError: the file cannot be written; nothing is left of it.
    """
    arrow = import_pyarrow()
    schema = arrow.schema([(name, _type(arrow, kind)) for name, kind in COLUMNS.items()])
    create_parents(destination)
    rows = 0
    with AtomicFile(destination, what="Parquet file") as file:
        with arrow.parquet.ParquetWriter(_Sink(file), schema, compression="zstd") as writer:
            for group in _groups(stream, destination):
                columns = _columns(group)
                columns["session"] = [session] * len(group)
                columns["part"] = [part] * len(group)
                columns["index"] = list(range(first_event + rows, first_event + rows + len(group)))
                writer.write_table(arrow.table({name: columns[name] for name in COLUMNS}, schema=schema))
                rows += len(group)
        file.commit()
    return rows


_Pair = tuple[ExternalEventRecord, EpisodeInvocationRecord | None]


def _groups(stream: RecordStream, destination: Path) -> Iterator[list[_Pair]]:
    """Yield events with their decisions, a row group at a time."""
    group: list[_Pair] = []
    size = 0
    for event, decision in zip_longest(stream.events(), stream.decisions()):
        if event is None or (decision is not None and decision.event_id != event.event_id):
            raise ErgoCaptureError(
                f"write Parquet file '{destination}': decision {decision.event_id!r} does not belong to "
                + ("an event" if event is None else f"event {event.event_id!r}"),
                op="write Parquet file",
                path=destination,
                hint="run `ergo-capture verify` on the bundle",
                exit_code=ExitCode.FAILED,
            )
        group.append((event, decision))
        size += len(event.payload)
        if len(group) == _GROUP_ROWS or size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _columns(group: list[_Pair]) -> dict[str, list[Any]]:
    events = [event for event, _ in group]
    decisions = [decision for _, decision in group]
    times = [event.event_time for event in events]
    schedules = [None if each is None else each.schedule_at for each in decisions]
    deadlines = [None if each is None else each.deadline for each in decisions]
    return {
        "event_id": [event.event_id for event in events],
        "kind": [event.kind.value for event in events],
        "at": [time.secs * 1_000_000 + time.nanos // 1000 if time.secs <= _MAX_SECS else None for time in times],
        "at_secs": [time.secs for time in times],
        "at_nanos": [time.nanos for time in times],
        "payload": [event.payload_text for event in events],
        "payload_hash": [event.payload_hash for event in events],
        "decision": [None if each is None else each.decision.value for each in decisions],
        "episode_id": [None if each is None else each.episode_id for each in decisions],
        "schedule_at_secs": [None if time is None else time.secs for time in schedules],
        "schedule_at_nanos": [None if time is None else time.nanos for time in schedules],
        "deadline_secs": [None if time is None else time.secs for time in deadlines],
        "deadline_nanos": [None if time is None else time.nanos for time in deadlines],
        "termination": [
            None if each is None or each.termination is None else each.termination.json.decode() for each in decisions
        ],
        "retry_count": [None if each is None else each.retry_count for each in decisions],
        "effects": [
            None if each is None else [encode_effect(effect.effect).decode() for effect in each.effects]
            for each in decisions
        ],
        "effect_hashes": [
            None if each is None else [effect.effect_hash for effect in each.effects] for each in decisions
        ],
        "intent_acks": [
            None if each is None else [msgspec.json.encode(ack).decode() for ack in each.intent_acks]
            for each in decisions
        ],
        "interruption": [None if each is None else each.interruption for each in decisions],
    }


def _type(arrow: Any, kind: str) -> Any:
    if kind == "list<string>":
        return arrow.list_(arrow.string())
    return arrow.timestamp("us", tz="UTC") if kind.startswith("timestamp") else getattr(arrow, kind)()


class _Sink(io.RawIOBase):
    """An atomic file with the interface that pyarrow writes to."""

    def __init__(self, file: AtomicFile) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        block = bytes(data)
        self._file.write(block)
        return len(block)

    def tell(self) -> int:
        return self._file.bytes_written
