"""Find the parts of a bundle file that may be cut, torn or overwritten anywhere, and salvage it.

Where the brackets still match, the lists are where ``read_outline`` finds them. Otherwise they are found by the text
around them, in the order in which every bundle is written: head, events, decisions, provenances.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO, Final, TypeVar, cast

import msgspec

from ergo_capture.bundle.format import BundleHead, decode_bundle
from ergo_capture.bundle.manifest import ManifestError, read_manifest_fields
from ergo_capture.bundle.names import manifest_path
from ergo_capture.bundle.proving.prover import prove
from ergo_capture.bundle.reader import meter
from ergo_capture.bundle.reader.elements import DECISIONS, EVENTS, ElementError, ListReader, read_elements
from ergo_capture.bundle.reader.opening import BundleFormatError, open_binary, text_sha256
from ergo_capture.bundle.reader.outline import MAX_OUTSIDE, Span
from ergo_capture.bundle.reader.stream import BundleStream, open_bundle
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.records import CAPTURE_FORMAT_VERSION, EpisodeInvocationRecord, ExternalEventRecord
from ergo_capture.kernel.serde.tokens import STRING
from ergo_capture.repair.output import SalvageOutput
from ergo_capture.repair.report import LOST, Gap, SalvageReport
from ergo_capture.repair.salvage import salvage
from ergo_capture.storage.write_error import CaptureWriteError

Record = TypeVar("Record")

#: Bytes read at a time.
_BLOCK: Final = 256 * 1024
#: Longer than any text that is searched for, in bytes.
_OVERLAP: Final = 1024
#: Bytes from the end of the file in which the provenances are searched for.
_TAIL: Final = 64 * 1024
_EVENTS_BEGIN: Final = re.compile(rb'(?<!\\)"events"\s*:\s*\[')
_DECISIONS_BEGIN: Final = re.compile(rb'\]\s*,\s*"decisions"\s*:\s*\[')
_TAIL_BEGINS: Final = re.compile(rb'\]\s*,\s*"adapter_provenance"\s*:')
_ELEMENT_BEGINS: Final = re.compile(rb',\s*(?=\{\s*"event_id"\s*:)')
_NO_LISTS: Final = b'],"decisions":[],"adapter_provenance":"","runtime_provenance":""}'
_PROVENANCES: Final = ("adapter_provenance", "runtime_provenance")


class DamagedBundle(msgspec.Struct, frozen=True):
    """The parts that were found in a bundle file."""

    path: Path
    head: BundleHead
    events_at: Span
    #: The span of the decisions; None if the file has none.
    decisions_at: Span | None
    #: Whether each list is closed; otherwise the file ends, or is damaged, inside it.
    events_closed: bool
    decisions_closed: bool
    #: Names of the provenances that are missing.
    lost: tuple[str, ...]

    def events(self) -> Iterator[ExternalEventRecord | Gap]:
        """Yield the events that can be read, and the gaps between them."""
        return self._records(EVENTS, self.events_at, closed=self.events_closed)

    def decisions(self) -> Iterator[EpisodeInvocationRecord | Gap]:
        """Yield the decisions that can be read, and the gaps between them."""
        if self.decisions_at is None:
            return iter([Gap(None, "the file ends before its decisions", self.events_at.end)])
        return self._records(DECISIONS, self.decisions_at, closed=self.decisions_closed)

    def _records(self, reader: ListReader[list[Record]], span: Span, *, closed: bool) -> Iterator[Record | Gap]:
        start: int | None = span.start
        meter.begin("salvaging", span.end - span.start)
        what = reader.name.removesuffix("s")
        while start is not None:
            with _open(self.path) as file:
                try:
                    for block in read_elements(file, Span(start, span.end), reader):
                        yield from block
                except ElementError as error:
                    yield Gap(None, f"the next {what} cannot be read: {error}", error.offset)
                    # Continue with the next element.
                    found = _find(self.path, _ELEMENT_BEGINS, error.offset, span.end)
                    start = None if found is None else found.end
                    continue
            if not closed:
                yield Gap(None, f"the file ends inside its {reader.name}", span.end)
            return


class SalvagedBundle(msgspec.Struct, frozen=True):
    """The result of salvaging a bundle file."""

    counts: SalvageReport
    head: BundleHead
    #: Names of the provenances that are missing and were not replaced.
    lost: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether nothing was lost."""
        return self.counts.whole and not self.lost


