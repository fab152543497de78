"""``ergo-capture report``: a run as one page of HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from ergo_capture.bundle.names import safe_name
from ergo_capture.cli.progress import ReadingBar, quiet_flag
from ergo_capture.cli.support.captures import Capture, capture_named, note_difference
from ergo_capture.cli.support.command import NAME, PATH, argument, command, config_option, state_option
from ergo_capture.cli.support.output import check_output, printable, size, write_out, write_whole
from ergo_capture.cli.support.verification import compare
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.report.page import report_page

#: Suffixes of bundles that ``.html`` replaces; the first that fits.
_SUFFIXES: Final = (".capture.json.zst", ".json.zst", ".capture.json", ".json")

#: Parents of paths such as ``/dev/stdin``, which have no place beside them.
_DEVICES: Final = {"/dev", "/proc"}


@command(
    examples=(
        "ergo-capture report run.capture.json -o run.html",
        "ergo-capture report 20261123T134500Z-1-9c4ef0aa -o run.html",
    )
)
@argument("capture", "A bundle file, or a session's id.", type=NAME)
@click.option(
    "--output",
    "-o",
    type=PATH,
    metavar="FILE",
    help="File of the page, or - for standard output. By default it is beside the bundle; for a session, in this directory.",
)
@state_option
@config_option
@quiet_flag
def report(capture: str, output: Path | None, state_dir: str, config: Path | None, *, quiet: bool) -> None:
    """Draw a run as one page of HTML that needs no network: the run over event time, and its decisions."""
    if Path(capture).is_dir() and capture:
        raise ErgoCaptureError(
            f"write report of '{capture}': it is a directory",
            op="write report",
            path=capture,
            hint="name one bundle; `ergo-capture bundles list` prints those there are",
        )
    run = capture_named(capture, state_dir, config)
    to_pipe = output is not None and str(output) == "-"
    destination = output or _default_for(capture, run)
    if not to_pipe:
        check_output(destination, "report", run.files)
    bar = ReadingBar(quiet=quiet)
    with bar.reading():
        compared = compare(run)
    note_difference(run.name, compared)
    manifest = None if compared is None or compared.suspect == "manifest" else compared.manifest
    with bar.reading(), run.open(only_to_show=True, is_compared=True) as stream:
        name = run.name if run.bundle is None else run.bundle.name
        page = report_page(stream, name, manifest, run.decided_by)
    if to_pipe:
        write_out(page)
        return
    write_whole(destination, page, "report")
    click.echo(f"{printable(str(destination))} ({size(len(page))})")


def _default_for(name: str, run: Capture) -> Path:
    if run.bundle is None or not Path(name).exists():
        # It was named by its session: the state directory belongs to the daemon.
        return Path(f"{safe_name(run.session)}.html")
    return _beside(run.bundle)


def _beside(bundle: Path) -> Path:
    if _DEVICES & set(map(str, bundle.parents)):
        raise ErgoCaptureError(
            f"write report of '{bundle}': it has no place beside it",
            op="write report",
            path=bundle,
            hint="name the page with -o, or - for standard output",
            exit_code=ExitCode.USAGE,
        )
    for suffix in _SUFFIXES:
        if bundle.name.endswith(suffix) and bundle.name != suffix:
            return bundle.with_name(f"{bundle.name.removesuffix(suffix)}.html")
    return bundle.with_name(f"{bundle.name}.html")
