"""Bundle files as a whole: encode, decode, read and write them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import Enum
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Final

import msgspec

from ergo_capture.bundle.reader.opening import read_text, unreadable
from ergo_capture.bundle.reader.stream import BundleStream
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.records import MIDDLE, CaptureBundle, encode_decisions, encode_events, encode_head, encode_tail
from ergo_capture.storage.atomic import AtomicFile, create_parents
from ergo_capture.storage.write_error import CaptureWriteError, as_written

#: Events, and decisions, that are encoded together.
_EVENTS: Final = 64
_DECISIONS: Final = 1024
#: Bytes after which the kernel is told to begin writing them, so that the sync at the end finds little to do.
_WRITE_BACK_BYTES: Final = 4 << 20


class CaptureJsonStyle(Enum):
    """The layout of a bundle's JSON (``ergo_supervisor::CaptureJsonStyle``)."""

    Compact = "compact"
    Pretty = "pretty"


class BundleHead(msgspec.Struct, frozen=True):
    """The fields of a bundle other than its events and decisions."""

    graph_id: str
    config: Constraints
    adapter_provenance: str
    runtime_provenance: str
    egress_provenance: str | None = None


def encode_bundle(bundle: CaptureBundle, style: CaptureJsonStyle = CaptureJsonStyle.Compact) -> bytes:
    """Return the bundle's file content, newline included, byte for byte what the reference writes.

    Raises:
        ValueError: a string cannot be encoded as UTF-8.
    """
    text = b"".join(_pieces(bundle))
    if style is CaptureJsonStyle.Pretty:
        text = msgspec.json.format(text, indent=2)
    return text + b"\n"


def _pieces(bundle: CaptureBundle) -> Iterator[bytes]:
    """Yield the compact text, without the newline at its end, in pieces."""
    yield encode_head(bundle.graph_id, bundle.config, bundle.capture_version)
    for start in range(0, len(bundle.events), _EVENTS):
        yield b"," * bool(start) + encode_events(bundle.events[start : start + _EVENTS])
    yield MIDDLE
    for start in range(0, len(bundle.decisions), _DECISIONS):
        yield b"," * bool(start) + encode_decisions(bundle.decisions[start : start + _DECISIONS])
    yield encode_tail(bundle.adapter_provenance, bundle.runtime_provenance, bundle.egress_provenance)


def decode_bundle(text: bytes) -> CaptureBundle:
    """Return the bundle in a file's content; accept the same texts as the reference.

    Raises:
        BundleFormatError: the text is not JSON, not a bundle, or has an unknown field.
    """
    with BundleStream(text=text) as stream:
        return stream.read()


def read_capture_bundle(path: str | PathLike[str]) -> CaptureBundle:
    """Read a whole bundle file, compressed or not.

    Raises:
        BundleFormatError: as ``decode_bundle``, with the path.
        ErgoCaptureError: the file cannot be read.
    """
    path = Path(path)
    try:
        text = read_text(path)
    except OSError as error:
        raise unreadable(path, error) from error
    with BundleStream(path, text) as stream:
        return stream.read()


def write_capture_bundle(
    path: str | PathLike[str], bundle: CaptureBundle, style: CaptureJsonStyle = CaptureJsonStyle.Compact
) -> None:
    """Write a bundle atomically (``ergo_supervisor::write_capture_bundle``).

    Missing parent directories are created. The bytes go to a temporary file beside the destination, which is synced
    and renamed over it. Unlike the reference, this also syncs the directory.

    Raises:
        CaptureWriteError: with the stage that failed; the destination is untouched and no temporary is left.
    """
    destination, pretty = Path(path), style is CaptureJsonStyle.Pretty
    create_parents(destination)
    with AtomicFile(destination, os.fspath(path)) as file:
        try:
            # Write piece by piece: the disk writes while the rest is encoded, and the text is never whole in memory.
            for piece in (encode_bundle(bundle, style),) if pretty else chain(_pieces(bundle), (b"\n",)):
                file.write(piece)
                file.write_back(_WRITE_BACK_BYTES)
        except (ValueError, TypeError) as error:
            raise CaptureWriteError.serialize(destination, as_written(path), style.value, error) from error
        file.commit()
