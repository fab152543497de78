"""``ergo-capture bundles``: list finished bundles, delete those that have expired, and fetch those that were shipped."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import msgspec

from ergo_capture import config as configuration
from ergo_capture.bundle.catalogue import Catalogue, StoredBundle
from ergo_capture.bundle.receipt import Receipts, place_of
from ergo_capture.bundle.retention import RetentionRules
from ergo_capture.cli.support.command import (
    NAME,
    PATH,
    Command,
    Group,
    argument,
    config_option,
    flag,
    json_flag,
    socket_option,
    state_option,
    store_option,
)
from ergo_capture.cli.support.output import printable, size
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.units import Duration, Size, counted

Quantity = TypeVar("Quantity", Duration, Size)

_graph_option: Final = click.option("--graph", metavar="GRAPH", help="Only the bundles of this graph.")


@click.group(cls=Group)
def bundles() -> None:
    """List finished bundles, delete those that have expired, and fetch those that were shipped."""


@bundles.command("list", cls=Command, examples=("ergo-capture bundles list --graph flights",))
@config_option
@argument("directory", "The same as --state-dir.", type=NAME, default="", metavar="[DIR]")
@state_option
@_graph_option
@json_flag("bundle")
def list_bundles(config: Path | None, directory: str, state_dir: str, graph: str | None, *, as_json: bool) -> None:
    """List the finished bundles, oldest first.

    It reads only the manifests. If targets are configured, it also shows which of them hold a bundle, by its receipts.
    """
    loaded = configuration.load(config, state=state_dir or directory, client=True)
    receipts = Receipts({name: place_of(target) for name, target in loaded.ship.targets.items()})
    bundles = Catalogue(Path(loaded.state.directory) / "bundles", whole=as_json).read()
    found = [(bundle, sorted(receipts.holders(bundle))) for bundle in bundles if graph in (None, bundle.graph)]
    if as_json:
        for bundle, holders in found:
            click.echo(msgspec.json.encode(_as_json(bundle) | {"shipped": holders}))
        return
    for line in _table(found, with_holders=bool(receipts.places)):
        click.echo(line)
    click.echo(_total(len(found), sum(bundle.size for bundle, _ in found)), err=True)


@bundles.command(cls=Command, examples=("ergo-capture bundles prune --max-age 30d --dry-run",))
@config_option
@state_option
@socket_option
@_graph_option
@click.option("--max-age", metavar="AGE", help="As retention.max_age, for every graph: 30d, 12h.")
@click.option("--max-bytes", metavar="SIZE", help="As retention.max_bytes, for every graph: 10GiB.")
@click.option(
    "--max-bundles",
    type=click.IntRange(min=0),
    metavar="N",
    help="As retention.max_bundles, for every graph.",
)
@click.option("--keep-free", metavar="SIZE", help="As retention.keep_free_bytes: 5GiB.")
@flag("--dry-run", help="Print what would be deleted, and delete nothing.")
@json_flag("bundle")
def prune(
    *,
    config: Path | None,
    state_dir: str,
    socket: str,
    graph: str | None,
    max_age: str | None,
    max_bytes: str | None,
    max_bundles: int | None,
    keep_free: str | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Delete finished bundles that exceed a bound.

    The bounds are those of the configuration; an option replaces its setting. The newest bundle of each graph is kept,
    and with retention.shipped_to also bundles that are not shipped. If bundles are sealed, the running daemon signs the
    tombstone of each. Before a bundle is deleted, it is read whole and compared with its manifest. One that differs is
    kept and named, and the exit code is 3. What belongs to a bundle, such as its manifest, is deleted with it.
    """
    from ergo_capture.server.factories import retention_rules  # noqa: PLC0415 - `list` needs no server
    from ergo_capture.server.ops.pruner import Pruner  # noqa: PLC0415
    from ergo_capture.storage import RealStorage  # noqa: PLC0415

    loaded = configuration.load(config, socket=socket, state=state_dir, client=True)
    rules = _with_options(retention_rules(loaded), max_age, max_bytes, max_bundles, keep_free)
    if not rules.are_set:
        raise ErgoCaptureError(
            "prune bundles: no bound says which bundles have expired",
            op="prune bundles",
            hint="give --max-age, --max-bytes, --max-bundles or --keep-free, or set them under [retention]",
            exit_code=ExitCode.USAGE,
        )
    count, freed, kept = 0, 0, 0
    pruner = Pruner(Path(loaded.state.directory), RealStorage())
    pruner.catalogue = Catalogue(pruner.catalogue.directory, whole=as_json)
    if loaded.seal.key and not dry_run:
        pruner.bury = _bury_with(Path(loaded.control.path))
    for step in pruner.prune(rules, graph=graph, dry_run=dry_run):
        bundle = step.choice.bundle
        if step.kept is None:
            count, freed = count + 1, freed + bundle.size
        else:
            kept += 1
        if as_json:
            outcome = {
                "pruned": step.kept is None and not dry_run,
                "reason": step.choice.reason,
                "kept": step.kept,
                "given_up": step.choice.is_given_up,
            }
            click.echo(msgspec.json.encode(_as_json(bundle) | outcome))
        elif step.kept is None:
            what = f"{'would prune' if dry_run else 'pruned'} {printable(bundle.path)} ({size(bundle.size)})"
            click.echo(f"{what}: {step.choice.reason}{', not shipped' if step.choice.is_given_up else ''}")
        else:
            click.echo(f"kept {printable(bundle.path)}: {step.kept}")
    click.echo(f"{'would prune ' if dry_run else 'pruned '}{_total(count, freed)}", err=True)
    if pruner.unshipped:
        click.echo(
            f"{counted(len(pruner.unshipped), 'bundle')} must be shipped first: see `ergo-capture ship status`",
            err=True,
        )
    if pruner.suspects:
        click.echo(
            f"{counted(len(pruner.suspects), 'bundle')} cannot have ended when the manifest says, for example "
            f"{printable(pruner.suspects[-1].path)}: kept from --max-age until one that was published later is as old",
            err=True,
        )
    if kept:
        click.echo("Try: `ergo-capture verify` on the bundles that were kept, then move them away", err=True)
    return int(ExitCode.DATA_LOSS if kept else ExitCode.OK)


