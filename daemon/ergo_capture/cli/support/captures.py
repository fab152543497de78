"""Find the runs that a name on the command line stands for: bundles, a journal, a state directory or a session.

``Capture`` opens each of them as a stream of events and decisions. ``bundle_files.py`` finds bundle files only.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ergo_capture.bundle.names import COMPRESSED_SUFFIX, bundle_name, bundle_stem, safe_name
from ergo_capture.bundle.proof import Comparison, compare_with_manifest
from ergo_capture.bundle.reader.stream import BundleStream, RecordStream
from ergo_capture.cli.support.bundle_files import bundles_below, bundles_in, manifest_beside, refuse_empty
from ergo_capture.cli.support.output import is_unicode, printable
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.explanation import escaped
from ergo_capture.kernel.records import CAPTURE_FORMAT_VERSION
from ergo_capture.objects import SCHEMES

if TYPE_CHECKING:
    from ergo_capture.journal.session_stream import PartStream

#: Names with these suffixes are files, even if they do not exist.
_FILES: Final = (".json", COMPRESSED_SUFFIX)
#: Follows the session in the name of a bundle: the part, and the number of a bundle beside a finished one.
_PART: Final = re.compile(r"(~\d+){0,2}\.capture\.json(\.zst)?", re.ASCII)
#: The description of an argument that ``captures_in`` reads.
ANY_CAPTURE: Final = "Bundles, directories of bundles, patterns, a journal, a state directory, a session's id, or the URL of a shipped bundle."


@dataclass(frozen=True, slots=True)
class Capture:
    """One run: a bundle file, or a part of a session in a journal."""

    #: The name for output: a path, or a journal's path with the session.
    name: str
    #: The bundle file; None for a part in a journal.
    bundle: Path | None = None
    #: The part; None for a bundle file.
    part: PartStream | None = None

    @property
    def session(self) -> str:
        """The id of the run's session, from its journal or else from the name of its file."""
        if self.part is not None:
            return self.part.description.session
        assert self.bundle is not None
        return os.fsencode(bundle_stem(self.bundle).partition("~")[0]).decode("utf-8", "replace")

    @property
    def decided_by(self) -> str:
        """The maker of the run's decisions; empty for the graph's engine."""
        about = manifest_beside(self.bundle) if self.bundle is not None else self.part and self.part.description
        return about.decided_by if about else ""

    @property
    def files(self) -> list[Path]:
        """The files that are read, for ``check_output``, which knows segments of journals itself."""
        return [] if self.bundle is None else [self.bundle]

    @property
    def is_open(self) -> bool:
        """Whether the run goes on, so that events may have no decisions yet."""
        if self.part is None:
            return False
        from ergo_capture.journal.session_stream import OPEN  # noqa: PLC0415 - bundles need no journal

        return self.part.ended == OPEN

    @contextmanager
    def open(
        self, *, only_to_show: bool = False, by_index: bool = False, is_compared: bool = False
    ) -> Iterator[RecordStream]:
        """Open the run's events and decisions; print a note if a bundle has not the size that its manifest says.

        Args:
            only_to_show: whether to open a bundle of another format version too, and print a note.
            by_index: whether only a part of a bundle is wanted, so that the index beside it may be used.
            is_compared: whether the bundle was compared with its manifest already.

        Raises:
            ErgoCaptureError: it cannot be read, or is of another format version.
        """
        with self._by_index() if by_index else self.open_any() as stream:
            # A bundle that is read by its index has the size.
            if self.bundle is not None and isinstance(stream, BundleStream) and not is_compared:
                note_difference(self.name, compare_with_manifest(self.bundle, only_size=True))
            if self.bundle is not None and stream.capture_version != CAPTURE_FORMAT_VERSION:
                if not only_to_show:
                    raise _of_another_version(self.bundle, stream.capture_version)
                _note_version(self.bundle, stream.capture_version)
            yield stream

    @contextmanager
    def _by_index(self) -> Iterator[RecordStream]:
        """Open a bundle by the index beside it, if possible, and print afterwards how much of it was read."""
        from ergo_capture.bundle.reader.index import open_indexed  # noqa: PLC0415 - few commands read a part

        indexed = None if self.bundle is None else open_indexed(self.bundle)
        if indexed is None:
            with self.open_any() as stream:
                yield stream
            return
        with indexed:
            yield indexed
        click.echo(
            f"note: {indexed.bytes_read:,} of {indexed.size:,} bytes of '{printable(self.name)}' were read, by its "
            "index; the rest was not",
            err=True,
        )

    @contextmanager
    def open_any(self, *, guess: bool = False) -> Iterator[RecordStream]:
        """Open the run's events and decisions, of any format version.

        Args:
            guess: whether the ends of a bundle's lists may be guessed (``BundleStream``).

        Raises:
            ErgoCaptureError: it cannot be read.
        """
        if self.part is not None:
            yield self.part
            return
        assert self.bundle is not None
        with BundleStream(self.bundle, guess=guess) as stream:
            yield stream


