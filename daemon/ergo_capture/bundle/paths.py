"""Where a daemon's bundles go: ``STATE/bundles/GRAPH/SESSION.capture.json``, compressed with ``.zst`` behind it."""

from __future__ import annotations

from pathlib import Path

from ergo_capture.bundle.names import bundle_name, safe_name


def bundle_path(state: Path, graph: str, session: str, part: int, *, compressed: bool = False) -> Path:
    """Where the bundle of a part of a session goes."""
    return state / "bundles" / safe_name(graph) / bundle_name(session, part, compressed=compressed)
