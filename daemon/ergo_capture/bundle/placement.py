"""Decide whether a file may be overwritten: one rule for the publisher, recovery and every command that writes.

1. A file that is being read is not overwritten, under any of its names.
2. A finished bundle, one whose manifest says any ``ended`` but ``open``, is never replaced by one with fewer or other
   events. If it has the same text as the new one, it and its manifest stay as they are.
3. A bundle that may grow (``Manifest.may_grow``), or has no manifest, is replaced only by one that begins with all its
   events: a journal that was restored from a backup may hold fewer than the last snapshot.

A bundle whose name is taken by another one is published beside it, as ``SESSION~PART~2``.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Final

from ergo_capture.bundle.manifest import Manifest, ManifestError, read_manifest
from ergo_capture.bundle.names import BUNDLE_SUFFIX, MANIFEST_SUFFIX, manifest_path, names_beside, other_form
from ergo_capture.bundle.proof import difference_from
from ergo_capture.bundle.reader.opening import open_binary
from ergo_capture.journal.segment import is_torn_copy, sequence_of

_READ_BYTES: Final = 256 * 1024
#: Matches the text after the last event of a bundle, in either layout. It cannot match within an event, because quotes
#: inside strings are escaped.
_END_OF_EVENTS: Final = re.compile(rb'\s*\]\s*,\s*"decisions"\s*:')
#: Longest match, in bytes.
_END_BYTES: Final = 64


class _Standing(Enum):
    """The relation of the bundle that has a name to a new one."""

    #: There is no such bundle, or it may be replaced.
    FREE = 0
    #: The bundle is finished and has the same text.
    SAME = 1
    #: The bundle holds events that the new one does not.
    OTHER = 2


@dataclass(frozen=True, slots=True)
class NewBundle:
    """A bundle that is written and has no name yet."""

    #: The file; its text need not be that of the file, which may be compressed.
    file: Path
    #: Size and SHA-256 of its text.
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a new bundle."""

    bundle: Path
    #: The manifest of the finished bundle with the same text that is there already; both stay as they are.
    standing: Manifest | None = None
    #: The bundle that has the wanted name and must stay; None for none.
    beside: Path | None = None


def find_place(wanted: Path, part: int, new: NewBundle, *, own: str = "") -> Place:
    """Return the place of a new bundle; the caller holds the directory's lock.

    Args:
        wanted: the path that it should have.
        part: the number of its part.
        new: the bundle.
        own: SHA-256 of the snapshot that the caller published last of the same part: the new one begins with its
            events, which need not be compared.

    Raises:
        OSError: the new bundle cannot be read.
    """
    beside: Path | None = None
    for path in chain([wanted], names_beside(wanted, part)):
        manifest, files = _bundle_at(path)
        standing = _compare(manifest, files, new, own)
        if standing is _Standing.SAME:
            return Place(files[0], manifest, beside)
        if standing is _Standing.FREE:
            return Place(path, None, beside)
        beside = beside or next(iter(files), path)
    raise AssertionError  # names_beside is endless


def _bundle_at(path: Path) -> tuple[Manifest | None, list[Path]]:
    """Return the manifest of the bundle at a path, and its files, compressed or not; the file it names comes first."""
    manifest = None
    with suppress(ManifestError, OSError):
        manifest = read_manifest(manifest_path(path))
    forms = [form for form in (path, other_form(path)) if os.path.lexists(form)]
    return manifest, sorted(forms, key=lambda form: manifest is None or form.name != manifest.bundle)


def _compare(manifest: Manifest | None, files: list[Path], new: NewBundle, own: str) -> _Standing:
    if manifest is not None and not manifest.may_grow:
        if (manifest.bytes, manifest.sha256) != (new.size, new.sha256):
            return _Standing.OTHER
        # A bundle that is gone or has rotted is written again.
        return _Standing.SAME if files and _is_sound(files[0], manifest) else _Standing.FREE
    if files and manifest is not None and manifest.sha256 == own:
        files = files[1:]
    return _Standing.FREE if all(_begins_with(new.file, file) for file in files) else _Standing.OTHER


def _is_sound(file: Path, manifest: Manifest) -> bool:
    try:
        return file.is_file() and difference_from(file, manifest) is None
    except OSError:
        return False


def _begins_with(new: Path, old: Path) -> bool:
    """Return whether a bundle's events are the first ones of another, or all of them.

    Raises:
        OSError: the new bundle cannot be read.
    """
    if not old.is_file():
        return False
    with open_binary(new) as new_text:
        try:
            with open_binary(old) as old_text:
                return _has_all_events(new_text, old_text)
        except OSError:
            # The old one cannot be read: nothing shows that the new one has its events.
            return False


def _has_all_events(new: BinaryIO, old: BinaryIO) -> bool:
    end = b""
    while True:
        theirs, ours = _read(old), _read(new)
        if ours == theirs:
            # A match of the pattern may begin in the block before.
            end = end[-_END_BYTES:] + theirs
            # Search for the word first, which is fast: the pattern would be tried at every bracket.
            if not theirs or (b'"decisions"' in end and _END_OF_EVENTS.search(end)):
                return True
            continue
        same = next(
            (at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
        )
        # The events may end before the first difference, or right there.
        rest = end[-_END_BYTES:] + theirs + _read(old)
        last = min(len(end), _END_BYTES) + same
        found = _END_OF_EVENTS.search(rest)
        return found is not None and found.start() <= last


def _read(file: BinaryIO) -> bytes:
    """Read a whole block: a compressed file returns less at a time."""
    blocks, size = [], 0
    while size < _READ_BYTES and (block := file.read(_READ_BYTES - size)):
        blocks.append(block)
        size += len(block)
    return b"".join(blocks)


# --- the output of commands ---


def refusal_to_replace(destination: Path, reads: Iterable[Path | int]) -> str | None:
    """Return the reason why a command must not overwrite a file; None if it may.

    Args:
        destination: the file, which need not exist.
        reads: the files that the command reads: paths, which need not exist, or descriptors.
    """
    try:
        there = destination.stat()
    except OSError:
        # There is no file, or a link to none.
        return None
    if stat.S_ISDIR(there.st_mode):
        return "it is a directory"
    for read in reads:
        with suppress(OSError):
            if os.path.samestat(there, os.stat(read)):  # noqa: PTH116 - it may be a descriptor
                return "it is the file that is read"
    if not stat.S_ISREG(there.st_mode):
        # Renaming a file over a device or a pipe would replace it.
        return "it is not an ordinary file"
    # Protect a link as its target: the link is the name by which a user knows the file.
    reasons = map(_protection, dict.fromkeys((destination, destination.resolve())))
    return next(filter(None, reasons), None)


def _protection(path: Path) -> str | None:
    if sequence_of(path.name) is not None or is_torn_copy(path.name):
        return "it is a segment of a journal"
    bundle = path
    if path.name.endswith(MANIFEST_SUFFIX):
        bundle = path.with_name(path.name.removesuffix(MANIFEST_SUFFIX) + BUNDLE_SUFFIX)
    manifest, files = _bundle_at(bundle)
    if manifest is None or manifest.may_grow or not files or path not in (files[0], manifest_path(bundle)):
        return None
    whose = "" if path == files[0] else "the manifest of "
    return f"it is {whose}a finished bundle ({manifest.ended})"