def note_difference(name: str, compared: Comparison | None) -> None:
    """Print a note if a run's bundle and the manifest beside it do not belong together.

    Args:
        name: the run's name.
        compared: the comparison; None for a run without a bundle, or without a manifest.
    """
    if compared is not None and compared.problem is not None:
        click.echo(f"note: '{printable(name)}': {printable(compared.in_words)}", err=True)


def _note_version(bundle: Path, version: str) -> None:
    click.echo(
        f"note: '{printable(bundle)}' is of capture version '{escaped(version)}', and this release reads "
        f"'{CAPTURE_FORMAT_VERSION}': its records may mean something else than is shown",
        err=True,
    )


def _of_another_version(bundle: Path, version: str) -> ErgoCaptureError:
    return ErgoCaptureError(
        f"read capture bundle '{bundle}': it is of capture version '{escaped(version)}', and this release reads "
        f"'{CAPTURE_FORMAT_VERSION}'",
        op="read capture bundle",
        path=bundle,
        hint="use the release that wrote it; `ergo-capture info` and `ergo-capture cat` show the readable part of it",
    )


def captures_in(names: Iterable[str], state_dir: str = "", config: Path | None = None) -> list[Capture]:
    """Return the runs that names stand for, each once.

    A journal stands for its sessions that are complete from their beginning; a state directory for its bundles and the
    sessions that are in no bundle yet. A name that is not a path is looked up as a session in the state directory.

    Args:
        names: as given on the command line.
        state_dir: the state directory; by default the configured one.
        config: the configuration file; by default the usual one.

    Raises:
        ErgoCaptureError: a name stands for nothing.
        ConfigError: the configuration is wrong.
    """
    found: dict[str, Capture] = {}
    for name in names:
        found |= {capture.name: capture for capture in _captures(name, state_dir, config)}
    return list(found.values())


def files_and_sessions(names: Iterable[str], state_dir: str = "", config: Path | None = None) -> list[Capture]:
    """Return the runs that names stand for, each once; directories stand only for their bundle files.

    The arguments are those of ``captures_in``.

    Raises:
        ErgoCaptureError: a name stands for nothing.
        ConfigError: the configuration is wrong.
    """
    found: dict[str, Capture] = {}
    for name in names:
        if name.startswith(SCHEMES):
            found |= {capture.name: capture for capture in _of_store(name, config)}
            continue
        is_session = name and not _is_pattern(name) and not name.endswith(_FILES) and not Path(name).exists()
        captures = _captures(name, state_dir, config) if is_session else _of_files(bundles_in([name]))
        found |= {capture.name: capture for capture in captures}
    return list(found.values())


