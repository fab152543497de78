"""Says what is wrong with a bundle, a segment, a journal or a state directory; never writes.

*Errors* are damage: something that was acknowledged is not there as it was. *Warnings* are what a start mends by
itself or what somebody should look at; *notes* are the rest. What ``recover`` would keep is found out by doing what
it does, without a destination.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path

import msgspec

from ergo_capture.bundle.manifest import ManifestError, read_manifest_fields
from ergo_capture.bundle.names import BUNDLE_SUFFIX, COMPRESSED_SUFFIX, MANIFEST_SUFFIX, manifest_path
from ergo_capture.bundle.reader.opening import list_files
from ergo_capture.bundle.verify import verify_bundle
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.journal.scan import scan
from ergo_capture.journal.scan_report import ScanReport, Verdict
from ergo_capture.journal.segment import is_torn_copy, is_unfinished, segment_path, sequence_of
from ergo_capture.repair.damaged_bundle import salvage_bundle
from ergo_capture.repair.journal_salvage import SalvagedPart, salvage_journal, sha256_of
from ergo_capture.storage import RealStorage
from ergo_capture.units import counted


class Severity(Enum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Finding(msgspec.Struct, frozen=True):
    """One thing that was found."""

    severity: Severity
    path: str
    #: Byte of the file; None where it is about the whole of it.
    offset: int | None
    message: str


class Diagnosis(msgspec.Struct):
    """All that was found in one place."""

    path: str
    #: ``bundle``, ``segment``, ``journal`` or ``state directory``.
    kind: str
    findings: list[Finding]
    #: What is there, and what ``recover`` would keep of it, in sentences.
    keeps: list[str]

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged; warnings are allowed."""
        return all(finding.severity is not Severity.ERROR for finding in self.findings)


def diagnose(path: Path, *, on_bundle: Callable[[Path], None] = lambda _path: None) -> Diagnosis:
    """Look at whatever a path is.

    Raises:
        ErgoCaptureError: it is not there, cannot be read, or is none of ours.
    """
    doctor = _Doctor(on_bundle)
    if path.is_dir():
        kind = kind_of_directory(path)
        if kind == "journal":
            doctor.look_at_journal(path)
        else:
            doctor.look_at_state(path)
    elif sequence_of(path.name) is not None:
        kind = "segment"
        doctor.look_at_journal(path.parent, _OneSegment(path.name))
    else:
        kind = "bundle"
        doctor.look_at_bundle(path)
    return Diagnosis(str(path), kind, doctor.findings, doctor.keeps)


def kind_of_directory(path: Path) -> str:
    """``journal`` or ``state directory``.

    Raises:
        ErgoCaptureError: it is neither.
    """
    names = RealStorage().list(path)
    if path.resolve().name == "journal" or any(sequence_of(name) is not None or is_unfinished(name) for name in names):
        return "journal"
    if "journal" in names or "bundles" in names:
        return "state directory"
    raise ErgoCaptureError(
        f"look at '{path}': that is neither a state directory nor a journal",
        op="diagnose",
        path=path,
        hint="name a state directory, its journal directory, a segment, or a bundle",
    )


class _OneSegment(RealStorage):
    """Shows one segment of a directory only."""

    def __init__(self, name: str) -> None:
        self._name = name

    def list(self, path: Path) -> list[str]:
        return [name for name in super().list(path) if name == self._name]


