"""Captures as ``ergo-driver.v0`` streams, for ``feed`` and ``extract``: all parts of a session, and semantic kinds."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import click

from ergo_capture.bundle.names import bundle_stem
from ergo_capture.cli.support.bundle_files import manifest_beside
from ergo_capture.cli.support.captures import Capture, captures_in
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.records import ExternalEventRecord
from ergo_capture.kernel.replay import ReplayError, valid_event
from ergo_capture.units import counted


def parts_of_session(name: str, state_dir: str = "", config: Path | None = None) -> list[Capture]:
    """Return the run that a bundle's path stands for, or all parts of a session, in order.

    Raises:
        ErgoCaptureError: the name stands for no session, for several, or for one of which a part is missing.
    """
    found = captures_in([name], state_dir, config)
    sessions = {capture.session for capture in found}
    if len(sessions) != 1:
        raise ErgoCaptureError(
            f"'{name}' stands for {len(sessions)} sessions, and one is wanted",
            op="find session",
            path=name,
            hint="name a bundle file, or a session's id",
        )
    if len(found) == 1 and Path(name).is_file():
        return found
    parts: dict[int, Capture] = {}
    for capture in found:
        number, is_beside = part_of(capture)
        # Leave out a bundle beside a finished one: it holds other events. A part may be in the journal and in a bundle.
        if not is_beside:
            parts.setdefault(number, capture)
    for number in range(1, max(parts) + 1):
        if number not in parts:
            raise ErgoCaptureError(
                f"read session '{name}': part {number} of {max(parts)} is missing",
                op="find session",
                path=name,
                hint="its bundle was moved or deleted; name the bundles that are left one by one",
            )
    return [parts[number] for number in sorted(parts)]


def part_of(capture: Capture) -> tuple[int, bool]:
    """Return the number of a run's part, and whether it is a bundle beside a finished one of that part."""
    if capture.part is not None:
        return capture.part.part, False
    assert capture.bundle is not None
    _, *numbers = bundle_stem(capture.bundle).split("~")
    return int(numbers[0]) if numbers and numbers[0].isdecimal() else 1, len(numbers) > 1


def semantic_kinds(capture: Capture) -> Iterator[str | None]:
    """Return the semantic kinds of a run's events: from its journal, or from the manifest beside its bundle.

    A bundle itself does not hold them: without a manifest that has them, the iterator yields None without end.
    """
    if capture.part is not None:
        return capture.part.semantic_kinds()
    assert capture.bundle is not None
    manifest = manifest_beside(capture.bundle)
    found = None if manifest is None or manifest.semantic_kinds is None else manifest.semantic_kinds
    return repeat(None) if found is None or manifest is None else found.of(manifest.events) or repeat(None)


def require_payload(event: ExternalEventRecord, op: str, capture: str) -> None:
    """Check the payload of an event that another program is to read; a damaged bundle may hold any bytes.

    Args:
        event: the event.
        op: the operation, for the error: ``feed``.
        capture: the name of the capture, for the error.

    Raises:
        ErgoCaptureError: the payload is not one JSON object.
    """
    try:
        valid_event(event)
    except ReplayError as error:
        raise ErgoCaptureError(
            f"{op} '{capture}': {error.message}", op=op, path=capture, hint="`ergo-capture verify` says what is damaged"
        ) from error


def note_without_kind(count: int, total: int) -> None:
    """Print on standard error that ``count`` of ``total`` events have no semantic kind, if any has none."""
    if count:
        click.echo(
            f"{count:,} of {counted(total, 'event')} without semantic_kind: none was sent, or there is no manifest "
            "beside the bundle that has it. `ergo run` with an adapter refuses such an event",
            err=True,
        )