def capture_named(name: str, state_dir: str = "", config: Path | None = None) -> Capture:
    """Return the one run that a name stands for; the arguments are those of ``captures_in``.

    Raises:
        ErgoCaptureError: the name stands for no run, or for several.
    """
    found = captures_in([name], state_dir, config)
    if len(found) == 1:
        return found[0]
    raise ErgoCaptureError(
        f"'{name}' stands for {len(found)} runs, and one is wanted",
        op="find capture",
        path=name,
        hint=_choice_of(found),
    )


def _choice_of(found: list[Capture]) -> str:
    """Return a hint that names the first three of several runs."""
    more = ", ..." if len(found) > 3 else ""
    sessions = [capture.part.description.session for capture in found[:3] if capture.part is not None]
    if len(sessions) == min(3, len(found)):
        # The parts in a journal have no paths of their own.
        return f"name one of its sessions, with --state-dir: {', '.join(dict.fromkeys(sessions))}{more}"
    return f"name one of them: {', '.join(capture.name for capture in found[:3])}{more}"


def journal_and_session(name: str, state_dir: str = "", config: Path | None = None) -> tuple[Path, str]:
    """Return the journal to follow, and the id of the session in it; an empty id stands for all sessions.

    Raises:
        ErgoCaptureError: there is no such journal.
    """
    refuse_empty(name)
    path = Path(name)
    if path.is_dir():
        from ergo_capture.repair.directory import kind_of_directory  # noqa: PLC0415 - bundles need no journal

        journal = path if kind_of_directory(path) == "journal" else path / "journal"
        return journal, ""
    if path.exists():
        raise ErgoCaptureError(
            f"follow '{name}': it is a file, and only a journal can be followed",
            op="follow",
            path=name,
            hint="name a session, a state directory, or its journal",
        )
    state = _state(state_dir, config)
    if not is_unicode(name) or not (state / "journal").is_dir():
        raise _nothing(name, state)
    return state / "journal", name


def _captures(name: str, state_dir: str, config: Path | None) -> list[Capture]:
    refuse_empty(name)
    if name.startswith(SCHEMES):
        return _of_store(name, config)
    path = Path(name)
    if path.is_dir():
        return _in_directory(path)
    if not name.endswith(_FILES) and path.is_file() and _is_segment(path):
        raise ErgoCaptureError(
            f"read '{name}': a segment of a journal is not a whole session",
            op="find capture",
            path=name,
            hint=f"name the journal, '{path.parent}', or print the segment's frames with `ergo-capture journal cat`",
        )
    if path.exists() or _is_pattern(name):
        return _of_files(bundles_in([name]))
    state = _state(state_dir, config)
    # The name of a session is Unicode.
    found = _in_state(state, name) if is_unicode(name) else []
    if not found:
        raise _nothing(name, state)
    return found


def _is_segment(path: Path) -> bool:
    from ergo_capture.journal.segment import sequence_of  # noqa: PLC0415 - bundles need no journal

    return sequence_of(path.name) is not None


def _of_store(url: str, config: Path | None) -> list[Capture]:
    """Return the bundles that a URL of an object store names, as copies that last until the command ends."""
    from ergo_capture.config import load  # noqa: PLC0415 - only where a name is a URL
    from ergo_capture.objects.opening import open_store, target_of  # noqa: PLC0415
    from ergo_capture.ship.fetching import MAX_BUNDLES, bundles_at, fetch  # noqa: PLC0415

    target, key = target_of(url, load(config, client=True).ship.targets)
    store = open_store(target)
    keys = list(islice(bundles_at(store, key), MAX_BUNDLES + 1))
    if not keys or len(keys) > MAX_BUNDLES:
        how_many = f"more than {MAX_BUNDLES}" if keys else "none"
        raise ErgoCaptureError(
            f"find bundles: there are {how_many} at '{url}'",
            op="find bundles",
            path=url,
            hint="name a bundle's object, its manifest, or a prefix of them, such as URL/manifests/date=2026-11-28",
        )
    directory = Path(tempfile.mkdtemp(prefix="ergo-capture-"))
    click.get_current_context().call_on_close(lambda: shutil.rmtree(directory, ignore_errors=True))
    return [
        Capture(f"{store.url.rstrip('/')}/{found}", fetch(store, found, directory / str(number)))
        for number, found in enumerate(keys)
    ]


