"""``ergo-capture config``: check or show the configuration, print the default one."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ergo_capture import config as configuration
from ergo_capture.cli.support.command import PATH, Command, Group, argument, config_option
from ergo_capture.cli.support.output import print_error
from ergo_capture.config.graphs import GraphConfig, ProcessEngineConfig
from ergo_capture.config.settings import Config, RotationConfig
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.units import counted

if TYPE_CHECKING:
    from ergo_capture.server.session.graph import Graph

#: A NATS server on this machine.
_LOOPBACK: Final = re.compile(r"nats://(?:127\.|localhost\b|\[::1\])")

_file_argument: Final[Callable[[Callable[..., Any]], Callable[..., Any]]] = argument(
    "file", "The same as --config.", type=PATH, required=False
)


@click.group(cls=Group)
def config() -> None:
    """Check or show the configuration, print the default one."""


@config.command(cls=Command, examples=("ergo-capture config check capture.toml",))
@_file_argument
@config_option
def check(file: Path | None, config: Path | None) -> None:
    """Check that the daemon would start with this configuration.

    Every unknown setting and every invalid value is named. Warn of files that the installed systemd service cannot see,
    and of operations that it may not do. Exit code 78 if the daemon would not start; warnings do not count.
    """
    from ergo_capture.cli.support.service_view import (  # noqa: PLC0415
        SHIP_UNIT,
        service_view,
        service_warnings,
        ship_warnings,
    )
    from ergo_capture.config.permissions import loose_paths  # noqa: PLC0415
    from ergo_capture.server.factories import access_list, graphs_of  # noqa: PLC0415 - `show` needs no server

    path = _only_one(file, config)
    try:
        loaded = configuration.load(path)
    except configuration.ConfigError as error:
        *others, last = error, *error.others
        for each in others:
            print_error(each.message, each.hint)
        raise last from None
    graphs = graphs_of(loaded)
    access_list(loaded)
    warnings = list(_seal_warnings(loaded.seal.key))
    file = path or configuration.default_file()
    warnings += [(str(loose), loose.hint) for loose in loose_paths(Path(loaded.state.directory), file)]
    warnings += _rotation_warnings(loaded.rotation)
    for name, graph in loaded.graphs.items():
        warnings += _warnings(name, graph)
        pipeline = getattr(graph.engine, "pipeline", 1)
        why = f"effects may write {', '.join(graphs[name].writable)}" if graphs[name].writable else ""
        why = why or ("intents are sent in order" if graph.egress else "")
        if why and pipeline > 1:
            sentence = f"graph '{name}': {why}, so its episodes run one after the other"
            warnings.append((f"{sentence}: pipeline = {pipeline} counts as 1", "leave engine.pipeline out"))
        warnings += _egress_warnings(name, graph, graphs[name])
    warnings += _textfile_warnings(loaded.metrics.textfile)
    warnings += _textfile_warnings(loaded.ship.textfile)
    warnings += _shipping_warnings(loaded)
    warnings += _announce_warnings(loaded)
    view = service_view(file)
    if view is not None:
        warnings += service_warnings(loaded, view)
    ship_view = service_view(file, SHIP_UNIT) if loaded.ship.targets else None
    if ship_view is not None:
        warnings += ship_warnings(loaded, ship_view)
    for name, made in graphs.items():
        if made.binding is not None and made.binding.adapter is not None:
            writes = (
                f"effects write {', '.join(made.writable)}: pipeline 1" if made.writable else "effects write nothing"
            )
            click.echo(f"graph '{name}': {made.adapter_provenance}; {writes}")
    for sentence, hint in warnings:
        click.echo(f"Warning: {sentence}", err=True)
        click.echo(f"Try: {hint}", err=True)
    click.echo(f"ok: {counted(len(graphs), 'graph')}, socket {loaded.socket.path}")


@config.command(cls=Command, examples=("ergo-capture config show capture.toml",))
@_file_argument
@config_option
def show(file: Path | None, config: Path | None) -> None:
    """Print the configuration in force, including defaults."""
    click.echo(configuration.to_toml(configuration.load(_only_one(file, config))).encode(), nl=False)


@config.command(cls=Command, examples=("ergo-capture config default > capture.toml",))
def default() -> None:
    """Print a configuration file with every setting at its default."""
    click.echo(configuration.to_toml(configuration.Config(), comments=True).encode(), nl=False)


def _only_one(file: Path | None, config: Path | None) -> Path | None:
    """Return the file that was named as an argument or as an option."""
    if file is not None and config is not None:
        raise click.BadParameter("name the file once: as FILE or with --config")
    return file or config


def _rotation_warnings(rotation: RotationConfig) -> Iterator[tuple[str, str]]:
    """Yield the costs of a configuration without bounds on a session's parts, each with a hint."""
    if not rotation.max_events:
        other = rotation.max_bytes or rotation.max_age
        bound = "so that it ends by max_bytes or max_age only" if other else "so that it is one bundle"
        cost = (
            f"rotation.max_events = 0: a session's part may have any number of events, {bound}; its ids stay in memory "
            "(about 140 bytes each; beyond limits.user_ids_bytes it takes no more events), the journal keeps all of it, "
            "and after a kill the start takes about 10 s for each million of its events"
        )
        yield cost, "leave it out for 1,000,000, if your feeds may be long"
    if not rotation.max_journal_bytes:
        yield (
            "rotation.max_journal_bytes = 0: one idle session keeps all later segments of the journal",
            "leave it out for 2 GiB, or make sure that sessions end",
        )