def salvage_bundle(
    path: Path,
    destination: Path | None,
    *,
    adapter_provenance: str | None = None,
    runtime_provenance: str | None = None,
) -> SalvagedBundle:
    """Write the provable part of a bundle file to ``destination``.

    A missing provenance is taken from the argument, else from the manifest beside the bundle, else it is ``lost``.

    Args:
        path: the bundle file.
        destination: the new bundle file; None to count only.
        adapter_provenance: replaces a missing one.
        runtime_provenance: replaces a missing one.

    Raises:
        ErgoCaptureError: nothing of it can be salvaged, or it cannot be read.
        CaptureWriteError: a file could not be written; the destination is unchanged.
    """
    if destination is not None and (saved := _copy_sound(path, destination)) is not None:
        return saved
    damaged = parse_damaged(path)
    manifest = _read_manifest(path)
    given = {"adapter_provenance": adapter_provenance, "runtime_provenance": runtime_provenance}
    stand_ins = {name: given[name] or manifest.get(name) for name in damaged.lost}
    known = {name: text for name, text in stand_ins.items() if isinstance(text, str) and text}
    head = msgspec.structs.replace(damaged.head, **known)
    with nullcontext() if destination is None else SalvageOutput(head, destination) as output:
        report = salvage(head, damaged.events(), damaged.decisions(), output)
    _count_missing(report, manifest.get("events"))
    return SalvagedBundle(report, head, tuple(name for name in damaged.lost if name not in known))


def _copy_sound(path: Path, destination: Path) -> SalvagedBundle | None:
    """Copy a sound bundle, a block at a time; if it is not proven to be sound, write nothing and return None.

    A salvage examines every event by itself, and takes three times as long.
    """
    try:
        with BundleStream(path, guess=True) as stream:
            if stream.capture_version != CAPTURE_FORMAT_VERSION:
                return None
            head = _head_of(stream)
            with SalvageOutput(head, destination) as output:
                proof = prove(stream, keep=output.keep_block)
                if proof is None:
                    return None
                report = SalvageReport(kept=proof.events)
                _count_missing(report, _read_manifest(path).get("events"))
                output.finish(proof.events, text_sha256(path))
    except CaptureWriteError:
        raise
    except ErgoCaptureError:
        # The salvage finds the error again.
        return None
    return SalvagedBundle(report, head, ())


def _head_of(stream: BundleStream) -> BundleHead:
    return BundleHead(
        stream.graph_id, stream.config, stream.adapter_provenance, stream.runtime_provenance, stream.egress_provenance
    )


def _count_missing(report: SalvageReport, total: object) -> None:
    """Count the missing records: every bundle has as many decisions as events, and its manifest says how many."""
    found = report.kept + report.aside + report.refused
    decisions = report.kept + report.dropped
    stated = total if type(total) is int else 0
    known = max(found + report.lost, decisions, stated)
    report.lost, report.lost_decisions = known - found, known - decisions
    # A list without a gap is complete, but an event with a wrong hash may be the rest of several.
    report.uncertain |= report.refused > 0
    if stated or not (report.uncertain and report.uncertain_decisions):
        report.uncertain = report.uncertain_decisions = False


def parse_damaged(path: Path) -> DamagedBundle:
    """Find the parts of a bundle file.

    Raises:
        ErgoCaptureError: its head is missing, or it cannot be read.
    """
    try:
        with open_bundle(path) as stream:
            return _parse_intact(path, stream)
    except BundleFormatError as error:
        cause = error
    except ErgoCaptureError as error:
        if not path.is_file():
            raise
        # The beginning of a damaged compressed file can still be read.
        cause = BundleFormatError(error.message, op=error.op, path=path, hint=error.hint)
    return _parse_broken(path, cause)


def _parse_intact(path: Path, stream: BundleStream) -> DamagedBundle:
    """Return the parts of a file whose lists are both closed."""
    _check_version(path, stream.capture_version)
    events, decisions = stream.spans
    return DamagedBundle(path, _head_of(stream), events, decisions, events_closed=True, decisions_closed=True, lost=())


