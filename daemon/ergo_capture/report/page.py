"""Render a bundle as one HTML file that loads nothing else.

Data from the bundle is packed (deflate, base64) and shown as text only. The page's Content-Security-Policy forbids
every connection, and every script and style other than its own, which it names by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any, Final

from ergo_capture.bundle.manifest import Manifest
from ergo_capture.bundle.reader.stream import RecordStream
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.explanation import format_time
from ergo_capture.kernel.time import EventTime
from ergo_capture.report.columns import pack_columns
from ergo_capture.version import PROGRAM

#: The files of the page's own script, in order.
SCRIPTS: Final = ("words.js", "run.js", "charts.js", "table.js", "page.js")


def report_page(stream: RecordStream, name: str, manifest: Manifest | None = None, decided_by: str = "") -> bytes:
    """Return the page of a run; memory use grows with the page.

    Args:
        stream: the run.
        name: the name of its file.
        manifest: its manifest, if there is one.
        decided_by: the maker of the decisions; empty for the graph's engine.

    Raises:
        BundleFormatError: an event or a decision is malformed.
        ErgoCaptureError: it cannot be read.
    """
    data = {
        "graph": _shown(stream.graph_id),
        "file": _shown(name),
        "program": PROGRAM,
        "about": _about(stream, manifest, decided_by),
    }
    packed = base64.b64encode(pack_columns(stream, data))
    files = resources.files("ergo_capture") / "data" / "report"

    def part(name: str) -> str:
        return (files / name).read_text("utf-8")

    style = part("uPlot.min.css") + part("page.css")
    library, script = part("uPlot.iife.min.js"), "".join(part(name) for name in SCRIPTS)
    page = part("page.html")
    for mark, text in (
        ("POLICY", _policy(style, library, script)),
        ("/*STYLE*/", style),
        ("/*LIBRARY*/", library),
        ("/*SCRIPT*/", script),
    ):
        page = page.replace(mark, text, 1)
    # Insert the data last: a mark inside it would be taken for one of the page's.
    before, _, after = page.partition("/*DATA*/")
    return b"".join((before.encode(), packed, after.encode()))


def _policy(style: str, *scripts: str) -> str:
    allowed = " ".join(map(_hash, scripts))
    return f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _about(stream: RecordStream, manifest: Manifest | None, decided_by: str) -> list[tuple[str, str]]:
    """Return properties of the bundle as a whole, by name."""
    about: list[tuple[str, str]] = [("decided by", decided_by)] if decided_by else []
    if manifest is not None:
        about += [
            ("session", f"{manifest.session}, part {manifest.part}, {manifest.ended}"),
            ("captured", f"{manifest.opened_at} to {manifest.ended_at}"),
            *([] if manifest.lost is None else [("lost", manifest.lost.in_words)]),
            *manifest.fates,
            *((f"label {name}", value) for name, value in manifest.labels.items()),
        ]
    about += [
        ("format", stream.capture_version),
        ("limits", _limits(stream.config)),
        ("engine", stream.runtime_provenance),
        ("adapter", stream.adapter_provenance),
    ]
    if stream.egress_provenance is not None:
        about.append(("egress", stream.egress_provenance))
    return [(name, _shown(value)) for name, value in about]


def _limits(constraints: Constraints) -> str:
    values: dict[str, Any] = {name: getattr(constraints, name) for name in constraints.__struct_fields__}
    in_words = [
        f"{name} {format_time(value) if isinstance(value, EventTime) else value}"
        for name, value in values.items()
        if value is not None
    ]
    return ", ".join(in_words)


def _shown(text: str) -> str:
    """Return text that JSON can hold: a file name may have bytes that are not UTF-8."""
    return text.encode(errors="backslashreplace").decode()