def _warnings(name: str, graph: GraphConfig) -> Iterator[tuple[str, str]]:
    """Yield probable mistakes with which the daemon would start, each with a hint."""
    for one, other in (("max_per_window", "rate_window"), ("rate_window", "max_per_window")):
        if getattr(graph, one) is not None and getattr(graph, other) is None:
            yield f"graph '{name}': {one} alone limits nothing", f"set {other} too"
    if isinstance(graph.engine, ProcessEngineConfig):
        from ergo_capture.engine.compilers import compiler_problem  # noqa: PLC0415 - `show` needs none

        if shutil.which(graph.engine.command[0]) is None:
            yield (
                f"graph '{name}': there is no program '{graph.engine.command[0]}' to run as its engine",
                "check engine.command, and the daemon's PATH",
            )
        problem, _, hint = compiler_problem(graph.engine.command).partition("; ")
        if problem:
            yield f"graph '{name}': {problem}", hint


def _egress_warnings(name: str, graph: GraphConfig, made: Graph) -> Iterator[tuple[str, str]]:
    """Yield what is missing for sending the graph's intents, each with a hint."""
    for channel, table in graph.egress.items():
        if shutil.which(table.command[0]) is None:
            yield (
                f"graph '{name}': there is no program '{table.command[0]}' to run as its egress channel '{channel}'",
                f"check egress.{channel}.command, and the daemon's PATH",
            )
    adapter = None if made.binding is None else made.binding.adapter
    if adapter is None:
        return
    from ergo_capture.adapter.store import SET_CONTEXT  # noqa: PLC0415 - most graphs have no adapter

    routes = () if made.egress is None else made.egress.routes
    missing = [kind for kind in adapter.effects if kind != SET_CONTEXT and kind not in routes]
    if missing:
        yield (
            (
                f"graph '{name}': no egress channel takes intents of kind {', '.join(missing)}, which its adapter accepts: a "
                "run that emits one is interrupted"
            ),
            f"route each in [graphs.{name}.egress.NAME], unless the graph emits none",
        )


