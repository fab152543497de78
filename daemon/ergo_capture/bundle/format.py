"""Bundle files: encode, decode, read and write."""

from __future__ import annotations

import os
from enum import Enum
from os import PathLike
from pathlib import Path
from typing import Final

import msgspec

from ergo_capture.bundle.reader.opening import HEAD_BYTES, identify_foreign, read_hint, read_text
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.records import MIDDLE, CaptureBundle, encode_decision, encode_event, encode_head, encode_tail
from ergo_capture.kernel.serde import bundle as serde
from ergo_capture.kernel.serde.parsing import parse
from ergo_capture.storage.atomic import create_parents, write_bytes_atomic
from ergo_capture.storage.write_error import CaptureWriteError, as_written

_HINT: Final = (
    "check that the file is a whole capture bundle of version v3; a cut one can be salvaged with `ergo-capture recover`"
)


class CaptureJsonStyle(Enum):
    """How a bundle's JSON is laid out (``ergo_supervisor::CaptureJsonStyle``)."""

    Compact = "compact"
    Pretty = "pretty"


class BundleFormatError(ErgoCaptureError, ValueError):
    """A text is not a capture bundle; the message names the field."""


def encode_bundle(bundle: CaptureBundle, style: CaptureJsonStyle = CaptureJsonStyle.Compact) -> bytes:
    """The bundle's file content, newline included, byte for byte what the reference writes.

    Raises:
        ValueError: a string that no UTF-8 text can hold.
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
    """The bundle that a file's content holds; accepts and refuses what the reference does.

    Raises:
        BundleFormatError: not JSON, not a bundle, or a field that a bundle does not have.
    """
    try:
        return serde.read_bundle(parse(text.decode()))
    except (ValueError, RecursionError) as error:
        complaint, hint = complaint_of(text[:HEAD_BYTES], str(error))
        raise BundleFormatError(f"read capture bundle: {complaint}", op="read capture bundle", hint=hint) from error


def complaint_of(head: bytes, error: str) -> tuple[str, str]:
    """What to say of a text that begins so and was refused with that error, and what to do."""
    return identify_foreign(head) or (error, _HINT)


def read_capture_bundle(path: str | PathLike[str]) -> CaptureBundle:
    """Read a bundle file whole, compressed or not.

    Raises:
        BundleFormatError: as ``decode_bundle``, with the path.
        ErgoCaptureError: the file cannot be read.
    """
    try:
        text = read_text(Path(path))
    except OSError as error:
        raise ErgoCaptureError(
            f"read capture bundle '{path}': {error.strerror or error}",
            op="read capture bundle",
            path=str(path),
            hint=read_hint(error),
        ) from error
    try:
        return decode_bundle(text)
    except BundleFormatError as error:
        error.path = str(path)
        error.message = f"read capture bundle '{path}': {error.message.removeprefix('read capture bundle: ')}"
        raise


def write_capture_bundle(
    path: str | PathLike[str], bundle: CaptureBundle, style: CaptureJsonStyle = CaptureJsonStyle.Compact
) -> None:
    """Write a bundle so that its name only ever stands for a whole file (``ergo_supervisor::write_capture_bundle``).

    Parents are created; the bytes go to a temporary beside the destination, are synced, renamed over it,
    and then the directory is synced, which the reference leaves out.

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
