"""The outbox of a wrapped egress channel: a file of intents and their acks, each durable before it is passed on.

A line is the CRC-32 of its JSON in eight hex digits, a blank, and the JSON: first ``{"format": ...}``, then
``{"intent": ID, "at": SECONDS, "line": TEXT}`` and ``{"ack": ID, "at": SECONDS, "line": TEXT}`` with the line as the
host or the channel wrote it. Only the last line can be torn, because each is synced before the next is written. A torn
line was not passed on; it is copied to ``FILE.torn`` and cut off.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, Final

import msgspec

from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.storage import RealStorage, StorageError
from ergo_capture.storage.atomic import write_bytes_atomic
from ergo_capture.storage.directories import make_directories
from ergo_capture.units import Size

FORMAT: Final = "ergo-capture-egress-outbox.v1"


class OutboxError(ErgoCaptureError):
    """The outbox cannot be used."""


class _Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line."""

    format: str | None = None
    intent: str | None = None
    ack: str | None = None
    #: Seconds since 1970; decides only how long the entry is kept.
    at: int = 0
    #: The line that the host or the channel wrote, without the newline.
    line: str = ""


class _Intent(msgspec.Struct):
    """An intent that the host asked for."""

    asked: _Entry
    ack: _Entry | None = None


_entry: Final = msgspec.json.Decoder(_Entry)


class Outbox:
    """Intents by id, with their acks.

    Args:
        path: the file; it is created if it is missing.
        keep: seconds for which an acknowledged intent is kept after its ack; unacknowledged ones are kept for ever.
        most_bytes: the largest size of the file, in bytes.
        now: seconds since 1970.

    Raises:
        OutboxError: the file is damaged or not an outbox, or another process uses it.
        StorageError: it cannot be read or written.
    """

    def __init__(self, path: Path, *, keep: int, most_bytes: int, now: int) -> None:
        self.path = path
        self._most_bytes = most_bytes
        self._intents: dict[str, _Intent] = {}
        storage = RealStorage()
        try:
            make_directories(path.parent)
        except OSError as error:
            raise StorageError("make directory", path.parent, error) from error
        self._lock = _locked(storage, path)
        try:
            data = _cut(path, path.read_bytes()) if path.exists() else b""
            entries = _read(path, data)
            over = {entry.ack for entry in entries if entry.ack is not None and entry.at < now - keep}
            kept = [entry for entry in entries if (entry.intent or entry.ack) not in over]
            if len(kept) != len(entries) or not data:
                data = b"".join(map(_line, [_Entry(format=FORMAT), *kept]))
                write_bytes_atomic(path, data, what="outbox")
            for entry in kept:
                self._note(entry)
            self._file = storage.open(path, write=True)
        except OSError as error:
            self._lock.release()
            raise StorageError("open outbox", path, error) from error
        except BaseException:
            self._lock.release()
            raise
        self._size = len(data)

    @property
    def asked(self) -> int:
        """The number of intents."""
        return len(self._intents)

    @property
    def unacknowledged(self) -> list[str]:
        """The ids of intents without an ack, in the order in which they were asked for."""
        return [name for name, intent in self._intents.items() if intent.ack is None]

    def ask(self, intent_id: str, line: bytes, now: int) -> bytes | None:
        """Record an intent of the host, durably.

        Returns:
            The line of its ack, if there is one: the intent must then not be sent again. Otherwise None.

        Raises:
            OutboxError: the outbox is full, or it holds another intent with this id.
            StorageError: it cannot be written.
        """
        known = self._intents.get(intent_id)
        if known is None:
            self._append(_Entry(intent=intent_id, at=now, line=line.decode()))
            return None
        if msgspec.json.decode(known.asked.line) != msgspec.json.decode(line):
            raise OutboxError(
                f"look up intent '{intent_id}' in '{self.path}': the outbox holds another intent with this id",
                op="look up intent",
                path=self.path,
                hint="it is the outbox of another run, whose events had the same ids; name another file with --outbox",
            )
        return None if known.ack is None else known.ack.line.encode()

    def acknowledge(self, intent_id: str, line: bytes, now: int) -> None:
        """Record the ack of an intent, durably.

        Raises:
            OutboxError: the outbox is full.
            StorageError: it cannot be written.
        """
        self._append(_Entry(ack=intent_id, at=now, line=line.decode()))

    def is_waiting(self, intent_id: str) -> bool:
        """Return whether the host asked for an intent and no ack of it is known."""
        known = self._intents.get(intent_id)
        return known is not None and known.ack is None

    def close(self) -> None:
        """Close the file and release its lock."""
        self._file.close()
        self._lock.release()

    def _append(self, entry: _Entry) -> None:
        data = _line(entry)
        # Acks may exceed the bound: their intents were accepted.
        if self._size + len(data) > self._most_bytes and entry.intent is not None:
            raise OutboxError(
                f"write outbox '{self.path}': it has reached its bound of {Size(self._most_bytes)}",
                op="write outbox",
                path=self.path,
                hint="once its run is over, move it away; or raise --max-bytes, or keep acks for a shorter time (--keep)",
            )
        self._file.write_at([data], self._size, sync=True)
        self._size += len(data)
        self._note(entry)

    def _note(self, entry: _Entry) -> None:
        if entry.intent is not None:
            self._intents.setdefault(entry.intent, _Intent(entry))
        elif entry.ack is not None and entry.ack in self._intents:
            self._intents[entry.ack].ack = entry


