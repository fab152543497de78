"""``ergo-capture report``.

Owns: its arguments, and where the page goes.
Not here: the page (``report/``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from ergo_capture.cli.figures import size
from ergo_capture.cli.info import manifest_beside
from ergo_capture.cli.output import write_out, write_whole
from ergo_capture.cli.verify import printable
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.report.page import report_page

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

#: What a page's name has in place of the first of these that its bundle's name ends in.
_SUFFIXES: Final = (".capture.json.zst", ".json.zst", ".capture.json", ".json")

#: Where what comes through a pipe has its name, as in ``/dev/stdin``.
_DEVICES: Final = {"/dev", "/proc"}


@app.command()
def report(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle file.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The page; - for standard output. By default beside the bundle, as .html.",
        ),
    ] = None,
) -> None:
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
        _refuse_what_is_no_page(bundle, destination)
    page = report_page(bundle, manifest_beside(bundle))
    if to_pipe:
        write_out(page)
        return
    write_whole(destination, page, "report")
    typer.echo(f"{printable(str(destination))} ({size(len(page))})")


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


def _refuse_what_is_no_page(bundle: Path, destination: Path) -> None:
    """Writing replaces what is there: never a capture, a directory or a device."""
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
