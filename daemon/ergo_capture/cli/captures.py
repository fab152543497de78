"""What a person names: bundles, a journal, a state directory, a session; as streams of events and decisions.

Owns: Capture, ``captures_in``, ``capture_named``, where a session is looked for.
Not here: bundle files only (``bundle_files.py``), reading (``bundle/reader/stream.py``, ``journal/session_stream.py``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from ergo_capture import config as configuration
from ergo_capture.bundle.names import COMPRESSED_SUFFIX, bundle_name, bundle_stem, safe_name
from ergo_capture.bundle.reader.stream import RecordStream, open_bundle
from ergo_capture.cli.bundle_files import bundles_below, bundles_in, refuse_empty
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.segment import sequence_of
from ergo_capture.journal.session_stream import PartStream, parts_in
from ergo_capture.repair.doctor import kind_of_directory
from ergo_capture.storage import RealStorage

StateOption = Annotated[
    str,
    typer.Option(
        "--state-dir", metavar="DIR", help="Where a session is looked for; by default the configured directory."
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration that says where; by default the usual one."),
]
WHAT: Final = "Bundles, directories of them, patterns, a journal, a state directory, or a session's id."


@dataclass(frozen=True, slots=True)
class Capture:
    """One run: a bundle's file, or a part of a session that is in a journal."""

    #: What it is called in output.
    name: str
    #: The bundle's file.
    bundle: Path | None = None
    part: PartStream | None = None

    @property
    def session(self) -> str:
        """The session it is of: as its journal or else its file's name has it."""
        if self.part is not None:
            return self.part.description.session
        assert self.bundle is not None
        # Why replaced: a file's name may be bytes that no text can hold.
        return os.fsencode(bundle_stem(self.bundle).partition("~")[0]).decode("utf-8", "replace")

    @contextmanager
    def open(self) -> Iterator[RecordStream]:
        """Its events and decisions.

        Raises:
            ErgoCaptureError: it cannot be read.
        """
        if self.part is not None:
            yield self.part
            return
        assert self.bundle is not None
        with open_bundle(self.bundle) as stream:
            yield stream


def captures_in(names: Iterable[str], state_dir: str = "", config: Path | None = None) -> list[Capture]:
    """Everything that the names stand for, each thing once.

    A journal stands for the sessions that it has from their beginning; a state directory for its bundles and the
    sessions that are in none yet. What is no path is looked for as a session in the state directory.

    Raises:
        ErgoCaptureError: a name stands for nothing.
        ConfigError: the configuration is wrong.
    """
    found: dict[str, Capture] = {}
    for name in names:
        found |= {capture.name: capture for capture in _captures(name, state_dir, config)}
    return list(found.values())


def capture_named(name: str, state_dir: str = "", config: Path | None = None) -> Capture:
    """The one run that a name stands for.

    Raises:
        ErgoCaptureError: it stands for none, or for several.
    """
    found = captures_in([name], state_dir, config)
    if len(found) == 1:
        return found[0]
    raise ErgoCaptureError(
        f"'{name}' stands for {len(found)} runs, and one is wanted",
        op="find capture",
        path=name,
        hint=_one_of(found),
    )


def _one_of(found: list[Capture]) -> str:
    """Why of the first three only: there may be thousands."""
    more = ", ..." if len(found) > 3 else ""
    sessions = [capture.part.description.session for capture in found[:3] if capture.part is not None]
    if len(sessions) == min(3, len(found)):
        # A journal's parts have no path of their own.
        return f"name one of its sessions, with --state-dir: {', '.join(dict.fromkeys(sessions))}{more}"
    return f"name one of them: {', '.join(capture.name for capture in found[:3])}{more}"