@bundles.command(
    cls=Command,
    examples=(
        "ergo-capture bundles fetch 20261123T134500Z-1-9c4ef0aa",
        "ergo-capture bundles fetch 20261123T134500Z-1-9c4ef0aa --any-host --date 2026-11-23 -o restored",
    ),
)
@argument("name", "The id of a session, or the SHA-256 of a bundle's file.", metavar="SESSION|SHA256")
@config_option
@store_option
@click.option("--host", metavar="NAME", help="The host that shipped it; by default this one.")
@flag("--any-host", help="Search the sessions of all hosts.")
@click.option(
    "--date", metavar="YYYY-MM-DD", default="", help="The date of its end, in UTC; by default all dates are searched."
)
@click.option(
    "-o", "--output", type=PATH, default=".", metavar="DIR", help="Directory to write to; by default the current one."
)
def fetch(
    name: str, config: Path | None, store: str, host: str | None, *, any_host: bool, date: str, output: Path
) -> int:
    """Download and verify bundles from a store.

    It fetches all bundles of a session with their manifests, or one bundle. Each object is compared with the hash in its
    key. Then every decision is derived again, as `verify` does. Exit code 4 if a decision diverges, 1 if no bundle is
    found or one is unsound.
    """
    from ergo_capture.cli.support.verification import check, in_words  # noqa: PLC0415 - `list` needs none of it
    from ergo_capture.objects.opening import store_named  # noqa: PLC0415
    from ergo_capture.ship.fetching import fetch as download  # noqa: PLC0415
    from ergo_capture.ship.fetching import find_file, find_session  # noqa: PLC0415
    from ergo_capture.ship.service import host_name  # noqa: PLC0415

    loaded = configuration.load(config, client=True)
    opened = store_named(store, loaded.ship.targets)
    whose = "" if any_host else host or host_name(loaded)
    is_hash = re.fullmatch(r"[0-9a-f]{64}", name) is not None
    keys = find_file(opened, name) if is_hash else find_session(opened, name, host=whose, date=date)
    if not keys:
        raise ErgoCaptureError(
            f"fetch '{name}': the store '{opened.url}' has no such "
            + ("file" if is_hash else f"session from host '{whose}'" if whose else "session"),
            op="fetch bundle",
            path=name,
            hint="give a session's id or a file's SHA-256; --any-host also finds sessions of other hosts",
        )
    worst = ExitCode.OK
    for key in keys:
        path = download(opened, key, output)
        result = check(path)
        outcome: ExitCode = result["exit"]
        if worst is not ExitCode.FAILED and outcome is not ExitCode.OK:
            worst = outcome
        click.echo(f"{printable(path)}: {in_words(result)}")
    return int(worst)


