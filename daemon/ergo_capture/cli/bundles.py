"""``ergo-capture bundles list|prune``.

Owns: their arguments and output.
Not here: which bundles there are (``bundle/catalogue.py``), which go (``bundle/retention.py``), deleting them
(``server/ops/retention.py``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from ergo_capture import config as configuration
from ergo_capture.bundle.catalogue import Catalogue, StoredBundle
from ergo_capture.bundle.retention import RetentionRules
from ergo_capture.cli.figures import size
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.units import Duration, Size, counted

Quantity = TypeVar("Quantity", Duration, Size)

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="List finished bundles, and delete those that have had their time.",
)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration file; by default the usual one, if it is there."),
]
StateOption = Annotated[
    str, typer.Option("--state-dir", metavar="DIR", help="State directory; by default the configured one.")
]
GraphOption = Annotated[str | None, typer.Option("--graph", metavar="GRAPH", help="Only the bundles of this graph.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object a bundle, one a line.")]


@app.command("list")
def list_bundles(
    config: ConfigOption = None, state_dir: StateOption = "", graph: GraphOption = None, as_json: JsonOption = False
) -> int:
    """List the bundles there are, the oldest first.

    What is said of them is what their manifests tell.
    """
    state = Path(configuration.load(config, state=state_dir).state.directory)
    found = [bundle for bundle in Catalogue(state / "bundles").read() if graph in (None, bundle.graph)]
    if as_json:
        for bundle in found:
            typer.echo(msgspec.json.encode(_as_json(bundle)))
        return 0
    for line in _table(found):
        typer.echo(line)
    typer.echo(_total(len(found), sum(bundle.size for bundle in found)), err=True)
    return 0


@app.command()
def prune(
    config: ConfigOption = None,
    state_dir: StateOption = "",
    graph: GraphOption = None,
    max_age: Annotated[
        str | None, typer.Option(metavar="AGE", help="As retention.max_age, for every graph: 30d, 12h.")
    ] = None,
    max_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="As retention.max_bytes, for every graph: 10GiB.")
    ] = None,
    max_bundles: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="As retention.max_bundles, for every graph.")
    ] = None,
    keep_free: Annotated[str | None, typer.Option(metavar="SIZE", help="As retention.keep_free_bytes: 5GiB.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Delete the finished bundles that are beyond the bounds.

    Their manifests go with them.

    The bounds are those of the configuration, or what the options say in their place. A bundle is read whole
    and compared with its manifest first; one that differs is kept, and the exit code is 3.
    """
    from ergo_capture.server.factories import retention_rules  # noqa: PLC0415 - only here
    from ergo_capture.server.ops.retention import Pruner  # noqa: PLC0415
    from ergo_capture.storage import RealStorage  # noqa: PLC0415

    loaded = configuration.load(config, state=state_dir)
    rules = _with_options(retention_rules(loaded), max_age, max_bytes, max_bundles, keep_free)
    if not rules.are_set:
        raise ErgoCaptureError(
            "prune bundles: nothing says which bundles have had their time",
            op="prune bundles",
            hint="give --max-age, --max-bytes, --max-bundles or --keep-free, or set them under [retention]",
            exit_code=ExitCode.USAGE,
        )
    count, freed, kept = 0, 0, 0
    for step in Pruner(Path(loaded.state.directory), RealStorage()).prune(rules, graph=graph, dry_run=dry_run):
        bundle = step.choice.bundle
        if step.kept is None:
            count, freed = count + 1, freed + bundle.size
        else:
            kept += 1
        if as_json:
            said = {"pruned": step.kept is None and not dry_run, "reason": step.choice.reason, "kept": step.kept}
            typer.echo(msgspec.json.encode(_as_json(bundle) | said))
        elif step.kept is None:
            typer.echo(
                f"{'would prune' if dry_run else 'pruned'} {_shown(bundle.path)} ({size(bundle.size)}): {step.choice.reason}"
            )
        else:
            typer.echo(f"kept {_shown(bundle.path)}: {step.kept}")
    typer.echo(f"{'would prune ' if dry_run else 'pruned '}{_total(count, freed)}", err=True)
    if kept:
        typer.echo("Try: `ergo-capture verify` on what was kept, then move it away", err=True)
    return int(ExitCode.DATA_LOSS if kept else ExitCode.OK)


def _with_options(
    rules: RetentionRules, max_age: str | None, max_bytes: str | None, max_bundles: int | None, keep_free: str | None
) -> RetentionRules:
    """The rules with what the command line says in place of the configuration, for every graph."""
    from ergo_capture.server.factories import age_of  # noqa: PLC0415 - as above

    said: dict[str, Any] = {}
    if max_age is not None:
        said["max_age"] = age_of(_parsed(Duration, "--max-age", max_age))
    if max_bytes is not None:
        said["max_bytes"] = int(_parsed(Size, "--max-bytes", max_bytes))
    if max_bundles is not None:
        said["max_bundles"] = max_bundles
    return RetentionRules(
        replace(rules.default, **said),
        {name: replace(bounds, **said) for name, bounds in rules.graphs.items()},
        rules.keep_free_bytes if keep_free is None else int(_parsed(Size, "--keep-free", keep_free)),
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
        "bundle": _shown(bundle.path),
        "graph": bundle.graph,
        "file_bytes": bundle.size,
        "state": bundle.problem or "finished",
        "manifest": manifest,
    }


def _table(bundles: list[StoredBundle]) -> Iterator[str]:
    rows = [("ENDED (UTC)", "HOW", "GRAPH", "EVENTS", "SIZE", "BUNDLE")]
    rows += [_row(bundle) for bundle in bundles]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows if bundles else []:
        left = [f"{row[column]:<{widths[column]}}" for column in range(3)]
        right = [f"{row[column]:>{widths[column]}}" for column in (3, 4)]
        yield "  ".join([*left, *right, row[5]])


def _row(bundle: StoredBundle) -> tuple[str, str, str, str, str, str]:
    manifest = bundle.manifest
    return (
        "-" if bundle.ended_at is None else f"{bundle.ended_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}",
        bundle.problem or (manifest.ended if manifest else "-"),
        bundle.graph,
        "-" if manifest is None else f"{manifest.events:,}",
        size(bundle.size),
        _shown(bundle.path),
    )


def _shown(path: Path) -> str:
    """Why: a directory's name may be bytes that no text can hold."""
    return os.fsencode(path).decode("utf-8", "replace")


def _total(count: int, file_bytes: int) -> str:
    return f"{counted(count, 'bundle')}, {size(file_bytes)}"
