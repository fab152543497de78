"""The verdict on a run as JSON types, as ``verify`` prints it and ``replay`` and ``demo`` use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from ergo_capture.bundle.proof import Comparison, compare_with_manifest
from ergo_capture.bundle.reader.opening import unreadable
from ergo_capture.bundle.verify import verify_stream
from ergo_capture.cli.support.captures import Capture
from ergo_capture.cli.support.command import flag
from ergo_capture.cli.support.output import printable
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.kernel.explanation import to_builtins
from ergo_capture.kernel.replay import Divergence
from ergo_capture.units import counted

no_manifest_flag: Final = flag("--no-manifest", help="Look at the bundle alone, and not at the manifest beside it.")

_HINTS: Final = {
    "bundle": "take the bundle from a backup; --no-manifest looks at the bundle alone",
    "manifest": "take the manifest from a backup, or move it away; --no-manifest looks at the bundle alone",
}


def check(path: Path, *, with_manifest: bool = True) -> dict[str, Any]:
    """Verify a bundle as ``check_run`` does."""
    return check_run(Capture(str(path), path), with_manifest=with_manifest)


def check_run(run: Capture, *, with_manifest: bool = True) -> dict[str, Any]:
    """Verify a run and return its counts and the first problem; the item ``exit`` is the exit code.

    Args:
        run: a bundle, or a part of a session in a journal.
        with_manifest: whether a bundle is compared with the manifest beside it first.
    """
    result: dict[str, Any] = {"bundle": printable(run.name), "ok": False}
    compared = None
    try:
        compared = compare(run) if with_manifest else None
        result["manifest"] = None if compared is None else _manifest(compared)
        with run.open_any() as stream:
            verdict = verify_stream(stream, only_decided=run.is_open)
        result |= {"graph": verdict.graph_id, "events": verdict.events, "decisions": verdict.decisions}
        if verdict.complaint is not None:
            raise verdict.complaint
    except ErgoCaptureError as error:
        result |= {"error": printable(error.message), "hint": error.hint, "exit": ExitCode.FAILED}
    else:
        result |= {"notes": list(verdict.notes), "details": list(verdict.details)}
        if verdict.divergence is None:
            result |= {"ok": True, "exit": ExitCode.OK}
        else:
            result |= {"divergence": _plain(verdict.divergence), "exit": ExitCode.DIVERGED}
    if compared is not None and compared.problem is not None:
        result |= {"ok": False, "by_itself": in_words(result), "exit": ExitCode.FAILED} | refusal(compared)
    return result


def compare(run: Capture) -> Comparison | None:
    """Compare a run's bundle with the manifest beside it; None where there is no bundle, or no manifest.

    Raises:
        ErgoCaptureError: the bundle cannot be read.
    """
    if run.bundle is None:
        return None
    try:
        return compare_with_manifest(run.bundle)
    except OSError as error:
        raise unreadable(run.bundle, error) from error


def refusal(compared: Comparison) -> dict[str, Any]:
    """Return error and hint for a bundle and a manifest that do not belong together."""
    assert compared.suspect is not None
    return {"error": printable(compared.in_words), "hint": _HINTS[compared.suspect]}


def in_words(result: dict[str, Any]) -> str:
    """Return what a verification found of a run, as the first line for a person."""
    if "error" in result:
        return f"unsound: {result['error']}"
    if "divergence" in result:
        found = result["divergence"]
        return f"diverged at decision {found['index']}, event {found['event_id']!r}, field {found['field']}"
    counts = f"{counted(result['events'], 'event')}, {counted(result['decisions'], 'decision')}"
    agrees = ", as its manifest says" if (result.get("manifest") or {}).get("suspect", "") is None else ""
    return f"ok, {counts} derived again{agrees}"


def _manifest(compared: Comparison) -> dict[str, Any]:
    return {"path": printable(compared.path), "suspect": compared.suspect, "problem": compared.problem}


def _plain(divergence: Divergence) -> dict[str, Any]:
    return {
        "index": divergence.index,
        "event_id": divergence.event_id,
        "field": divergence.field,
        "captured": to_builtins(divergence.captured),
        "replayed": to_builtins(divergence.replayed),
    }
