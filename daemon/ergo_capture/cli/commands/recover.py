"""``ergo-capture recover``: write the provable part of a damaged capture to a new place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import msgspec

from ergo_capture.bundle.names import COMPRESSED_SUFFIX, manifest_path
from ergo_capture.bundle.placement import refusal_to_replace
from ergo_capture.cli.progress import ReadingBar, quiet_flag
from ergo_capture.cli.support.command import PATH, UNCHECKED_PATH, argument, command, flag, json_flag
from ergo_capture.cli.support.output import printable
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.journal.scan import scan
from ergo_capture.journal.segment import sequence_of
from ergo_capture.repair.damaged_bundle import SalvagedBundle, salvage_bundle
from ergo_capture.repair.directory import kind_of_directory
from ergo_capture.repair.journal_salvage import SalvagedPart, salvage_journal
from ergo_capture.repair.output import rest_path
from ergo_capture.repair.quarantine import saved_journals, take_out
from ergo_capture.repair.quarantine import settle as settle_sessions
from ergo_capture.repair.report import SalvageReport
from ergo_capture.storage import RealStorage, StorageError
from ergo_capture.units import counted


@command(
    examples=(
        "ergo-capture recover damaged.capture.json -o saved.capture.json",
        "ergo-capture recover /var/lib/ergo-capture -o /tmp/saved",
        "ergo-capture recover /var/lib/ergo-capture --settle",
    )
)
@argument("source", "A damaged bundle, or a journal or state directory.", type=UNCHECKED_PATH)
@click.option(
    "--output",
    "-o",
    type=PATH,
    metavar="DST",
    help="Bundle file to write; for a journal, a directory for the bundles.",
)
@flag("--settle", help="Salvage the quarantined sessions of a state directory into that directory.")
@click.option(
    "--session",
    "given_up",
    multiple=True,
    metavar="SESSION",
    help="With --settle: salvage and end this open session too, for example if its graph is gone; may be repeated.",
)
@flag("--force", help="Replace existing files.")
@click.option(
    "--adapter-provenance",
    default="",
    metavar="TEXT",
    help="The adapter's provenance, if the bundle's is lost; by default that of the manifest, or `lost`.",
)
@click.option("--runtime-provenance", default="", metavar="TEXT", help="The engine's provenance, likewise.")
@quiet_flag
@json_flag("bundle")
def recover(
    *,
    source: Path,
    output: Path | None,
    settle: bool,
    given_up: tuple[str, ...],
    force: bool,
    adapter_provenance: str,
    runtime_provenance: str,
    quiet: bool,
    as_json: bool,
) -> int:
    """Write the provable part of a damaged capture to a new place, and count what was lost; the source is only read.

    It keeps the events from the beginning as long as they lead to their recorded decisions. Other whole events are set
    aside in a scenario beside the bundle, for `simulate`. The written bundle is verified.

    With --settle it writes to `journal.settled-N/salvaged` in the state directory the provable part of quarantined
    sessions, and of segments that a daemon saved when its journal was removed. The daemon does not report them any more.

    Exit code 0 if everything was kept, 3 if something was lost, 1 if nothing could be salvaged.
    """
    if settle:
        if output is not None:
            raise _refusal("--settle writes into the state directory", "leave out -o")
        return _settle(source, given_up, as_json=as_json)
    if given_up:
        raise _refusal("--session is for --settle", "add --settle, or leave it out")
    if output is None:
        raise _refusal("it has nowhere to write", "name a bundle, or a directory for a journal, with -o")
    if str(output) == "-":
        raise _refusal("it writes files, and nothing to standard output", "name the bundle to write with -o")
    if source.is_dir():
        return _recover_journal(source, output, force=force, as_json=as_json)
    if sequence_of(source.name) is not None:
        raise ErgoCaptureError(
            f"recover '{source}': a segment cannot be recovered by itself",
            op="recover",
            path=source,
            hint=f"name its directory: '{source.parent}'",
            exit_code=ExitCode.USAGE,
        )
    if output.name.endswith(COMPRESSED_SUFFIX):
        raise _refusal(
            f"'{output}' would not be compressed", f"leave out {COMPRESSED_SUFFIX}, and compress it afterwards"
        )
    _check_file(source, output, force=force)
    with ReadingBar(quiet=quiet).reading():
        saved = salvage_bundle(
            source, output, adapter_provenance=adapter_provenance or None, runtime_provenance=runtime_provenance or None
        )
    _remove_stale(output, saved.counts)
    click.echo(_bundle_as_json(source, output, saved) if as_json else _bundle_in_words(output, saved))
    return int(ExitCode.OK if saved.whole else ExitCode.DATA_LOSS)


def _recover_journal(source: Path, output: Path, *, force: bool, as_json: bool) -> int:
    journal = source if kind_of_directory(source) == "journal" else source / "journal"
    _check_directory(source, output, force=force)
    storage = RealStorage()
    found = scan(journal, storage)
    outcome = ExitCode.DATA_LOSS if found.damage else ExitCode.OK

    def tell(part: SalvagedPart) -> None:
        nonlocal outcome
        if part.lossy:
            outcome = ExitCode.DATA_LOSS
        if part.counts is not None and part.bundle is not None:
            _remove_stale(Path(part.bundle), part.counts)
        click.echo(_part_as_json(part) if as_json else _part_in_words(part))

    parts = salvage_journal(journal, found, storage, output, on_part=tell)
    for saved in saved_journals(source) if journal != source else ():
        aside = scan(saved.directory, storage)
        numbers = None if saved.sessions is None else {session.number for session in saved.sessions}
        parts += salvage_journal(saved.directory, aside, storage, output, only=numbers, on_part=tell)
    if not as_json:
        torn = 0 if found.torn is None else found.torn.length
        click.echo(
            f"{source}: {len(parts)} parts of sessions, {len(found.damage)} damaged stretches, "
            f"{torn} bytes torn (never acknowledged)"
        )
    return int(outcome)


def _settle(state: Path, given_up: tuple[str, ...], *, as_json: bool) -> int:
    if kind_of_directory(state) != "state directory":
        raise _refusal(f"'{state}' is not a state directory", "name the directory that the journal is in")
    storage = RealStorage()
    _take_out(state, given_up, storage)
    outcome = ExitCode.OK

    def tell(part: SalvagedPart) -> None:
        nonlocal outcome
        if part.lossy:
            outcome = ExitCode.DATA_LOSS
        click.echo(_part_as_json(part) if as_json else _part_in_words(part))

    count = 0
    for saved in saved_journals(state):
        settled, parts = settle_sessions(state, saved, storage, tell)
        count += 1
        if not as_json:
            click.echo(f"{saved.directory.name}: settled as '{settled}', {counted(len(parts), 'part')} of sessions")
    if not count and not as_json:
        click.echo(f"{state}: there is nothing to settle")
    return int(outcome)


def _take_out(state: Path, given_up: tuple[str, ...], storage: RealStorage) -> None:
    """Take quarantined sessions, and those that are given up, out of the journal, if no daemon is running."""
    try:
        lock = storage.lock(state / "lock")
    except StorageError:
        if given_up:
            raise
        # The running daemon has set them aside.
        return
    with lock:
        take_out(state, given_up, storage)


def _check_file(source: Path, output: Path, *, force: bool) -> None:
    if not source.is_file():
        reason = "it is not a plain file" if source.exists() else "No such file or directory"
        raise ErgoCaptureError(
            f"recover '{source}': {reason}",
            op="recover",
            path=source,
            hint="name a bundle, a journal or a state directory",
        )
    if output.is_dir():
        raise _refusal(f"'{output}' is a directory", "name a file that is not there yet")
    for path in (output, rest_path(output)):
        if not os.path.lexists(path):
            continue
        if path.is_dir():
            raise _refusal(f"'{path}' is a directory", "name a file that is not there yet")
        if path.exists() and path.samefile(source):
            raise _refusal(f"'{path}' is the source itself", "the source is never written to; name another file")
        refused = refusal_to_replace(path, [source, manifest_path(source)])
        if refused is not None:
            raise _refusal(f"cannot write '{path}': {refused}", "name another file")
        if not force:
            raise _refusal(f"'{path}' is there already", "name another file, or replace it with --force")


def _check_directory(source: Path, output: Path, *, force: bool) -> None:
    inside, outside = output.resolve(), source.resolve()
    if inside == outside or outside in inside.parents or inside in outside.parents:
        raise _refusal(f"'{output}' and the source are inside each other", "name a directory elsewhere")
    if not os.path.lexists(output):
        return
    if not output.is_dir():
        raise _refusal(f"'{output}' is not a directory", "a journal may hold many sessions; name a directory")
    if any(output.iterdir()) and not force:
        raise _refusal(f"'{output}' is not empty", "name another directory, or write into it with --force")


def _refusal(reason: str, hint: str) -> ErgoCaptureError:
    return ErgoCaptureError(f"recover: {reason}", op="recover", hint=hint, exit_code=ExitCode.USAGE)


def _remove_stale(bundle: Path, counts: SalvageReport) -> None:
    """Delete the events that an earlier run set aside beside this bundle, which --force has replaced."""
    if not counts.aside:
        rest_path(bundle).unlink(missing_ok=True)


def _bundle_in_words(output: Path, saved: SalvagedBundle) -> str:
    lines = _counts_in_words(printable(str(output)), output, saved.counts)
    lines += [f"  {name} is gone; the bundle says 'lost' (--{name.replace('_', '-')} sets it)" for name in saved.lost]
    return "\n".join(lines)


def _part_in_words(part: SalvagedPart) -> str:
    name = f"session {part.session}, part {part.part}"
    if part.counts is None:
        return f"{name}: published as {part.bundle}"
    assert part.bundle is not None
    return "\n".join(_counts_in_words(f"{part.bundle}: {name}", Path(part.bundle), part.counts))


def _counts_in_words(name: str, bundle: Path, counts: SalvageReport) -> list[str]:
    lines = [f"{name}: {counts.in_words()}"]
    lines += [f"  it ends there because {counts.problems[0]}"] if counts.problems else []
    lines += [f"  set aside in {printable(str(rest_path(bundle)))}"] if counts.aside else []
    return lines


def _bundle_as_json(source: Path, output: Path, saved: SalvagedBundle) -> bytes:
    return msgspec.json.encode(
        {"source": printable(str(source)), "bundle": printable(str(output)), "whole": saved.whole, "lost": saved.lost}
        | _counts_as_json(output, saved.counts)
    )


def _part_as_json(part: SalvagedPart) -> bytes:
    plain: dict[str, Any] = {
        "session": part.session,
        "graph": part.graph,
        "part": part.part,
        "ended": part.ended,
        "bundle": part.bundle and printable(part.bundle),
        "whole": part.whole,
    }
    if part.counts is not None and part.bundle is not None:
        plain |= _counts_as_json(Path(part.bundle), part.counts)
    return msgspec.json.encode(plain)


def _counts_as_json(bundle: Path, counts: SalvageReport) -> dict[str, Any]:
    rest = printable(str(rest_path(bundle))) if counts.aside else None
    plain: dict[str, Any] = msgspec.to_builtins(counts)
    return {"rest": rest, "counts": plain}
