"""``ergo-capture config check|show|default``.

Owns: their arguments and output.
Not here: the settings (``config.py``).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from ergo_capture import config as configuration
from ergo_capture.config.settings import GraphConfig, ProcessEngineConfig
from ergo_capture.units import counted

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
    from ergo_capture.config.permissions import loose_paths  # noqa: PLC0415
    from ergo_capture.server.factories import access_list, graphs_of  # noqa: PLC0415 - only here

    path = _named(file, config)
    loaded = configuration.load(path)
    graphs = graphs_of(loaded)
    access_list(loaded)
    doubts = [
        (str(loose), loose.hint)
        for loose in loose_paths(Path(loaded.state.directory), path or configuration.usual_file())
    ]
    for sentence, hint in doubts + [doubt for name, graph in loaded.graphs.items() for doubt in _doubts(name, graph)]:
        typer.echo(f"Warning: {sentence}", err=True)
        typer.echo(f"Try: {hint}", err=True)
    typer.echo(f"ok: {counted(len(graphs), 'graph')}, socket {loaded.socket.path}")
    return 0


def _doubts(name: str, graph: GraphConfig) -> Iterator[tuple[str, str]]:
    """What the daemon would start with, and hardly anybody means; each with what to do."""
    for one, other in (("max_per_window", "rate_window"), ("rate_window", "max_per_window")):
        if getattr(graph, one) is not None and getattr(graph, other) is None:
            yield f"graph '{name}': {one} alone limits nothing", f"set {other} too"
    if isinstance(graph.engine, ProcessEngineConfig) and shutil.which(graph.engine.command[0]) is None:
        yield (
            f"graph '{name}': there is no program '{graph.engine.command[0]}' to run as its engine",
            "check engine.command, and PATH as the daemon has it",
        )


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
