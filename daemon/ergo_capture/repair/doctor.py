"""Diagnose a bundle, a segment, a journal or a state directory, without writing anything.

An *error* is damage: acknowledged data is missing or changed. A *warning* is a defect that a start repairs, or that the
operator should examine; a *note* is any other finding. Salvage is run without a destination, to report how much
``recover`` would keep.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from hashlib import sha256
from pathlib import Path

import msgspec

from ergo_capture.bundle.manifest import ManifestError, RestFile, read_manifest
from ergo_capture.bundle.names import (
    BUNDLE_SUFFIX,
    COMPRESSED_SUFFIX,
    INDEX_SUFFIX,
    MANIFEST_SUFFIX,
    REST_SUFFIX,
    SEAL_SUFFIX,
    TOMBSTONES,
    VERIFIED_SUFFIX,
    bundle_stem,
    manifest_path,
    other_form,
    rest_path,
)
from ergo_capture.bundle.proof import compare_with_manifest
from ergo_capture.bundle.reader.opening import list_files
from ergo_capture.bundle.receipt import read_receipt, receipts_in, stem_of_receipt
from ergo_capture.bundle.sequence import PRUNING_SUFFIX
from ergo_capture.bundle.verify import verify_bundle
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.scan import scan
from ergo_capture.journal.scan_report import ScanReport, Verdict
from ergo_capture.journal.segment import is_torn_copy, is_unfinished, segment_path, sequence_of
from ergo_capture.repair.damaged_bundle import salvage_bundle
from ergo_capture.repair.directory import kind_of_directory
from ergo_capture.repair.journal_salvage import SalvagedPart, salvage_journal
from ergo_capture.repair.quarantine import NOTE, SALVAGED, SETTLED, saved_journals
from ergo_capture.storage import RealStorage
from ergo_capture.units import counted


class Severity(Enum):
    """The severity of a finding."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Finding(msgspec.Struct, frozen=True):
    """A defect, or another fact that the operator should know."""

    severity: Severity
    path: str
    #: Offset in the file, in bytes; None if it concerns the whole file.
    offset: int | None
    message: str


class Diagnosis(msgspec.Struct):
    """The findings for one path."""

    path: str
    #: ``bundle``, ``segment``, ``journal``, ``state directory``, or ``bundles`` for another directory that holds some.
    kind: str
    findings: list[Finding]
    #: Sentences on the content, and on how much of it ``recover`` would keep.
    keeps: list[str]
    #: How many of the errors say only that something could not be read.
    unread: int = 0

    @property
    def sound(self) -> bool:
        """Whether there are no errors; warnings are allowed."""
        return all(finding.severity is not Severity.ERROR for finding in self.findings)


def diagnose(path: Path, *, on_bundle: Callable[[Path], None] = lambda _path: None) -> Diagnosis:
    """Examine a bundle, a segment, a journal, a state directory or a directory of bundles.

    Args:
        path: the file or directory.
        on_bundle: called with each bundle of a directory before it is examined.

    Raises:
        ErgoCaptureError: the path does not exist, cannot be read, or is a directory of another kind.
    """
    found = _Examination(on_bundle)
    if path.is_dir():
        try:
            kind = kind_of_directory(path)
        except ErgoCaptureError:
            if not any(map(_is_bundle, list_files(path))):
                raise
            kind = "bundles"
        if kind == "journal":
            found.examine_journal(path)
        elif kind == "bundles":
            found.examine_bundles(path)
        else:
            found.examine_state(path)
    elif sequence_of(path.name) is not None:
        kind = "segment"
        found.examine_journal(path.parent, _OneSegment(path.name))
    else:
        kind = "bundle"
        found.examine_bundle(path)
    return Diagnosis(str(path), kind, found.findings, found.keeps, found.unread)


class _OneSegment(RealStorage):
    """A filesystem on which one segment of a directory is the only file."""

    def __init__(self, name: str) -> None:
        self._name = name

    def list(self, path: Path) -> list[str]:
        return [name for name in super().list(path) if name == self._name]


def _left_over(bundle: Path) -> int:
    """Return the number of left-over events in a bundle's manifest."""
    try:
        manifest = read_manifest(manifest_path(bundle))
    except (ManifestError, OSError):
        return 0
    return 0 if manifest.left_over is None else manifest.left_over.count