def _seal_warnings(key: str) -> Iterator[tuple[str, str]]:
    """Yield a warning if the key is a credential of systemd, which this process cannot read.

    Raises:
        ErgoCaptureError: the key can be read, or has a path, and the daemon could not use it.
    """
    if not key:
        return
    if Path(key).name == key and "CREDENTIALS_DIRECTORY" not in os.environ and not Path(key).exists():
        yield (
            f"seal.key = '{key}' is a name in $CREDENTIALS_DIRECTORY, which only the service sees: the key was not read",
            f"make sure that the unit has LoadCredential={key}:PATH",
        )
        return
    from ergo_capture.seal.keys import read_key  # noqa: PLC0415 - most configurations seal nothing

    read_key(key)


def _shipping_warnings(loaded: Config) -> Iterator[tuple[str, str]]:
    """Yield the costs of shipping with this configuration, each with a hint."""
    if not loaded.ship.targets:
        return
    if loaded.ship.textfile and loaded.ship.textfile == loaded.metrics.textfile:
        yield (
            f"ship.textfile and metrics.textfile are both '{loaded.ship.textfile}': the daemon and the shipper write over each other",
            "name two files",
        )
    for name, target in loaded.ship.targets.items():
        with suppress(OSError):
            if target.credentials and (mode := stat.S_IMODE(Path(target.credentials).stat().st_mode)) & 0o007:
                sentence = (
                    f"ship.targets.{name}.credentials: every user may read '{target.credentials}' (mode {mode:04o})"
                )
                yield sentence, f"chmod 600 {shlex.quote(target.credentials)}"
    if loaded.bundle.compress == "none":
        cost = "they take about ten times the bytes on the network and in the store"
        yield f'bundle.compress = "none", and bundles are shipped: {cost}', 'set bundle.compress = "zstd"'
    retention = loaded.retention
    graphs = [graph.retention for graph in loaded.graphs.values() if graph.retention is not None]
    deletes = [retention.max_age, retention.max_bytes, retention.max_bundles, retention.keep_free_bytes]
    deletes += [bound for own in graphs for bound in (own.max_age, own.max_bytes, own.max_bundles) if bound]
    if any(deletes) and not retention.shipped_to:
        names = ", ".join(f'"{name}"' for name in loaded.ship.targets)
        yield (
            "retention deletes bundles whether they are shipped or not",
            f"set retention.shipped_to = [{names}], or leave it so if the store need not have every bundle",
        )
    if any(not target.url.startswith("file:") for target in loaded.ship.targets.values()):
        from ergo_capture.objects.remote import import_obstore  # noqa: PLC0415 - most configurations ship nothing

        try:
            import_obstore()
        except ErgoCaptureError as error:
            yield error.message, str(error.hint)


def _announce_warnings(loaded: Config) -> Iterator[tuple[str, str]]:
    """Yield the reasons why shipped bundles cannot be announced, or not safely, each with a hint."""
    announce = loaded.ship.announce
    if not announce.servers:
        return
    if not loaded.ship.targets:
        yield "nothing is shipped, so nothing is announced", "write a table such as [ship.targets.archive]"
    clear = [server for server in announce.servers if server.startswith("nats:") and not _LOOPBACK.match(server)]
    if announce.credentials and clear:
        yield f"credentials go to {clear[0]} in the clear", "write tls:// in its place"
    from ergo_capture.ship.jetstream import import_nats  # noqa: PLC0415 - most configurations announce nothing

    try:
        import_nats()
    except ErgoCaptureError as error:
        yield error.message, str(error.hint)


def _textfile_warnings(path: str) -> Iterator[tuple[str, str]]:
    """Yield the reason why the metrics text file cannot be written, after trying with a temporary file beside it."""
    if not path:
        return
    from ergo_capture.storage.atomic import AtomicFile  # noqa: PLC0415 - most configurations have none
    from ergo_capture.storage.write_error import CaptureWriteError  # noqa: PLC0415

    try:
        AtomicFile(Path(path), what="metrics textfile").abort()
    except CaptureWriteError as error:
        yield error.message, f"{error.hint}; see `ergo-capture help metrics`"
