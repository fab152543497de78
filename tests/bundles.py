"""Bundles as a daemon leaves them: files with manifests, of any age and size."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import zstandard

from ergo_capture import (
    CaptureBundle,
    CapturingSession,
    Constraints,
    EventTime,
    ExternalEvent,
    ExternalEventKind,
    FaultRuntime,
    MemoryDecisionLog,
    encode_bundle,
)
from ergo_capture.bundle.manifest import MANIFEST_FORMAT, Manifest, encode_manifest
from ergo_capture.bundle.names import manifest_path

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def small_bundle(graph: str = "g", events: int = 2) -> CaptureBundle:
    """Return a sound bundle of a few events."""
    session = CapturingSession(graph, Constraints(), MemoryDecisionLog(), FaultRuntime(), "rpv1:none")
    for index in range(events):
        session.on_event(
            ExternalEvent.with_payload(f"e{index}", ExternalEventKind.Command, EventTime(index, 0), b'{"n":%d}' % index)
        )
    return session.into_bundle()


def store(
    state: Path,
    name: str,
    *,
    graph: str = "g",
    age: timedelta = DAY,
    now: datetime = NOW,
    compress: bool = False,
    text: bytes | None = None,
    **fields: Any,
) -> Path:
    """Write a finished bundle and its manifest into a state directory; return the bundle's path."""
    text = encode_bundle(small_bundle(graph)) if text is None else text
    path = state / "bundles" / graph / f"{name}.capture.json{'.zst' if compress else ''}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zstandard.ZstdCompressor().compress(text) if compress else text)
    manifest_path(path).write_bytes(encode_manifest(manifest_of(path, text, graph, now - age, **fields)))
    return path


def manifest_of(path: Path, text: bytes, graph: str, end: datetime, **fields: Any) -> Manifest:
    """Return the manifest of a bundle file with that text; ``fields`` replace its own."""
    stored = path.read_bytes()
    said: dict[str, Any] = {
        "format": MANIFEST_FORMAT,
        "session": path.name.partition(".")[0],
        "graph": graph,
        "part": 1,
        "ended": "complete",
        "forced": False,
        "first_event": 0,
        "events": 2,
        "decisions": 2,
        "bundle": path.name,
        "bytes": len(text),
        "sha256": hashlib.sha256(text).hexdigest(),
        "style": "compact",
        "labels": {},
        "peer": None,
        "engine": "fixed",
        "adapter_provenance": "none",
        "runtime_provenance": "rpv1:none",
        "opened_at": end.isoformat(),
        "ended_at": end.isoformat(),
        "program": "test 1",
    }
    if stored != text:
        said |= {
            "compression": "zstd",
            "file_bytes": len(stored),
            "file_sha256": hashlib.sha256(stored).hexdigest(),
        }
    return Manifest(**(said | fields))