class _Doctor:
    def __init__(self, on_bundle: Callable[[Path], None]) -> None:
        self.findings: list[Finding] = []
        self.keeps: list[str] = []
        self._on_bundle = on_bundle

    def _find(self, severity: Severity, path: Path, message: str, offset: int | None = None) -> None:
        self.findings.append(Finding(severity, str(path), offset, message))

    # --- a state directory ---

    def look_at_state(self, state: Path) -> None:
        journal, bundles = state / "journal", state / "bundles"
        if journal.is_dir():
            self.look_at_journal(journal)
        else:
            self._find(Severity.WARNING, journal, "there is no journal")
        count = 0
        for path in list_files(bundles) if bundles.is_dir() else ():
            if path.name.endswith(".tmp"):
                self._find(Severity.WARNING, path, "a temporary that was never finished; a start removes it")
            elif path.name.endswith(MANIFEST_SUFFIX):
                bundle = path.with_name(path.name.removesuffix(MANIFEST_SUFFIX) + BUNDLE_SUFFIX)
                if not bundle.exists() and not bundle.with_name(bundle.name + COMPRESSED_SUFFIX).exists():
                    self._find(Severity.WARNING, path, "the bundle that it is about is not beside it")
            elif path.exists() and not path.is_file():
                # Why not looked into: a pipe would be waited for for ever.
                self._find(Severity.WARNING, path, "neither a file nor a directory; left alone")
            elif path.name.removesuffix(COMPRESSED_SUFFIX).endswith(BUNDLE_SUFFIX):
                count += 1
                self._on_bundle(path)
                self._look_at_one_of(path)
            else:
                self._find(Severity.NOTE, path, "none of ours; left alone")
        self.keeps.append(f"{counted(count, 'published bundle')}; recover leaves bundles where they are")

    def _look_at_one_of(self, bundle: Path) -> None:
        """Why the names: there are many bundles, and only what is wrong with one is worth a line."""
        keeps, self.keeps = self.keeps, []
        before = len(self.findings)
        try:
            self.look_at_bundle(bundle)
        except ErgoCaptureError as error:
            self._find(Severity.ERROR, bundle, error.message)
        if not manifest_path(bundle).exists():
            self._find(Severity.WARNING, bundle, "it has no manifest beside it")
        wrong = any(finding.severity is Severity.ERROR for finding in self.findings[before:])
        self.keeps = keeps + ([f"{bundle}: {words}" for words in self.keeps] if wrong else [])

    # --- a bundle ---

    def look_at_bundle(self, path: Path) -> None:
        try:
            verdict = verify_bundle(path)
        except ErgoCaptureError as error:
            if not path.is_file():
                raise
            self._find(Severity.ERROR, path, error.message)
        else:
            if verdict.complaint is not None:
                self._find(Severity.ERROR, path, verdict.complaint.message)
            if (found := verdict.divergence) is not None:
                message = (
                    f"decision {found.index}, about event {found.event_id!r}, does not follow: field {found.field}"
                )
                self._find(Severity.ERROR, path, message)
            for note in verdict.notes:
                self._find(Severity.WARNING, path, note)
            if verdict.ok:
                self.keeps.append(f"sound: {counted(verdict.events, 'event')} with their decisions")
        self._compare_with_manifest(path)
        if not any(finding.path == str(path) and finding.severity is Severity.ERROR for finding in self.findings):
            return
        try:
            saved = salvage_bundle(path, None)
        except ErgoCaptureError as error:
            self.keeps.append(f"recover would keep nothing: {error.message}")
            return
        for problem in saved.counts.problems:
            self._find(Severity.ERROR, path, problem.reason, problem.offset)
        for name in saved.lost:
            self._find(Severity.ERROR, path, f"its {name} is gone")
        self.keeps.append(f"recover would leave you with: {saved.counts.in_words()}")

    def _compare_with_manifest(self, bundle: Path) -> None:
        manifest = manifest_path(bundle)
        if manifest == bundle or not manifest.is_file():
            return
        try:
            expected = read_manifest_fields(manifest).get("sha256")
        except (OSError, ManifestError) as error:
            self._find(Severity.WARNING, manifest, f"it cannot be read: {error}")
            return
        if expected is None:
            self._find(Severity.WARNING, manifest, "it does not say of which bytes it is (sha256)")
            return
        try:
            same = sha256_of(bundle) == expected
        except ErgoCaptureError:
            # That it cannot be read was found by whoever read it.
            return
        if not same:
            self._find(Severity.ERROR, bundle, "it is not the file that its manifest was written for (sha256)")

    # --- a journal ---

    def look_at_journal(self, directory: Path, storage: RealStorage | None = None) -> None:
        storage = storage or RealStorage()
        try:
            found = scan(directory, storage)
        except ErgoCaptureError as error:
            self._find(Severity.ERROR, directory, error.message)
            self.keeps.append("recover would keep nothing: the journal cannot be read")
            return
        self._tell_of_segments(directory, found)
        parts = salvage_journal(directory, found, storage, None)
        for part in parts:
            self._tell_of_part(directory, part)
        published = sum(part.counts is None for part in parts)
        self.keeps.append(
            f"{counted(len(found.segments), 'segment')}, {counted(found.frames, 'frame')}, {counted(found.bytes, 'byte')}; "
            f"parts of sessions: {published} published, {len(parts) - published} not yet"
        )

    def _tell_of_segments(self, directory: Path, found: ScanReport) -> None:
        for damage in found.damage:
            whose = f"; concerns session numbers {', '.join(map(str, damage.sessions))}" if damage.sessions else ""
            self._find(
                Severity.ERROR,
                segment_path(directory, damage.segment),
                f"{damage.reason} ({counted(damage.length, 'byte')}){whose}",
                damage.offset,
            )
        if found.torn is not None:
            tail = found.torn
            self._find(
                Severity.WARNING,
                segment_path(directory, tail.segment),
                f"torn: {counted(tail.length, 'byte')} of a batch that was never synced, {counted(tail.frames, 'frame')} of "
                "it whole; nothing there was acknowledged. A start cuts it off and keeps a copy. If a daemon is "
                "running, it may be what is being written",
                tail.offset,
            )
        if found.empty is not None:
            self._find(Severity.NOTE, segment_path(directory, found.empty), "made ahead of its time, never written to")
        for name in found.foreign:
            self._find(Severity.WARNING, directory / name, "none of ours; left alone")
        for path in sorted(directory.iterdir()):
            if is_unfinished(path.name):
                self._find(Severity.NOTE, path, "was being made; a start removes it")
            elif is_torn_copy(path.name):
                self._find(Severity.NOTE, path, "what an earlier start cut off; it was never acknowledged")
        if found.segments and found.ending is not Verdict.SEALED:
            newest = segment_path(directory, found.segments[-1])
            self._find(Severity.NOTE, newest, "not closed in order: a daemon is running, or was stopped by force")

    def _tell_of_part(self, directory: Path, part: SalvagedPart) -> None:
        counts = part.counts
        name = f"session {part.session}" + (f", part {part.part}" if part.part > 1 else "")
        if counts is None:
            if part.bundle is not None and not Path(part.bundle).is_file():
                self._find(Severity.NOTE, directory, f"{name}: its bundle was moved from {part.bundle}")
            return
        if part.lossy:
            for problem in counts.problems:
                self._find(Severity.ERROR, directory, f"{name}: {problem.reason}", problem.offset)
        self.keeps.append(
            f"{name} of graph {part.graph} ({part.ended}): recover would leave you with: {counts.in_words()}"
        )
