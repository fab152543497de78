"""A store with manifests of many hosts, as the shipper writes them."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec

from ergo_capture.bundle.names import bundle_stem
from ergo_capture.fleet.check import Item
from ergo_capture.objects.directory import DirectoryStore
from ergo_capture.objects.keys import encode_shipped_manifest, object_key
from ergo_capture.objects.port import ObjectStore

#: When the first bundle of these stores ended.
BEGIN: Final = datetime(2026, 11, 20, 12, tzinfo=UTC)


def manifest_fields(session: str, **fields: Any) -> dict[str, Any]:
    """Return the fields of a manifest."""
    ended_at = (BEGIN if "after" not in fields else BEGIN + timedelta(days=fields.pop("after"))).isoformat()
    return {
        "format": "ergo-capture-manifest.v1",
        "session": session,
        "graph": "flights",
        "part": 1,
        "ended": "complete",
        "forced": False,
        "first_event": 0,
        "events": 10,
        "decisions": 10,
        "bundle": f"{session}.capture.json",
        "bytes": 1540,
        "sha256": hashlib.sha256(session.encode()).hexdigest(),
        "style": "compact",
        "labels": {"team": "ops"},
        "peer": None,
        "engine": "fixed",
        "adapter_provenance": "none",
        "runtime_provenance": "rpv1:none",
        "opened_at": BEGIN.isoformat(),
        "ended_at": ended_at,
        "program": "ergo-capture 0.2.0",
        **fields,
    }


def put_manifest(store: ObjectStore, fields: dict[str, Any], *, host: str = "alpha") -> str:
    """Write a manifest's object and return its key."""
    text = msgspec.json.format(msgspec.json.encode(fields), indent=2) + b"\n"
    stem = bundle_stem(Path(fields["bundle"]))
    date = datetime.fromisoformat(fields["ended_at"]).astimezone(UTC).date()
    key = f"manifests/date={date}/host={host}/{stem}.{hashlib.sha256(text).hexdigest()[:16]}.json"
    content = encode_shipped_manifest(host, object_key(fields["sha256"], compressed=False), text)
    store.put(key, [content], len(content))
    return key


def directory_store(root: Path) -> DirectoryStore:
    """Return a store in a directory."""
    root.mkdir(exist_ok=True)
    return DirectoryStore(root)


def put_bundle(store: ObjectStore, session: str, text: bytes, *, host: str = "alpha", **fields: Any) -> Item:
    """Write a bundle and its manifest, and return it as an item of a run."""
    sha256 = hashlib.sha256(text).hexdigest()
    key = object_key(sha256, compressed=False)
    store.put(key, [text], len(text))
    bundle = msgspec.json.decode(text) if "events" not in fields else {"events": [], "decisions": []}
    said = {
        "sha256": sha256,
        "bytes": len(text),
        "events": len(bundle["events"]),
        "decisions": len(bundle["decisions"]),
    }
    manifest = put_manifest(store, manifest_fields(session, **said | fields), host=host)
    return Item(manifest, key, host, session, 1, "g", len(text))