class KnownIntent(msgspec.Struct, frozen=True):
    """An intent in an outbox."""

    intent_id: str
    kind: str
    is_acknowledged: bool
    egress_ref: str | None = None


class _Line(msgspec.Struct, frozen=True):
    kind: str = ""
    egress_ref: str | None = None


def is_outbox(path: Path) -> bool:
    """Return whether a file begins like an outbox."""
    try:
        with path.open("rb") as file:
            first = _decoded(file.readline(200).rstrip(b"\n"))
    except OSError:
        return False
    return first is not None and first.format == FORMAT


def read_outbox(path: Path) -> list[KnownIntent]:
    """Return the intents of an outbox, in the order in which the host asked for them; it may be in use.

    Raises:
        OutboxError: the file is damaged.
        StorageError: it cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError("read", path, error) from error
    # A line without its newline is being written, or was torn.
    entries = _read(path, data[: data.rfind(b"\n") + 1])
    acks = {entry.ack: msgspec.json.decode(entry.line, type=_Line) for entry in entries if entry.ack is not None}
    return [
        KnownIntent(
            entry.intent,
            msgspec.json.decode(entry.line, type=_Line).kind,
            entry.intent in acks,
            acks[entry.intent].egress_ref if entry.intent in acks else None,
        )
        for entry in entries
        if entry.intent is not None
    ]


def _locked(storage: RealStorage, path: Path) -> Any:
    try:
        return storage.lock(path.with_name(path.name + ".lock"))
    except StorageError as error:
        raise OutboxError(
            f"open outbox '{path}': another process uses it, or it cannot be locked: {error.message}",
            op="open outbox",
            path=path,
            hint="give each channel an outbox of its own with --outbox",
        ) from error


def _line(entry: _Entry) -> bytes:
    text = msgspec.json.encode(entry)
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _decoded(line: bytes) -> _Entry | None:
    """Return the entry of a line; None if it is not one."""
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        return _entry.decode(text)
    except ValueError:
        return None


def _cut(path: Path, data: bytes) -> bytes:
    """Return the file's text without a torn last line, which is kept beside it and cut off."""
    *whole, rest = data.split(b"\n")
    first = _decoded(whole[0]) if whole else None
    if first is None or first.format != FORMAT or (not rest and _decoded(whole[-1]) is not None):
        return data
    good = b"".join(line + b"\n" for line in (whole if rest else whole[:-1]))
    write_bytes_atomic(path.with_name(path.name + ".torn"), data[len(good) :], what="torn line of an outbox")
    file = RealStorage().open(path, write=True)
    try:
        file.truncate(len(good))
    finally:
        file.close()
    return good


def _read(path: Path, data: bytes) -> list[_Entry]:
    """Return the entries of a file, without the one that names its format."""
    entries = [_decoded(line) for line in data.removesuffix(b"\n").split(b"\n") if data]
    for number, entry in enumerate(entries, 1):
        if entry is None or (number == 1) != (entry.format is not None) or entry.format not in (None, FORMAT):
            raise OutboxError(
                f"read outbox '{path}': line {number} is damaged, or is not one of {FORMAT}",
                op="read outbox",
                path=path,
                hint="restore the file; without it, name another with --outbox: intents that were acknowledged are then "
                "sent again",
                exit_code=ExitCode.DATA_LOSS,
            )
    return [entry for entry in entries[1:] if entry is not None]
