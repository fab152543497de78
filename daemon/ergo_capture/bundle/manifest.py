"""The manifest beside a bundle: facts for which the bundle's format has no fields."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from ergo_capture.bundle.semantic_kinds import SemanticKinds
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.payloads import Interruption, LeftOver, Loss, RefusedEvent, SessionDescription
from ergo_capture.plain_file import open_plain
from ergo_capture.version import PROGRAM

MANIFEST_FORMAT: Final = "ergo-capture-manifest.v1"
#: ``ended`` of a bundle whose session goes on.
SNAPSHOT: Final = "open"
#: How many refused events a manifest names.
NAMED_REFUSALS: Final = 10
#: ``ended`` of a bundle that holds less than was captured.
SALVAGED: Final = "salvaged"
#: Largest manifest that is read, in bytes: labels take a few KB, the context store at most ``limits.context_bytes``,
#: which may be 16 MiB.
_MAX_BYTES: Final = 20 << 20
#: Greater numbers of bundles are ignored: a manifest that was edited must not use up the numbers.
_MOST_NUMBERED: Final = 1 << 53


class ManifestError(ErgoCaptureError):
    """A file is not a manifest that this version can read."""


class _Numbered(msgspec.Struct, frozen=True):
    """The number alone, to skip the rest of a manifest, which may be long."""

    sequence: Any = None


class RefusedEvents(msgspec.Struct, frozen=True):
    """The events of a part that were refused."""

    count: int
    #: The first few of them.
    first: list[RefusedEvent]

    @property
    def in_words(self) -> str:
        """The number of events and the first of them, in words."""
        events = "1 event" if self.count == 1 else f"{self.count:,} events"
        return f"{events}, the first {self.first[0].event_id!r}: {self.first[0].message}" if self.first else events


class RestFile(msgspec.Struct, frozen=True):
    """The file beside a bundle with the events that were left over, ``SESSION.rest.jsonl``."""

    bytes: int
    #: SHA-256 of the file, in hex.
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The content of a manifest."""

    format: str
    session: str
    graph: str
    part: int
    #: ``complete``, ``recovered``, ``interrupted``, ``lost``, ``rotated``, ``salvaged``, or ``open`` for a snapshot.
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
    #: ``none`` or ``zstd``; unless it is ``none``, size and SHA-256 of the file follow.
    compression: str = "none"
    file_bytes: int | None = None
    file_sha256: str | None = None
    #: Id of the last event; None without events, and in manifests of programs that did not write it.
    last_event_id: str | None = None
    #: The acknowledged events of the session that no bundle holds; None for none.
    lost: Loss | None = None
    #: Place in the order in which the daemon published its finished bundles, from 1; it does not depend on a clock.
    #: None in snapshots, and in manifests that 0.1.0 wrote, which are older.
    sequence: int | None = None
    #: The finished bundle with other events that has the name of this one; see ``placement.py``.
    beside: str | None = None
    #: The maker of the decisions, if it was not the graph's engine: ``fixed, not the run``.
    decided_by: str = ""
    #: Semantic kinds of the events; None if no event has one.
    semantic_kinds: SemanticKinds | None = None
    #: The digest of which events hold which values of the context store (``merged.py``); None without an adapter.
    merged: str | None = None
    #: The context store before the first event, by key; None if it is empty, and without an adapter.
    store: dict[str, Any] | None = None
    #: The statistics that ``info`` shows, with their version (``statistics.py``). None if they were not counted.
    summary: Any = None
    #: Size and SHA-256 of the index beside it (``reader/index.py``); None without an index.
    index: Any = None
    #: The events that were refused, between or after those of the bundle; None for none.
    refused: RefusedEvents | None = None
    #: The interruption of the run; None for none.
    interruption: Interruption | None = None
    #: The events that were accepted after the interruption, and the file that holds them; None for none.
    left_over: LeftOver | None = None
    rest: RestFile | None = None

    @property
    def fates(self) -> list[tuple[str, str]]:
        """The events that the bundle does not hold and the interruption of the run, each as a label and a text."""
        found = {"refused": self.refused, "interrupted": self.interruption, "left over": self.left_over}
        return [(name, what.in_words) for name, what in found.items() if what is not None]

    @property
    def stored(self) -> tuple[int, str]:
        """Size and SHA-256 of the bundle's file."""
        if self.file_bytes is None or self.file_sha256 is None:
            return self.bytes, self.sha256
        return self.file_bytes, self.file_sha256

    @property
    def is_final(self) -> bool:
        """Whether the bundle is finished, rather than a snapshot of a running session."""
        return self.ended != SNAPSHOT

    def for_listing(self) -> Manifest:
        """Return it without labels, peer, kinds, store and statistics, and with one copy of the strings that most share.

        A daemon keeps the manifests of thousands of bundles in memory, and a store alone may have 16 MiB.
        """
        shared = {name: sys.intern(getattr(self, name)) for name in _SHARED}
        return msgspec.structs.replace(
            self, labels=_NO_LABELS, peer=None, semantic_kinds=None, merged=None, store=None, summary=None, **shared
        )

    @property
    def may_grow(self) -> bool:
        """Whether a later bundle of the same part may hold these events and more.

        When 0.1.0 stopped, it wrote ``interrupted`` for a session that the next start continued.
        """
        return self.ended in (SNAPSHOT, SALVAGED) or (self.ended == "interrupted" and self.sequence is None)