def _bury_with(control: Path) -> Callable[[Path, str], None]:
    """Return a function that asks the running daemon, which has the key, to sign a bundle's tombstone."""
    from ergo_capture.cli.support.control_connection import ControlConnection, DaemonAway  # noqa: PLC0415
    from ergo_capture.protocol.control import Buried, BuryRequest  # noqa: PLC0415

    def bury(bundle: Path, reason: str) -> None:
        try:
            with ControlConnection(control) as connection:
                connection.ask(BuryRequest(str(bundle.absolute()), reason), Buried)
        except DaemonAway as error:
            raise ErgoCaptureError(
                f"prune bundle '{bundle}': its tombstone has to be signed, and no daemon answers on '{control}'",
                op="prune bundle",
                path=bundle,
                hint="start the daemon or name its socket with --socket, or let its own retention delete bundles",
            ) from error

    return bury


def _with_options(
    rules: RetentionRules, max_age: str | None, max_bytes: str | None, max_bundles: int | None, keep_free: str | None
) -> RetentionRules:
    """Return the configured rules, with those of the command line replaced, for every graph."""
    from ergo_capture.server.factories import age_of  # noqa: PLC0415

    given: dict[str, Any] = {}
    if max_age is not None:
        given["max_age"] = age_of(_parsed(Duration, "--max-age", max_age))
    if max_bytes is not None:
        given["max_bytes"] = int(_parsed(Size, "--max-bytes", max_bytes))
    if max_bundles is not None:
        given["max_bundles"] = max_bundles
    return replace(
        rules,
        default=replace(rules.default, **given),
        graphs={name: replace(bounds, **given) for name, bounds in rules.graphs.items()},
        keep_free_bytes=rules.keep_free_bytes if keep_free is None else int(_parsed(Size, "--keep-free", keep_free)),
    )


def _parsed(kind: type[Quantity], option: str, text: str) -> Quantity:
    try:
        return kind.parse(text)
    except ValueError as error:
        raise ErgoCaptureError(
            f"prune bundles: {option}: {error}", op="prune bundles", exit_code=ExitCode.USAGE
        ) from error


def _as_json(bundle: StoredBundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "bundle": printable(bundle.path),
        "graph": bundle.graph,
        "file_bytes": bundle.size,
        "state": bundle.problem or "finished",
        "manifest": manifest,
    }


def _table(bundles: list[tuple[StoredBundle, list[str]]], *, with_holders: bool) -> Iterator[str]:
    rows = [("ENDED (UTC)", "HOW", "GRAPH", "EVENTS", "SIZE", "SHIPPED", "BUNDLE")]
    rows += [_row(bundle, holders) for bundle, holders in bundles]
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    for row in rows if bundles else []:
        left = [f"{row[column]:<{widths[column]}}" for column in range(3)]
        right = [f"{row[column]:>{widths[column]}}" for column in (3, 4)]
        shipped = [f"{row[5]:<{widths[5]}}"] if with_holders else []
        yield "  ".join([*left, *right, *shipped, row[6]])


def _how(bundle: StoredBundle) -> str:
    manifest = bundle.manifest
    how = bundle.problem or (manifest.ended if manifest else "-")
    if manifest is None:
        return how
    counts = {
        "refused": 0 if manifest.refused is None else manifest.refused.count,
        "left over": 0 if manifest.left_over is None else manifest.left_over.count,
        "lost": 0 if manifest.lost is None else manifest.lost.missing,
    }
    return ", ".join([how, *(f"{count:,} {what}" for what, count in counts.items() if count)])


def _row(bundle: StoredBundle, holders: list[str]) -> tuple[str, str, str, str, str, str, str]:
    manifest = bundle.manifest
    return (
        "-" if bundle.ended_at is None else f"{bundle.ended_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}",
        _how(bundle),
        bundle.graph,
        "-" if manifest is None else f"{manifest.events:,}",
        size(bundle.size),
        ",".join(holders) or "-",
        printable(bundle.path),
    )


def _total(count: int, file_bytes: int) -> str:
    return f"{counted(count, 'bundle')}, {size(file_bytes)}"
