"""The manifest beside a bundle: what the bundle itself has no room for."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any, Final

import msgspec

from ergo_capture.errors import ErgoCaptureError

MANIFEST_FORMAT: Final = "ergo-capture-manifest.v1"
#: How a session's bundle is called while the session goes on.
SNAPSHOT: Final = "open"
#: Largest manifest that is read; labels may take a few KB.
_MOST_BYTES: Final = 1 << 20


class ManifestError(ErgoCaptureError):
    """A file is no manifest that this version can read."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What stands beside a bundle."""

    format: str
    session: str
    graph: str
    part: int
    #: ``complete``, ``recovered``, ``interrupted``, ``rotated``, or ``open`` for a snapshot.
    ended: str
    forced: bool
    first_event: int
    events: int
    decisions: int
    #: The bundle's file name.
    bundle: str
    #: Size and SHA-256 of the bundle's text, whether the file is compressed or not.
    bytes: int
    sha256: str
    style: str
    labels: dict[str, str]
    peer: Any
    engine: str
    adapter_provenance: str
    runtime_provenance: str
    #: RFC 3339 in UTC; evidence only.
    opened_at: str
    ended_at: str
    program: str
    #: ``none`` or ``zstd``; where it is not ``none``, size and SHA-256 of the file follow.
    compression: str = "none"
    file_bytes: int | None = None
    file_sha256: str | None = None

    @property
    def stored(self) -> tuple[int, str]:
        """Size and SHA-256 of the bundle's file."""
        if self.file_bytes is None or self.file_sha256 is None:
            return self.bytes, self.sha256
        return self.file_bytes, self.file_sha256

    @property
    def is_final(self) -> bool:
        """Whether the bundle is more than a snapshot of a session that goes on."""
        return self.ended != SNAPSHOT


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest's file content."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file.

    Raises:
        ManifestError: it is none, or none of this version.
        OSError: the file cannot be read.
    """
    text = _text_of(path)
    try:
        found = msgspec.json.decode(text, type=Manifest)
        if found.format != MANIFEST_FORMAT:
            raise ValueError(f"its format is {found.format!r}, and {MANIFEST_FORMAT!r} can be read")
    except (ValueError, RecursionError) as error:
        raise _no_manifest(path, error) from error
    return found


def read_manifest_fields(path: Path) -> dict[str, Any]:
    """What a manifest of any version, or of a part that was salvaged, says.

    Raises:
        ManifestError: it says nothing.
        OSError: the file cannot be read.
    """
    text = _text_of(path)
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise _no_manifest(path, error) from error


def _text_of(path: Path) -> bytes:
    # Why not to block: a pipe of that name would be waited for for ever.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as file:  # noqa: PTH123 - a descriptor
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is not a plain file", str(path))
        text = file.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
        raise _no_manifest(path, ValueError(f"longer than {_MOST_BYTES} bytes"))
    return text


def _no_manifest(path: Path, error: Exception) -> ManifestError:
    return ManifestError(
        f"read manifest '{path}': {error}",
        op="read manifest",
        path=path,
        hint="`ergo-capture verify` says whether the bundle beside it is sound",
    )
