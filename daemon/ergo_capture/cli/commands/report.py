"""``ergo-capture report``: a run as one page of HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from ergo_capture.cli.support.bundle_files import manifest_beside
from ergo_capture.cli.support.command import PATH, argument, command
from ergo_capture.cli.support.output import printable, size, write_out, write_whole
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.report.page import report_page

#: Suffixes of bundles that ``.html`` replaces; the first that fits.
_SUFFIXES: Final = (".capture.json.zst", ".json.zst", ".capture.json", ".json")

#: Parents of paths such as ``/dev/stdin``, which have no place beside them.
_DEVICES: Final = {"/dev", "/proc"}


@command(examples=("ergo-capture report run.capture.json -o run.html",))
@argument("bundle", "A bundle file.", type=PATH)
@click.option(
    "--output",
    "-o",
    type=PATH,
    metavar="FILE",
    help="The page; - for standard output. By default beside the bundle, as .html.",
)
def report(bundle: Path, output: Path | None) -> None:
    """Draw a bundle as one page of HTML that needs no network: the run over event time, and its decisions."""
    if bundle.is_dir():
        raise ErgoCaptureError(
            f"write report of '{bundle}': it is a directory",
            op="write report",
            path=bundle,
            hint="name one bundle; `ergo-capture bundles list` prints those there are",
        )
    to_pipe = output is not None and str(output) == "-"
    destination = output or _beside(bundle)
    if not to_pipe:
        _refuse_to_replace(bundle, destination)
    page = report_page(bundle, manifest_beside(bundle))
    if to_pipe:
        write_out(page)
        return
    write_whole(destination, page, "report")
    click.echo(f"{printable(str(destination))} ({size(len(page))})")


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


def _refuse_to_replace(bundle: Path, destination: Path) -> None:
    """Raise if the page would replace the bundle, a directory or a device."""
    if not destination.exists():
        return
    if destination.is_file():
        if not (bundle.exists() and destination.samefile(bundle)):
            return
        what = "it is the bundle itself"
    else:
        what = "it is no ordinary file"
    raise ErgoCaptureError(
        f"write report '{destination}': {what}",
        op="write report",
        path=destination,
        hint="name another file with -o, or - for standard output",
        exit_code=ExitCode.USAGE,
    )
