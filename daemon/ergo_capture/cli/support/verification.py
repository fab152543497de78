"""The verdict on a bundle as JSON types, as ``verify`` prints it and ``replay`` and ``demo`` use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ergo_capture.bundle.verify import verify_bundle
from ergo_capture.cli.support.output import printable
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.kernel.explanation import to_builtins
from ergo_capture.kernel.replay import Divergence


def check(path: Path) -> dict[str, Any]:
    """Verify a bundle and return its counts and the first problem; the item ``exit`` is the exit code."""
    result: dict[str, Any] = {"bundle": printable(path), "ok": False}
    try:
        verdict = verify_bundle(path)
        result |= {"graph": verdict.graph_id, "events": verdict.events, "decisions": verdict.decisions}
        if verdict.complaint is not None:
            raise verdict.complaint
    except ErgoCaptureError as error:
        return result | {"error": printable(error.message), "hint": error.hint, "exit": ExitCode.FAILED}
    result["notes"] = list(verdict.notes)
    if verdict.divergence is None:
        return result | {"ok": True, "exit": ExitCode.OK}
    return result | {"divergence": _plain(verdict.divergence), "exit": ExitCode.DIVERGED}


def _plain(divergence: Divergence) -> dict[str, Any]:
    return {
        "index": divergence.index,
        "event_id": divergence.event_id,
        "field": divergence.field,
        "captured": to_builtins(divergence.captured),
        "replayed": to_builtins(divergence.replayed),
    }