def _is_bundle(path: Path) -> bool:
    """Return whether a file has a bundle's name."""
    return path.name.removesuffix(COMPRESSED_SUFFIX).endswith(BUNDLE_SUFFIX)


def _is_there(bundle: Path) -> bool:
    """Return whether a bundle is there, compressed or not."""
    return bundle.exists() or other_form(bundle).exists()


def _may_grow(manifest: Path) -> bool:
    """Return whether a manifest is that of a snapshot."""
    try:
        return read_manifest(manifest).may_grow
    except (ManifestError, OSError):
        return False


def _stem_of_side_file(path: Path) -> str | None:
    """Return the name of the bundle of an index, a seal, a verification or a receipt; None for another file."""
    for suffix in (INDEX_SUFFIX, SEAL_SUFFIX, VERIFIED_SUFFIX):
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return stem_of_receipt(path.name)


class _Examination:
    def __init__(self, on_bundle: Callable[[Path], None]) -> None:
        self.findings: list[Finding] = []
        self.keeps: list[str] = []
        self.unread = 0
        self._on_bundle = on_bundle
        #: The receipts in each directory that was listed.
        self._receipts: dict[Path, dict[str, list[Path]]] = {}

    def _add(self, severity: Severity, path: Path, message: str, offset: int | None = None) -> None:
        self.findings.append(Finding(severity, str(path), offset, message))

    # --- a state directory ---

    def examine_state(self, state: Path) -> None:
        journal, bundles = state / "journal", state / "bundles"
        if journal.is_dir():
            self.examine_journal(journal)
        else:
            self._add(Severity.WARNING, journal, "there is no journal")
        self._examine_saved(state)
        self.examine_bundles(bundles)

    def examine_bundles(self, bundles: Path) -> None:
        count = 0
        for path in list_files(bundles) if bundles.is_dir() else ():
            if path.name.endswith(".tmp"):
                self._add(Severity.WARNING, path, "a temporary that was never finished; a start removes it")
            elif path.name.endswith(MANIFEST_SUFFIX):
                self._examine_manifest(path)
            elif path.name.endswith(MANIFEST_SUFFIX + PRUNING_SUFFIX):
                self._add(Severity.NOTE, path, "its bundle is being deleted; the next look of retention finishes it")
            elif path.name.endswith(REST_SUFFIX):
                # It belongs to the bundle with the manifest that counts its events.
                self._examine_rest(path)
            elif (stem := _stem_of_side_file(path)) is not None:
                # Where its bundle's manifest is there, the missing bundle is reported with that.
                bundle = path.with_name(stem + BUNDLE_SUFFIX)
                if not (_is_there(bundle) or manifest_path(bundle).exists()):
                    what = "a receipt" if stem_of_receipt(path.name) else "a side file"
                    self._add(Severity.NOTE, path, f"{what}, and its bundle is missing; it proves nothing")
            elif path == bundles / TOMBSTONES:
                continue
            elif path.exists() and not path.is_file():
                # Do not open it: a pipe would wait for a writer.
                self._add(Severity.WARNING, path, "neither a file nor a directory; left alone")
            elif _is_bundle(path):
                count += 1
                self._on_bundle(path)
                self._examine_bundle_of_state(path)
            elif path.is_symlink() and not path.exists():
                self._add(Severity.WARNING, path, "a link to a missing target: is its disk mounted?")
            else:
                self._add(Severity.NOTE, path, "not a file of ergo-capture; left alone")
        self.keeps.append(f"{counted(count, 'published bundle')}; recover leaves bundles where they are")

    def _examine_manifest(self, path: Path) -> None:
        """Report a manifest whose bundle is missing, and which stores have the bundle by their receipts."""
        bundle = path.with_name(path.name.removesuffix(MANIFEST_SUFFIX) + BUNDLE_SUFFIX)
        if _is_there(bundle):
            return
        stores = [receipt.target for file in self._receipts_of(bundle) if (receipt := read_receipt(file)) is not None]
        if stores:
            command = f"`ergo-capture bundles fetch {bundle_stem(bundle).partition('~')[0]}`"
            self._add(
                Severity.WARNING,
                path,
                f"its bundle is missing; by its receipt it is in {', '.join(stores)}: {command} brings it back",
            )
        else:
            # A snapshot is composed again from the journal.
            severity = Severity.WARNING if _may_grow(path) else Severity.ERROR
            self._add(severity, path, "its bundle is missing: put it back, or move its manifest to where it is")

    def _receipts_of(self, bundle: Path) -> list[Path]:
        if bundle.parent not in self._receipts:
            self._receipts[bundle.parent] = receipts_in(bundle.parent)
        return self._receipts[bundle.parent].get(bundle_stem(bundle), [])

    def _examine_rest(self, rest: Path) -> None:
        """Compare the file with left-over events with the manifest of its bundle."""
        try:
            manifest = read_manifest(rest.with_name(rest.name.removesuffix(REST_SUFFIX) + MANIFEST_SUFFIX))
            found = rest.read_bytes()
        except FileNotFoundError:
            self._add(Severity.WARNING, rest, "events that were left over, and the bundle's manifest is missing")
        except (ErgoCaptureError, OSError) as error:
            self._add(Severity.WARNING, rest, f"its manifest cannot be read: {error}")
        else:
            if manifest.rest != RestFile(len(found), sha256(found).hexdigest()):
                self._add(
                    Severity.ERROR,
                    rest,
                    "events that were left over: it is not the file that its bundle's manifest names",
                )

    def _examine_saved(self, state: Path) -> None:
        """Report the segments that were set aside beside the journal, and those that were settled."""
        hint = "`ergo-capture recover --settle` on the state directory salvages it"
        for saved in saved_journals(state):
            if saved.sessions is None:
                self._add(
                    Severity.ERROR, saved.directory, f"segments that were removed under a daemon, as saved; {hint}"
                )
            for session in saved.sessions or ():
                reason = f"session {session.session} is quarantined and set aside: {session.reason}; {hint}"
                self._add(Severity.ERROR, saved.directory, reason)
        for path in sorted(state.glob(f"{SETTLED}*")):
            self._add(
                Severity.NOTE, path, f"settled, with what could be salvaged in {SALVAGED}/; delete it when you like"
            )

    def _examine_bundle_of_state(self, bundle: Path) -> None:
        """Examine one of many bundles; keep its sentences, with its name, only if it has an error."""
        keeps, self.keeps = self.keeps, []
        before = len(self.findings)
        try:
            self.examine_bundle(bundle)
        except ErgoCaptureError as error:
            self._add(Severity.ERROR, bundle, error.message)
        if not manifest_path(bundle).exists():
            self._add(Severity.WARNING, bundle, "it has no manifest beside it")
        elif not rest_path(bundle).exists() and (left := _left_over(bundle)):
            self._add(
                Severity.ERROR, rest_path(bundle), f"the file is missing; it holds {counted(left, 'event')} left over"
            )
        wrong = any(finding.severity is Severity.ERROR for finding in self.findings[before:])
        self.keeps = keeps + ([f"{bundle}: {words}" for words in self.keeps] if wrong else [])

    # --- a bundle ---

    def examine_bundle(self, path: Path) -> None:
        try:
            verdict = verify_bundle(path)
        except ErgoCaptureError as error:
            if not path.is_file():
                raise
            problem: str | None = error.message
        else:
            problem = None if verdict.complaint is None else verdict.complaint.message
            if (found := verdict.divergence) is not None:
                problem = (
                    f"decision {found.index}, about event {found.event_id!r}, does not follow: field {found.field}"
                )
            for note in verdict.notes:
                self._add(Severity.WARNING, path, note)
            if verdict.ok:
                self.keeps.append(f"sound: {counted(verdict.events, 'event')} with their decisions")
        suspect = self._compare_with_manifest(path)
        if problem is None and not suspect:
            return
        try:
            saved = salvage_bundle(path, None)
        except ErgoCaptureError as error:
            if problem is not None:
                self._add(Severity.ERROR, path, problem)
            self.keeps.append(f"recover would keep nothing: {error.message}")
            return
        if problem is not None and not saved.counts.problems:
            self._add(Severity.ERROR, path, problem)
        # The problems of the salvage include this error, with its place.
        for each in saved.counts.problems:
            self._add(Severity.ERROR, path, each.reason, each.offset)
        for name in saved.lost:
            self._add(Severity.ERROR, path, f"its {name} is gone")
        self.keeps.append(f"recover would leave you with: {saved.counts.in_words()}")

    def _compare_with_manifest(self, bundle: Path) -> bool:
        """Compare a bundle with its manifest, and add the findings; return whether the bundle is not trusted."""
        try:
            found = compare_with_manifest(bundle)
        except OSError:
            # The verification has reported this error.
            return False
        if found is None:
            return False
        manifest = found.manifest
        if found.problem is None and manifest is not None and manifest.beside is not None:
            self._add(
                Severity.WARNING,
                bundle,
                f"it was published beside the finished bundle '{bundle.with_name(manifest.beside)}', which holds other "
                "events of the same part: its journal was older than that bundle, for example restored from a backup",
            )
        if found.problem is not None:
            self._add(Severity.ERROR, bundle if found.suspect == "bundle" else found.path, found.in_words)
        return found.suspect == "bundle"

    # --- a journal ---

    def examine_journal(self, directory: Path, storage: RealStorage | None = None) -> None:
        storage = storage or RealStorage()
        try:
            found = scan(directory, storage)
        except ErgoCaptureError as error:
            self.unread += 1
            self._add(Severity.ERROR, directory, error.message + (f" (try: {error.hint})" if error.hint else ""))
            self.keeps.append("recover would keep nothing: the journal cannot be read")
            return
        self._add_scan(directory, found)
        parts = salvage_journal(directory, found, storage, None)
        for part in parts:
            self._add_part(directory, part)
        published = sum(part.counts is None for part in parts)
        self.keeps.append(
            f"{counted(len(found.segments), 'segment')}, {counted(found.frames, 'frame')}, {counted(found.bytes, 'byte')}; "
            f"parts of sessions: {published} published, {len(parts) - published} not yet"
        )

    def _add_scan(self, directory: Path, found: ScanReport) -> None:
        for damage in found.damage:
            numbers = ", ".join(map(str, damage.sessions))
            whose = f"concerns session numbers {numbers}" if numbers else "concerns no session that is known"
            # Damage that is set aside is reported with its quarantine until it is settled.
            aside = bool(numbers) and all(found.sessions[number].aside for number in damage.sessions)
            self._add(
                Severity.NOTE if aside else Severity.ERROR,
                segment_path(directory, damage.segment),
                f"{damage.reason} ({counted(damage.length, 'byte')}); {whose}{', which is set aside' if aside else ''}",
                damage.offset,
            )
        if found.torn is not None:
            tail = found.torn
            self._add(
                Severity.WARNING,
                segment_path(directory, tail.segment),
                f"torn: {counted(tail.length, 'byte')} of a batch that was never synced, {counted(tail.frames, 'frame')} of "
                "it whole; nothing there was acknowledged. A start cuts it off and keeps a copy. If a daemon is "
                "running, it may be what is being written",
                tail.offset,
            )
        if found.empty is not None:
            self._add(Severity.NOTE, segment_path(directory, found.empty), "preallocated, and never written to")
        for name in found.foreign:
            if name in (NOTE, SALVAGED):
                continue
            self._add(Severity.WARNING, directory / name, "not a file of ergo-capture; left alone")
        for path in sorted(directory.iterdir()):
            if is_unfinished(path.name):
                self._add(Severity.NOTE, path, "a segment whose creation was interrupted; a start removes it")
            elif is_torn_copy(path.name):
                self._add(Severity.NOTE, path, "bytes that an earlier start cut off; nothing of them was acknowledged")
        if found.segments and found.ending is not Verdict.SEALED:
            newest = segment_path(directory, found.segments[-1])
            self._add(Severity.NOTE, newest, "not closed in order: a daemon is running, or was killed")

    def _add_part(self, directory: Path, part: SalvagedPart) -> None:
        counts = part.counts
        name = f"session {part.session}" + (f", part {part.part}" if part.part > 1 else "")
        if counts is None:
            if part.bundle is not None and not Path(part.bundle).is_file():
                self._add(Severity.NOTE, directory, f"{name}: its bundle was moved from {part.bundle}")
            return
        if part.lossy:
            for problem in counts.problems:
                self._add(Severity.ERROR, directory, f"{name}: {problem.reason}", problem.offset)
        self.keeps.append(
            f"{name} of graph {part.graph} ({part.ended}): recover would leave you with: {counts.in_words()}"
        )
