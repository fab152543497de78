"""Verify a run, and return the verdict as JSON types, for ``verify``, ``replay`` and ``demo``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from ergo_capture.bundle.proof import Comparison, compare_with_manifest
from ergo_capture.bundle.reader.opening import unreadable
from ergo_capture.bundle.reader.stream import RecordStream
from ergo_capture.bundle.verify import verify_stream
from ergo_capture.cli.support.bundle_files import manifest_beside
from ergo_capture.cli.support.captures import Capture
from ergo_capture.cli.support.command import PATH, flag
from ergo_capture.cli.support.driver_stream import part_of
from ergo_capture.cli.support.output import printable
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.kernel.explanation import to_builtins
from ergo_capture.kernel.replay import Divergence, check_provenance
from ergo_capture.units import counted

if TYPE_CHECKING:
    from ergo_capture.adapter import Adapter
    from ergo_capture.bundle.adapted import Adapted, Beginning

adapter_option: Final = click.option(
    "--adapter",
    type=PATH,
    metavar="FILE",
    help="The graph's adapter: check payloads, effects and the values of the context store against it.",
)
no_manifest_flag: Final = flag("--no-manifest", help="Check the bundle alone, without the manifest beside it.")

_HINTS: Final = {
    "bundle": "take the bundle from a backup; --no-manifest checks the bundle alone",
    "manifest": "take the manifest from a backup, or move it away; --no-manifest checks the bundle alone",
}


NOT_MERGED: Final = (
    "payloads are as they were sent, before the run merged them; of the adapter only the provenance was compared"
)


class AdapterCheck:
    """Checks runs against an adapter; the context store at the end of a part is compared with the next part's.

    Args:
        path: the adapter's manifest.

    Raises:
        ErgoCaptureError: it cannot be read.
        AdapterError: it is refused, or the packages that adapters need are not installed.
    """

    def __init__(self, path: Path) -> None:
        self._name = printable(path)
        try:
            self._text = path.read_bytes()
        except OSError as error:
            raise ErgoCaptureError(
                f"read adapter '{self._name}': {error.strerror or error}",
                op="read adapter",
                path=path,
                hint="name the adapter's manifest, a YAML file",
            ) from error
        #: The context store at the end of each part, by session and number.
        self._left: dict[tuple[str, int], bytes] = {}
        self.adapter  # noqa: B018 - a bad adapter is refused before a run is read

    @property
    def adapter(self) -> Adapter:
        """The adapter."""
        return _load(self._text, self._name)

    def check(self, run: Capture, stream: RecordStream, *, with_manifest: bool = True) -> Adapted | None:
        """Check a run; raise as ``check_adapted`` does.

        For a run that was decided elsewhere only the provenance is checked, because its payloads are as they were sent.
        """
        from ergo_capture.bundle.adapted import check_adapted  # noqa: PLC0415 - needs optional packages

        if run.decided_by:
            check_provenance(stream, self.adapter.provenance, stream.runtime_provenance)
            return None
        session, part, beginning = self._beginning(run, with_manifest=with_manifest)
        adapted = check_adapted(stream, self.adapter, beginning, only_decided=run.is_open)
        if adapted.store is not None:
            self._left[session, part] = adapted.store
        return adapted

    def _beginning(self, run: Capture, *, with_manifest: bool) -> tuple[str, int, Beginning]:
        from ergo_capture.bundle.adapted import Beginning  # noqa: PLC0415 - as above

        session, (part, _) = run.session, part_of(run)
        manifest = manifest_beside(run.bundle) if run.bundle is not None and with_manifest else None
        kinds: Iterator[str | None] | None = None
        merged, store, ended_by = None, b"{}" if part == 1 else None, None
        if run.part is not None:
            kinds = run.part.semantic_kinds()
            if run.part.description.contract is not None:
                store = msgspec.json.encode(run.part.store or {})
        elif manifest is not None:
            session, part, merged = manifest.session, manifest.part, manifest.merged
            column = manifest.semantic_kinds
            kinds = None if column is None else column.of(manifest.events)
            if manifest.store is not None or merged is not None:
                store = msgspec.json.encode(manifest.store or {})
            ended_by = None if manifest.interruption is None else manifest.interruption.reason
        return session, part, Beginning(store, self._left.get((session, part - 1)), kinds, merged, ended_by)


@lru_cache(1)
def _load(text: bytes, name: str) -> Adapter:
    from ergo_capture.adapter import load_adapter  # noqa: PLC0415 - needs optional packages

    return load_adapter(text, name=name)


def check(path: Path, *, with_manifest: bool = True) -> dict[str, Any]:
    """Verify a bundle as ``check_run`` does."""
    return check_run(Capture(str(path), path), with_manifest=with_manifest)


def check_run(
    run: Capture, *, with_manifest: bool = True, adapter: AdapterCheck | None = None, jobs: int = 1
) -> dict[str, Any]:
    """Verify a run and return its counts and the first problem; the item ``exit`` is the exit code.

    Args:
        run: a bundle, or a part of a session in a journal.
        with_manifest: whether a bundle is compared with the manifest beside it first.
        adapter: also checks it against its adapter; None for no such check.
        jobs: how many processes may read a large bundle.
    """
    result: dict[str, Any] = {"bundle": printable(run.name), "ok": False}
    compared = adapted = None
    try:
        compared = compare(run) if with_manifest else None
        result["manifest"] = None if compared is None else _manifest(compared)
        with run.open_any(guess=adapter is None) as stream:
            verdict = verify_stream(stream, only_decided=run.is_open, jobs=jobs)
            if adapter is not None and verdict.ok:
                adapted = adapter.check(run, stream, with_manifest=with_manifest)
        result |= {"graph": verdict.graph_id, "events": verdict.events, "decisions": verdict.decisions}
        if verdict.complaint is not None:
            raise verdict.complaint
    except ErgoCaptureError as error:
        result |= {"error": printable(error.message), "hint": error.hint, "exit": ExitCode.FAILED}
        if isinstance(error.__cause__, OSError):
            # Nothing is known of it.
            result["unread"] = True
    else:
        notes = [*verdict.notes, *(fates(run) if with_manifest else ())]
        result |= {"notes": notes, "details": list(verdict.details)}
        if verdict.divergence is not None:
            result |= {"divergence": _plain(verdict.divergence), "exit": ExitCode.DIVERGED}
        else:
            result |= {"ok": True, "exit": ExitCode.OK}
        if adapted is not None:
            result |= {"adapter": adapter_report(adapted)} | adapter_problem(adapted)
        elif adapter is not None and verdict.ok:
            result["notes"].append(NOT_MERGED)
    if compared is not None and compared.problem is not None:
        result |= {"ok": False, "by_itself": in_words(result), "exit": ExitCode.FAILED} | refusal(compared)
    return result


def fates(run: Capture) -> list[str]:
    """Return notes on the events of a session that its bundle does not hold, and on its interruption."""
    manifest = None if run.bundle is None else manifest_beside(run.bundle)
    if run.bundle is None or manifest is None:
        return []
    return [f"{name}: {words}" for name, words in manifest.fates]


def adapter_report(adapted: Adapted) -> dict[str, Any]:
    """Return the report of a check against an adapter, as JSON types."""
    return {
        "provenance": adapted.provenance,
        "events": adapted.events,
        "merged_events": adapted.merged_events,
        "kinds": "known" if adapted.by_kind else "unknown",
        "store": "known" if adapted.store_known else "unknown",
        "merged": "proved" if adapted.proved else "not proved",
        "problem": None if adapted.problem is None else msgspec.to_builtins(adapted.problem),
    }


def adapter_divergence(adapted: Adapted) -> Divergence | None:
    """Return the divergence of a payload from the derived one; None if the problem is another one."""
    problem = adapted.problem
    if problem is None or not problem.is_divergence:
        return None
    assert problem.index is not None
    assert problem.event_id is not None
    return Divergence(problem.index, problem.event_id, "payload", problem.payload, problem.expected)


def adapter_problem(adapted: Adapted) -> dict[str, Any]:
    """Return the items of a result that an adapter's problem replaces; empty if there is none."""
    problem = adapted.problem
    if problem is None:
        return {}
    if (divergence := adapter_divergence(adapted)) is not None:
        return {"ok": False, "divergence": _plain(divergence), "hint": problem.hint, "exit": ExitCode.DIVERGED}
    place = "" if problem.index is None else f"event {problem.index}, {problem.event_id!r}"
    place += f" at {problem.where}" if problem.where else ""
    message = f"{place}: {problem.message}" if place else problem.message
    return {"ok": False, "error": printable(message), "hint": problem.hint, "exit": ExitCode.FAILED}


def adapter_in_words(report: Mapping[str, Any]) -> str:
    """Return the report of a check against an adapter, as one line of text."""
    schema = "the schema of their kind" if report["kinds"] == "known" else "a schema, of which kind is not known"
    checked = (
        f"adapter: {counted(report['events'], 'payload')} canonical, by {schema}, without a missing key of the store"
    )
    held = f"{report['merged_events']:,} with values of the store"
    if report["merged"] == "proved":
        return f"{checked}; {held}, proved by the manifest"
    if report["store"] == "unknown":
        return f"{checked}; the store at the beginning is not known: name the earlier parts, too, in order"
    return f"{checked}; {held}, not proved: no manifest says `merged`"


def compare(run: Capture) -> Comparison | None:
    """Compare a run's bundle with the manifest beside it; return None if there is no bundle, or no manifest.

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
    """Return the result of a verification, as one line of text."""
    if "error" in result:
        return f"{'not read' if 'unread' in result else 'unsound'}: {result['error']}"
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
