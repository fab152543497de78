"""Check seals on the command line."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

import click
import msgspec

from ergo_capture.bundle.names import TOMBSTONES, manifest_path, seal_path
from ergo_capture.cli.support.captures import Capture
from ergo_capture.cli.support.output import printable, without_controls
from ergo_capture.seal.chain import ChainReport, Finding, TrustedKeys, check_chain
from ergo_capture.seal.keeper import read_seal, read_tombstones, sealed_bundles
from ergo_capture.units import counted


def check_seals(names: Iterable[str], runs: Iterable[Capture], public: str, *, as_json: bool) -> bool:
    """Check the seals of bundles, and the chain of those below each directory; print the findings.

    Args:
        names: the names that the user gave.
        runs: the runs that these stand for.
        public: the public key.
        as_json: whether to print JSON.

    Returns:
        Whether there are no findings.

    Raises:
        ErgoCaptureError: the extra is not installed.
        OSError: the tombstones cannot be read.
    """
    is_right = True
    checked: set[Path] = set()
    runs = list(runs)
    parents = {run.bundle.parent.parent for run in runs if run.bundle is not None}
    for name in names:
        directory = _chain_directory(name, parents)
        if directory is None:
            continue
        checked.add(directory)
        report = check_chain(sealed_bundles(directory), read_tombstones(directory), public)
        is_right = is_right and report.is_right
        print_chain(printable(directory), report, as_json=as_json)
    for run in runs:
        if run.bundle is None or run.bundle.parent.parent in checked:
            continue
        finding = _check_one(run.bundle, public)
        is_right = is_right and finding is None
        if as_json:
            click.echo(msgspec.json.encode({"seal": run.name, "problem": finding}))
        else:
            click.echo(f"{without_controls(run.name)}: seal: {'ok' if finding is None else finding}")
    return is_right


def _chain_directory(name: str, parents: Container[Path]) -> Path | None:
    """Return the directory of all bundles that a name stands for: itself, or that of a state directory.

    Return None for a file, and for a directory whose bundles are not in directories of graphs: they have no chain.

    Args:
        name: the name that the user gave.
        parents: the directories whose directories hold bundles.
    """
    named = Path(name)
    return next(
        (path for path in (named, named / "bundles") if path in parents or (path / TOMBSTONES).exists()),
        None,
    )


def _check_one(bundle: Path, public: str) -> str | None:
    """Return what is wrong with one bundle's seal, in words; None for nothing."""
    seal = read_seal(seal_path(bundle))
    if seal is None:
        return "there is none that can be read"
    why = TrustedKeys(public, [seal]).distrust(seal)
    if why is not None:
        return f"not trusted: {why}"
    try:
        text = manifest_path(bundle).read_bytes()
    except OSError as error:
        return f"its manifest cannot be read: {error.strerror}"
    return (
        None
        if hashlib.sha256(text).hexdigest() == seal.manifest_sha256
        else "its manifest is not the one that was sealed"
    )


def print_chain(name: str, report: ChainReport, *, as_json: bool) -> None:
    """Print the report on a chain.

    Args:
        name: the directory, host or store that it is the chain of.
        report: the report.
        as_json: whether to print JSON.
    """
    if as_json:
        click.echo(
            msgspec.json.encode(
                {"seals": name, **report._asdict(), "findings": [each._asdict() for each in report.findings]}
            )
        )
        return
    for line in lines_of(report):
        click.echo(without_controls(f"{name}: seals: {printable(line)}"))


def lines_of(report: ChainReport) -> Iterator[str]:
    """Yield the lines of a chain's report."""
    for finding in report.findings:
        yield _in_words(finding)
    if report.first is None:
        yield "no bundle is sealed"
        return
    counts = f"{report.sealed:,} sealed, {report.pruned:,} pruned in order, number {report.first} to {report.last}"
    if report.findings:
        yield f"{counts}: {counted(len(report.findings), 'problem')}"
        return
    begin = "" if report.is_whole else "; earlier seals are missing"
    yield f"ok, {counts}: nothing was changed, left out or put in{begin}. Bundles after the last seal are not covered"


def _in_words(finding: Finding) -> str:
    place = f"{finding.name}: " if finding.name else ""
    return f"{finding.kind}: {place}{finding.message}"
