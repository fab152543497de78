"""``ergo-capture report``.

Owns: its arguments.
Not here: the page (``report_page.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ergo_capture.capture.atomic import create_parents, write_bytes_atomic
from ergo_capture.cli.report_page import report_page

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def report(
    bundle: Annotated[Path, typer.Argument(help="A bundle file.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page; by default beside the bundle.")
    ] = None,
) -> None:
    """Draw a bundle as one page of HTML that needs no network: the run over event time, and its decisions."""
    destination = output or bundle.with_name(f"{bundle.name.partition('.')[0]}.html")
    page = report_page(bundle)
    create_parents(destination)
    write_bytes_atomic(destination, page)
    typer.echo(f"{destination} ({len(page) / 1e6:.1f} MB)")