#: The fields that are equal in most manifests of a directory.
_SHARED: Final = (
    *("format", "graph", "ended", "style", "engine", "adapter_provenance", "runtime_provenance", "program"),
    *("compression", "decided_by"),
)
_NO_LABELS: Final[dict[str, str]] = {}


def manifest_for(
    description: SessionDescription,
    bundle: Path,
    *,
    part: int,
    ended: str,
    forced: bool,
    first: int,
    count: int,
    size: int,
    sha256: str,
    ended_at: str,
    style: str = "compact",
    compression: str = "none",
    stored: tuple[int, str] | None = None,
    last_event_id: str | None = None,
    sequence: int | None = None,
    beside: str | None = None,
    semantic_kinds: SemanticKinds | None = None,
    merged: str | None = None,
    store: dict[str, Any] | None = None,
    refused: RefusedEvents | None = None,
    interruption: Interruption | None = None,
    left_over: LeftOver | None = None,
    rest: RestFile | None = None,
    summary: dict[str, Any] | None = None,
    index: Any = None,
) -> Manifest:
    """Return the manifest of a bundle that this program wrote.

    Args:
        description: the session.
        bundle: the bundle file.
        part: the part's number.
        ended: how the part ended.
        forced: whether it was cut while episodes were deferred.
        first: index in the session of its first event.
        count: its events, and its decisions.
        size: bytes of the bundle's text.
        sha256: SHA-256 of the text, in hex.
        ended_at: RFC 3339 in UTC.
        style: the layout of the text.
        compression: ``none`` or ``zstd``.
        stored: size and SHA-256 of the file, if it is compressed.
        last_event_id: id of its last event.
        sequence: its place in the order of publication.
        beside: the finished bundle that has its name.
        semantic_kinds: semantic kinds of its events.
        merged: the digest of the store's values in its events.
        store: the context store before its first event.
        refused: the events of the part that were refused.
        interruption: the interruption of the run.
        left_over: the events after it.
        rest: the file that holds them.
        summary: its statistics, for ``info``.
        index: size and SHA-256 of its index.
    """
    file_bytes, file_sha256 = (None, None) if stored is None else stored
    return Manifest(
        format=MANIFEST_FORMAT,
        session=description.session,
        graph=description.graph,
        part=part,
        ended=ended,
        forced=forced,
        first_event=first,
        events=count,
        decisions=count,
        bundle=bundle.name,
        bytes=size,
        sha256=sha256,
        style=style,
        labels=description.labels,
        peer=description.peer,
        engine=description.engine,
        adapter_provenance=description.adapter_provenance,
        runtime_provenance=description.runtime_provenance,
        opened_at=description.opened_at,
        ended_at=ended_at,
        program=PROGRAM,
        compression=compression,
        file_bytes=file_bytes,
        file_sha256=file_sha256,
        last_event_id=last_event_id,
        lost=description.lost,
        decided_by=description.decided_by,
        sequence=sequence,
        beside=beside,
        semantic_kinds=semantic_kinds,
        merged=merged,
        store=store or None,
        refused=refused,
        interruption=interruption,
        left_over=left_over,
        rest=rest,
        summary=summary,
        index=index,
    )


def encode_manifest(manifest: Manifest, **more: object) -> bytes:
    """Return the manifest's file content, with further fields after its own."""
    fields = msgspec.to_builtins(manifest) | more
    # Write the store on one line: with a line for each number of a series it could exceed the limit of the store.
    store = fields.pop("store", None)
    text = msgspec.json.format(msgspec.json.encode(fields), indent=2)
    if store is not None:
        text = b'%b,\n  "store": %b\n}' % (text.removesuffix(b"\n}"), msgspec.json.encode(store))
    return text + b"\n"


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        ManifestError: the file is not a manifest of this version.
        OSError: the file cannot be read.
    """
    text = read_manifest_text(path)
    try:
        found = msgspec.json.decode(text, type=Manifest)
        if found.format != MANIFEST_FORMAT:
            raise ValueError(f"its format is {found.format!r}, and {MANIFEST_FORMAT!r} can be read")
    except (ValueError, RecursionError) as error:
        raise _not_a_manifest(path, error) from error
    return found


def read_manifest_fields(path: Path) -> dict[str, Any]:
    """Read the fields of a manifest of any version.

    Raises:
        ManifestError: the file is not a JSON object.
        OSError: the file cannot be read.
    """
    text = read_manifest_text(path)
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        raise _not_a_manifest(path, error) from error


def read_sequence(path: Path) -> int | None:
    """Return the number in a manifest of any version; None if it has none, or cannot be read."""
    try:
        number = msgspec.json.decode(read_manifest_text(path), type=_Numbered).sequence
    except (ManifestError, OSError, ValueError, RecursionError):
        return None
    return number if type(number) is int and number < _MOST_NUMBERED else None


def read_manifest_text(path: Path) -> bytes:
    """Return the content of a manifest's file, without checking it.

    Raises:
        ManifestError: it is too long for a manifest.
        OSError: the file cannot be read.
    """
    with open_plain(path) as file:
        # Read no more than there is: for each manifest a buffer of the most bytes would be allocated.
        size = os.fstat(file.fileno()).st_size
        text = file.read(min(size, _MAX_BYTES) + 1)
    if len(text) > _MAX_BYTES:
        raise _not_a_manifest(path, ValueError(f"longer than {_MAX_BYTES} bytes"))
    return text


def _not_a_manifest(path: Path, error: Exception) -> ManifestError:
    return ManifestError(
        f"read manifest '{path}': {error}",
        op="read manifest",
        path=path,
        hint="`ergo-capture verify` says whether the bundle beside it is sound",
    )