def _is_pattern(name: str) -> bool:
    """Return whether a name is a path or a pattern of paths, and not an id."""
    return any(letter in name for letter in "/*?[")


def _of_files(paths: Iterable[Path]) -> list[Capture]:
    return [Capture(str(path), path) for path in paths]


def _in_directory(path: Path) -> list[Capture]:
    from ergo_capture.repair.directory import kind_of_directory  # noqa: PLC0415 - bundles need no journal

    try:
        kind = kind_of_directory(path)
    except ErgoCaptureError:
        return _of_files(bundles_in([str(path)]))
    found = _parts(path) if kind == "journal" else _in_state(path)
    if not found:
        raise ErgoCaptureError(
            f"look at '{path}': the {kind} holds no session",
            op="find capture",
            path=path,
            hint="`ergo-capture send` creates one",
        )
    return found


def _parts(journal: Path, *, published: bool = True) -> list[Capture]:
    if not journal.is_dir():
        return []
    from ergo_capture.journal.session_stream import parts_in  # noqa: PLC0415 - bundles need no journal
    from ergo_capture.storage import RealStorage  # noqa: PLC0415

    return [
        Capture(f"{journal}: {part.description.session}" + (f", part {part.part}" if part.part > 1 else ""), part=part)
        for part in parts_in(journal, RealStorage())
        if published or not part.published
    ]


def _in_state(state: Path, session: str | None = None) -> list[Capture]:
    """Return every part of every session, or of one, once: from its bundle, or else from the journal.

    The journal is read first, so that a part that is published meanwhile is not missed. The bundle of an open part is a
    snapshot, and the journal is newer. A finished bundle is newer than the journal, which was restored from a backup or
    read before the bundle was published.
    """
    parts = [capture for capture in _parts(state / "journal", published=False) if session in (None, capture.session)]
    named = {_name_of(capture.part): capture for capture in parts if capture.part is not None}
    stem = "" if session is None else safe_name(session)

    def is_wanted(name: str) -> bool:
        return session is None or _is_part_of(name, stem)

    directory = state / "bundles"
    bundles, older = [], []
    for path in bundles_below(directory, is_wanted) if directory.is_dir() else ():
        capture = named.get(path.name.removesuffix(COMPRESSED_SUFFIX))
        if capture is None or capture.part is None or capture.part.damage is not None:
            bundles.append(path)
        elif _is_finished(path):
            bundles.append(path)
            older.append(capture)
    return [*_of_files(bundles), *(capture for capture in parts if capture not in older)]


def _name_of(part: PartStream) -> str:
    return bundle_name(part.description.session, part.part)


def _is_finished(bundle: Path) -> bool:
    manifest = manifest_beside(bundle)
    return manifest is not None and not manifest.may_grow


def _is_part_of(name: str, stem: str) -> bool:
    """Return whether a bundle file has the name of a part of the session whose names begin with ``stem``."""
    return name.startswith(stem) and _PART.fullmatch(name, len(stem)) is not None


def _state(state_dir: str, config: Path | None) -> Path:
    from ergo_capture.config import load  # noqa: PLC0415 - only where a name is not a path

    return Path(load(config, state=state_dir, client=True).state.directory)


def _nothing(name: str, state: Path) -> ErgoCaptureError:
    return ErgoCaptureError(
        f"find '{name}': there is neither a file of that name nor, in '{state}', a session",
        op="find capture",
        path=name,
        hint="name a path, or give the session's --state-dir; `ergo-capture status` lists open sessions",
    )
