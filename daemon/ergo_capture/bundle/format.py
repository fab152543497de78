"""Bundle files as a whole: encode, decode, read and write them."""

from __future__ import annotations

import os
from enum import Enum
from os import PathLike
from pathlib import Path

import msgspec

from ergo_capture.bundle.reader.opening import read_text, unreadable
from ergo_capture.bundle.reader.stream import BundleStream
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.records import MIDDLE, CaptureBundle, encode_decision, encode_event, encode_head, encode_tail
from ergo_capture.storage.atomic import create_parents, write_bytes_atomic
from ergo_capture.storage.write_error import CaptureWriteError, as_written


class CaptureJsonStyle(Enum):
    """How a bundle's JSON is laid out (``ergo_supervisor::CaptureJsonStyle``)."""

    Compact = "compact"
    Pretty = "pretty"


class BundleHead(msgspec.Struct, frozen=True):
    """What a bundle says besides its events and decisions."""

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
    text = b"".join(
        (
            encode_head(bundle.graph_id, bundle.config, bundle.capture_version),
            b",".join(map(encode_event, bundle.events)),
            MIDDLE,
            b",".join(map(encode_decision, bundle.decisions)),
            encode_tail(bundle.adapter_provenance, bundle.runtime_provenance, bundle.egress_provenance),
        )
    )
    if style is CaptureJsonStyle.Pretty:
        text = msgspec.json.format(text, indent=2)
    return text + b"\n"


def decode_bundle(text: bytes) -> CaptureBundle:
    """Return the bundle that a file's content holds; accept and refuse what the reference does.

    Raises:
        BundleFormatError: the text is not JSON, not a bundle, or has a field that a bundle does not have.
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
    and renamed over it; then the directory is synced, which the reference leaves out.

    Raises:
        CaptureWriteError: with the stage that failed; the destination is untouched and no temporary is left.
    """
    destination = Path(path)
    create_parents(destination)
    try:
        text = encode_bundle(bundle, style)
    except (ValueError, TypeError) as error:
        raise CaptureWriteError.serialize(destination, as_written(path), style.value, error) from error
    write_bytes_atomic(destination, text, os.fspath(path))