def _parse_broken(path: Path, cause: BundleFormatError) -> DamagedBundle:
    begin = _find(path, _EVENTS_BEGIN, 0, MAX_OUTSIDE)
    try:
        if begin is None:
            raise cause
        bundle = decode_bundle(_read(path, 0, begin.end) + _NO_LISTS)
    except BundleFormatError as error:
        raise ErgoCaptureError(
            f"recover '{path}': its head cannot be read: {error.message.removeprefix('read capture bundle: ')}",
            op="recover",
            path=path,
            hint="without its graph and limits, nothing of a bundle can be proved; look for a copy, or for the journal",
        ) from error
    _check_version(path, bundle.capture_version)
    size = _text_size(path)
    between = _find(path, _DECISIONS_BEGIN, begin.end, size)
    tail_from = max(begin.end if between is None else between.end - 1, size - _TAIL)
    ends = _find(path, _TAIL_BEGINS, tail_from, size, last=True)
    tail = b"" if ends is None else _read(path, ends.start, size)
    adapter, runtime, egress = (_string_field(name, tail) for name in (*_PROVENANCES, "egress_provenance"))
    head = BundleHead(bundle.graph_id, bundle.config, adapter or LOST, runtime or LOST, egress)
    end = size if ends is None else ends.start
    return DamagedBundle(
        path,
        head,
        Span(begin.end, end if between is None else between.start),
        None if between is None else Span(between.end, end),
        events_closed=between is not None,
        decisions_closed=ends is not None,
        lost=tuple(name for name, found in zip(_PROVENANCES, (adapter, runtime), strict=True) if found is None),
    )


def _check_version(path: Path, version: str) -> None:
    if version != CAPTURE_FORMAT_VERSION:
        raise ErgoCaptureError(
            f"recover '{path}': unsupported capture version '{version}'",
            op="recover",
            path=path,
            hint=f"this release reads capture version '{CAPTURE_FORMAT_VERSION}'",
        )


def _string_field(name: str, tail: bytes) -> str | None:
    match = re.search(rb'"%b"\s*:\s*(%b)\s*[,}]' % (name.encode(), STRING), tail, re.DOTALL)
    try:
        return None if match is None else msgspec.json.decode(match[1], type=str)
    except ValueError:
        # Count a damaged string as missing.
        return None


def _read_manifest(path: Path) -> dict[str, object]:
    """Return the fields of the manifest beside a bundle; empty if it is missing, bad, or another bundle's."""
    try:
        manifest = read_manifest_fields(manifest_path(path))
    except (OSError, ManifestError):
        return {}
    return manifest if manifest.get("bundle") == path.name else {}


# --- the file's text ---


class _UpToDamage(io.RawIOBase):
    """A file that ends at the first place that cannot be read: unsound zstd, or a bad block of the disk."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # a Buffer has no name in 3.11
        try:
            block = b"" if self._ended else self._file.read(len(buffer))
        except OSError:
            # End the text here: the next read reports it.
            block, self._ended = b"", True
        buffer[: len(block)] = block
        return len(block)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except OSError:
            # The offset is after the damage.
            self._ended = True
            return offset

    def close(self) -> None:
        self._file.close()
        super().close()


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, _UpToDamage(open_binary(path)))


def _find(path: Path, pattern: re.Pattern[bytes], start: int, end: int, *, last: bool = False) -> Span | None:
    """Return the span of the first, or last, match of a pattern between two offsets."""
    found = None
    with _open(path) as file:
        file.seek(start)
        held, offset = b"", start
        while offset + len(held) < end:
            block = file.read(min(_BLOCK, end - offset - len(held)))
            if not block:
                break
            held += block
            for match in pattern.finditer(held):
                found = Span(offset + match.start(), offset + match.end())
                if not last:
                    return found
            drop = max(0, len(held) - _OVERLAP)
            held, offset = held[drop:], offset + drop
    return found


def _read(path: Path, start: int, end: int) -> bytes:
    with _open(path) as file:
        file.seek(start)
        text = b""
        while len(text) < end - start and (block := file.read(end - start - len(text))):
            text += block
        return text


def _text_size(path: Path) -> int:
    size = 0
    with _open(path) as file:
        while block := file.read(_BLOCK):
            size += len(block)
    return size
