"""``ergo-capture config check|show|default``.

Owns: their arguments and output.
Not here: the settings (``config.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ergo_capture import config as configuration

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Check, show or print the configuration.",
)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration file; by default the usual one, if it is there."),
]

FileArgument = Annotated[Path | None, typer.Argument(metavar="FILE", help="The same as --config.", show_default=False)]


def _named(file: Path | None, config: Path | None) -> Path | None:
    """The file that was named, in whichever way."""
    if file is not None and config is not None:
        raise typer.BadParameter("name the file once: as FILE or with --config")
    return file or config


@app.command()
def check(file: FileArgument = None, config: ConfigOption = None) -> int:
    """Say whether the daemon would start with this configuration.

    Exit 78 where not; warnings do not count.
    """
    from ergo_capture.server.composition import admission_of, graphs_of  # noqa: PLC0415 - only here
    from ergo_capture.server.permissions import loose_paths  # noqa: PLC0415

    path = _named(file, config)
    loaded = configuration.load(path)
    graphs = graphs_of(loaded)
    admission_of(loaded)
    for loose in loose_paths(Path(loaded.state.directory), path or configuration.usual_file()):
        typer.echo(f"Warning: {loose}", err=True)
        typer.echo(f"Try: {loose.hint}", err=True)
    typer.echo(f"ok: {len(graphs)} graph{'s' * (len(graphs) != 1)}, socket {loaded.socket.path}")
    return 0


@app.command()
def show(file: FileArgument = None, config: ConfigOption = None) -> int:
    """Print the configuration in force, defaults included."""
    typer.echo(configuration.to_toml(configuration.load(_named(file, config))), nl=False)
    return 0


@app.command()
def default() -> int:
    """Print a configuration file with every setting at its default."""
    typer.echo(configuration.to_toml(configuration.Config(), comments=True), nl=False)
    return 0