def journal_and_session(name: str, state_dir: str = "", config: Path | None = None) -> tuple[Path, str]:
    """The journal to follow, and the session in it: empty for all of them.

    Raises:
        ErgoCaptureError: there is no such journal.
    """
    refuse_empty(name)
    path = Path(name)
    if path.is_dir():
        journal = path if kind_of_directory(path) == "journal" else path / "journal"
        return journal, ""
    if path.exists():
        raise ErgoCaptureError(
            f"follow '{name}': that is a file, and only a journal goes on",
            op="follow",
            path=name,
            hint="name a session, a state directory, or its journal",
        )
    state = _state(state_dir, config)
    if not (state / "journal").is_dir():
        raise _nothing(name, state)
    return state / "journal", name


def _captures(name: str, state_dir: str, config: Path | None) -> list[Capture]:
    refuse_empty(name)
    path = Path(name)
    if path.is_dir():
        return _in_directory(path)
    if sequence_of(path.name) is not None and path.is_file():
        raise ErgoCaptureError(
            f"read '{name}': a segment of a journal is no whole session",
            op="find capture",
            path=name,
            hint=f"name the journal, '{path.parent}', or print the segment's frames with `ergo-capture journal cat`",
        )
    if "/" in name or path.exists() or any(letter in name for letter in "*?["):
        return [Capture(str(bundle), bundle) for bundle in bundles_in([name])]
    state = _state(state_dir, config)
    found = _session(name, state)
    if not found:
        raise _nothing(name, state)
    return found


def _in_directory(path: Path) -> list[Capture]:
    try:
        kind = kind_of_directory(path)
    except ErgoCaptureError:
        kind = "directory of bundles"
    if kind == "journal":
        found = _parts(path)
    elif kind == "state directory":
        found = _in_state(path)
    else:
        return [Capture(str(bundle), bundle) for bundle in bundles_in([str(path)])]
    if not found:
        raise ErgoCaptureError(
            f"look at '{path}': the {kind} holds no session",
            op="find capture",
            path=path,
            hint="`ergo-capture send` makes one",
        )
    return found


def _bundles_below(directory: Path) -> list[Capture]:
    return [Capture(str(path), path) for path in bundles_below(directory)] if directory.is_dir() else []


def _parts(journal: Path, *, published: bool = True) -> list[Capture]:
    if not journal.is_dir():
        return []
    return [
        Capture(f"{journal}: {part.description.session}" + (f", part {part.part}" if part.part > 1 else ""), part=part)
        for part in parts_in(journal, RealStorage())
        if published or not part.published
    ]


def _in_state(state: Path) -> list[Capture]:
    """Every part of every session, once: from its bundle, or else from the journal.

    Why the journal first: a part that is published meanwhile is then in both, and not in neither. A bundle of a part
    that goes on is a snapshot, and older than what the journal has.
    """
    parts = _parts(state / "journal", published=False)
    newer = {
        bundle_name(capture.part.description.session, capture.part.part)
        for capture in parts
        if capture.part is not None and capture.part.damage is None
    }
    bundles = _bundles_below(state / "bundles")
    return [
        *(one for one in bundles if one.bundle is None or one.bundle.name.removesuffix(COMPRESSED_SUFFIX) not in newer),
        *parts,
    ]


def _session(session: str, state: Path) -> list[Capture]:
    """The parts of a session."""
    stem = safe_name(session)
    return [
        capture
        for capture in _in_state(state)
        if (capture.part is not None and capture.part.description.session == session)
        or (capture.bundle is not None and _is_of(bundle_stem(capture.bundle), stem))
    ]


def _is_of(name: str, stem: str) -> bool:
    rest = name.removeprefix(stem)
    return name.startswith(stem) and (not rest or (rest.startswith("~") and rest[1:].isdigit()))


def _state(state_dir: str, config: Path | None) -> Path:
    return Path(configuration.load(config, state=state_dir).state.directory)


def _nothing(name: str, state: Path) -> ErgoCaptureError:
    return ErgoCaptureError(
        f"find '{name}': there is neither a file of that name nor, in '{state}', a session",
        op="find capture",
        path=name,
        hint="name a path, or say with --state-dir where the session is; `ergo-capture status` lists those that are open",
    )
