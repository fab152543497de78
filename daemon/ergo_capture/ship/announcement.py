"""The announcement of a shipped bundle: subject, id and body, made from the manifest and the receipt."""

from __future__ import annotations

from typing import Final, NamedTuple
from urllib.parse import quote

import msgspec

from ergo_capture.bundle.catalogue import StoredBundle
from ergo_capture.bundle.receipt import Receipt
from ergo_capture.objects.keys import rest_key

ANNOUNCEMENT_FORMAT: Final = "ergo-capture-announcement.v1"


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON of an announcement."""

    format: str = ANNOUNCEMENT_FORMAT
    host: str
    session: str
    part: int
    graph: str
    #: ``complete``, ``recovered``, ``interrupted``, ``lost``, ``rotated`` or ``salvaged``, and when: RFC 3339 in UTC.
    ended: str
    ended_at: str
    events: int
    decisions: int
    #: The store, and the keys in it: of the bundle's file, of the left-over events, of the manifest's object.
    target: str
    url: str
    key: str
    rest_key: str | None
    manifest_key: str
    #: Size and SHA-256 of the bundle's file, and of its text, which differ if the file is compressed.
    file_bytes: int
    file_sha256: str
    bytes: int
    sha256: str
    #: SHA-256 of the manifest's file; it is also the message's id.
    manifest_sha256: str
    shipped_at: str


class Announcement(NamedTuple):
    """One message."""

    subject: str
    #: ``Nats-Msg-Id``: a second message with it is dropped within the stream's window of duplicates.
    id: str
    body: bytes


def make_announcement(bundle: StoredBundle, receipt: Receipt, host: str, subject: str) -> Announcement:
    """Return the announcement of a bundle.

    Args:
        bundle: the bundle, as it was listed.
        receipt: a valid receipt of it.
        host: the name of this host in the store.
        subject: the configured prefix of the subject.
    """
    manifest = bundle.manifest
    assert manifest is not None
    body = Body(
        host=host,
        session=manifest.session,
        part=manifest.part,
        graph=manifest.graph,
        ended=manifest.ended,
        ended_at=manifest.ended_at,
        events=manifest.events,
        decisions=manifest.decisions,
        target=receipt.target,
        url=receipt.url,
        key=receipt.key,
        rest_key=None if manifest.rest is None else rest_key(manifest.rest.sha256),
        manifest_key=receipt.manifest_key,
        file_bytes=receipt.bytes,
        file_sha256=receipt.file_sha256,
        bytes=manifest.bytes,
        sha256=manifest.sha256,
        manifest_sha256=receipt.manifest_sha256,
        shipped_at=receipt.shipped_at,
    )
    return Announcement(subject_of(subject, manifest.graph), receipt.manifest_sha256, msgspec.json.encode(body))


def subject_of(subject: str, graph: str) -> str:
    """Return the subject of a graph's announcements: ``SUBJECT.GRAPH``.

    Every character of the graph's name that is not a letter, a digit, ``-``, ``_`` or ``~`` becomes ``%XX``, and the empty
    name ``%``: different graphs have different subjects.
    """
    return f"{subject}.{quote(graph, safe='').replace('.', '%2E') or '%'}"
