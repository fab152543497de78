"""``ergo-capture fleet``: the bundles of many hosts in one object store."""

from __future__ import annotations

import re
import secrets
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import click
import msgspec

from ergo_capture.bundle.names import safe_name
from ergo_capture.cli.processes import jobs_option
from ergo_capture.cli.support.command import (
    NAME,
    PATH,
    Command,
    Group,
    argument,
    config_option,
    flag,
    json_flag,
    labels_from,
    seal_option,
    state_option,
    store_option,
    timeout_option,
)
from ergo_capture.cli.support.output import check_output, printable, size, without_controls, write_whole
from ergo_capture.engine.spec import FORMS
from ergo_capture.errors import ExitCode
from ergo_capture.fleet.check import Job
from ergo_capture.units import Duration, counted

if TYPE_CHECKING:
    from ergo_capture.fleet.find import Query
    from ergo_capture.fleet.summary import Summary
    from ergo_capture.objects.port import ObjectStore

#: How many dates ``index`` examines by default, back from today.
_DAYS: Final = 7
#: How many rows ``find`` prints.
_LIMIT: Final = 1000
#: How many reports of bundles are written beside the page of a run.
_REPORTS: Final = 50
_RUN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@click.group(cls=Group)
def fleet() -> None:
    """Find, export and prove the bundles that hosts have shipped to an object store."""


@fleet.command(
    cls=Command, examples=("ergo-capture fleet index", "ergo-capture fleet index --all --store s3://captures/prod")
)
@store_option
@click.option(
    "--days",
    type=click.IntRange(min=1),
    default=_DAYS,
    show_default=True,
    metavar="N",
    help="Index the last N dates, in UTC.",
)
@flag("--all", help="Index all dates: bundles of a host that was offline for longer arrive late.")
@config_option
@json_flag("date")
def index(*, store: str, days: int, all: bool, config: Path | None, as_json: bool) -> int:  # noqa: A002 - the option's name
    """Bring the catalogue up to date.

    The catalogue has one row for each manifest in the store. Only manifests that it does not have are read. Several
    runs at once do no harm, and each can be stopped and run again. Exit code 3 if a manifest cannot be read.
    """
    from ergo_capture.fleet.index import dates_in  # noqa: PLC0415 - the help needs none of it
    from ergo_capture.fleet.index import index as index_dates  # noqa: PLC0415

    opened = _opened(store, config)
    first = (datetime.now(UTC).date() - timedelta(days=days - 1)).isoformat()
    dates = [date for date in dates_in(opened) if all or date >= first]
    manifests = added = unreadable = 0
    for indexed in index_dates(opened, dates):
        manifests, added = manifests + indexed.manifests, added + indexed.added
        unreadable += len(indexed.unreadable)
        if as_json:
            click.echo(msgspec.json.encode(indexed._asdict()))
        elif indexed.added or indexed.removed:
            gone = f", {indexed.removed:,} gone" if indexed.removed else ""
            click.echo(f"{indexed.date}: {indexed.added:,} added{gone}, {indexed.manifests:,} in all")
        for key, reason in indexed.unreadable:
            click.echo(f"{opened.url}/{printable(key)}: {reason}", err=True)
    click.echo(f"{counted(added, 'manifest')} added, {manifests:,} in {counted(len(dates), 'date')}", err=True)
    return int(ExitCode.DATA_LOSS if unreadable else ExitCode.OK)


def _opened(store: str, config: Path | None) -> ObjectStore:
    from ergo_capture import config as configuration  # noqa: PLC0415 - the help needs none of it
    from ergo_capture.objects.opening import store_named  # noqa: PLC0415

    return store_named(store, configuration.load(config, client=True).ship.targets)


def _query_options(function: Any) -> Any:
    """Declare the options that select bundles."""
    for option in reversed(
        (
            click.option(
                "--since",
                default="",
                metavar="TIME",
                help="Only bundles that ended since then: 7d, 2026-11-28, or RFC 3339.",
            ),
            click.option("--until", default="", metavar="TIME", help="Only bundles that ended before then."),
            click.option("--graph", metavar="GRAPH", help="Only bundles of this graph."),
            click.option("--host", metavar="HOST", help="Only bundles that this host shipped."),
            click.option("--session", metavar="ID", help="Only bundles of this session."),
            click.option(
                "--ended",
                metavar="HOW",
                help="Only bundles that ended so: complete, rotated, recovered, interrupted, ...",
            ),
            click.option(
                "--label",
                "labels",
                multiple=True,
                metavar="KEY=VALUE",
                help="Only bundles with this label; may be repeated.",
            ),
            click.option("--where", default="", metavar="SQL", help="A condition over the catalogue's columns."),
        )
    ):
        function = option(function)
    return function


@fleet.command(
    cls=Command,
    examples=(
        "ergo-capture fleet find --since 7d --graph flights --label team=ops",
        "ergo-capture fleet find --where \"ended IN ('lost', 'recovered')\" --json",
    ),
)
@store_option
@_query_options
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=_LIMIT,
    show_default=True,
    metavar="N",
    help="Print at most N bundles; 0 for all.",
)
@config_option
@json_flag("bundle")
def find(*, store: str, limit: int, config: Path | None, as_json: bool, **wanted: Any) -> None:
    """Find bundles in the catalogue.

    Bundles that fulfil every option are printed, the oldest first.

    `ergo-capture help fleet` describes the catalogue's columns.
    """
    query = _query(wanted, limit + 1 if limit else None)
    rows = list(_found(_opened(store, config), query))
    is_cut = limit and len(rows) > limit
    if is_cut:
        rows.pop()
    if as_json:
        for row in rows:
            click.echo(msgspec.json.encode(row))
    else:
        for line in _table(rows):
            click.echo(line)
    more = ", and there are more: give --limit" if is_cut else ""
    click.echo(f"{counted(len(rows), 'bundle')}, {size(sum(row['file_bytes'] or 0 for row in rows))}{more}", err=True)


@fleet.command(
    cls=Command,
    examples=(
        "ergo-capture fleet export run.capture.json -o run.parquet",
        "ergo-capture fleet export --since 1d --graph flights -o parquet/",
    ),
)
@argument(
    "capture",
    "Bundles, a state directory, or ids of sessions; none to export the bundles that the options select.",
    nargs=-1,
    type=NAME,
    metavar="[CAPTURE]...",
)
@store_option
@_query_options
@click.option(
    "--output",
    "-o",
    type=PATH,
    required=True,
    metavar="FILE|DIR",
    help="File to write for one bundle; otherwise a directory, with one file for each bundle.",
)
@state_option
@config_option
def export(
    *, capture: tuple[str, ...], store: str, output: Path, state_dir: str, config: Path | None, **wanted: Any
) -> None:
    """Write events with decisions as Parquet.

    A file has one row for each event, with its decision.

    `ergo-capture help fleet` describes the columns.
    """
    query = _query(wanted)
    if bool(capture) == (query != _query({})):
        raise click.UsageError("Name captures, or select bundles of a store with options.")
    exported = (
        _export_captures(capture, output, state_dir, config) if capture else _export_found(store, query, output, config)
    )
    files = rows = 0
    for path, count in exported:
        click.echo(printable(path))
        files, rows = files + 1, rows + count
    click.echo(f"{counted(files, 'file')}, {counted(rows, 'event')}", err=True)


def _run_options(function: Any) -> Any:
    """Declare the options of runs on many bundles."""
    for option in reversed(
        (
            store_option,
            _query_options,
            click.option(
                "--run",
                "name",
                default="",
                metavar="NAME",
                help="The run's name; an existing run is continued. By default a new name, which is printed.",
            ),
            click.option(
                "--scheduler",
                default="",
                metavar="URL",
                help="A scheduler of Dask, tcp://HOST:PORT or tls://HOST:PORT; by default processes on this machine.",
            ),
            click.option(
                "--ca", default="", type=NAME, metavar="FILE", help="For tls://: the authority's certificate."
            ),
            click.option("--cert", default="", type=NAME, metavar="FILE", help="For tls://: the client's certificate."),
            click.option("--key", default="", type=NAME, metavar="FILE", help="For tls://: the client's key."),
            jobs_option,
            flag("--quiet", "-q", help="Show no progress."),
            config_option,
            json_flag("run"),
        )
    ):
        function = option(function)
    return function


@fleet.command(
    cls=Command,
    examples=(
        "ergo-capture fleet verify --since 7d",
        "ergo-capture fleet verify --run nightly --scheduler tls://scheduler:8786 --ca ca.pem --cert me.pem --key me.key",
    ),
)
@seal_option("check the seals, and each host's chain of them in the catalogue.")
@_run_options
def verify(*, seal: str | None, **options: Any) -> int:
    """Verify bundles of the store on many processes.

    Each bundle is downloaded, compared with its manifest, and verified. The same command with the same --run continues
    a run that was stopped. Exit code 0 if every bundle is sound, 4 if a decision diverges, 1 if a bundle is unsound or
    could not be checked.
    """
    is_right = True
    trusted: tuple[str, ...] = ()
    if seal is not None:
        is_right, trusted = _check_chains(seal, options["store"], options["config"], as_json=options["as_json"])
    code = _work(Job(trusted=trusted), **options)
    return code if is_right else int(ExitCode.FAILED)


@fleet.command(
    cls=Command, examples=('ergo-capture fleet replay --graph flights --engine "process:/usr/local/bin/engine"',)
)
@click.option(
    "--engine", required=True, metavar="SPEC", help=f"The engine that runs the episodes, on the workers: {FORMS}."
)
@timeout_option
@_run_options
def replay(*, engine: str, timeout: float, **options: Any) -> int:
    """Replay bundles of the store on many processes.

    It does the same as `fleet verify`, and runs the episodes again with an engine.
    """
    return _work(Job(engine, timeout), **options)


@fleet.command(cls=Command, examples=("ergo-capture fleet summary nightly --html nightly/",))
@argument("name", "The run.", metavar="RUN")
@store_option
@click.option(
    "--html",
    type=PATH,
    metavar="DIR",
    help="Write a page there, with the reports of the bundles that failed.",
)
@config_option
@flag("--json", "as_json", help="Print a JSON object.")
def summary(*, name: str, store: str, html: Path | None, config: Path | None, as_json: bool) -> int:
    """Sum up a run: counts, then the bundles that failed.

    The exit code is that of the run.
    """
    from ergo_capture.fleet.run import read_plan, read_results  # noqa: PLC0415 - the help needs none of it
    from ergo_capture.fleet.summary import sum_up  # noqa: PLC0415

    opened = _opened(store, config)
    _check_name(name)
    summed = sum_up(name, read_plan(opened, name), read_results(opened, name))
    if html is not None:
        click.echo(printable(_write_pages(opened, summed, html)))
    return _show(summed, as_json=as_json)


def _check_chains(key: str, store: str, config: Path | None, *, as_json: bool) -> tuple[bool, tuple[str, ...]]:
    """Print the reports on the chains of all hosts; return whether there are no findings, and the trusted keys."""
    from ergo_capture.cli.seals import print_chain  # noqa: PLC0415 - the help needs none of it
    from ergo_capture.fleet.seals import check_hosts  # noqa: PLC0415

    chains = check_hosts(_found(_opened(store, config), _query({})), key)
    for host, report in chains.reports.items():
        print_chain(printable(host), report, as_json=as_json)
    return all(report.is_right for report in chains.reports.values()), chains.trusted


def _work(
    job: Job,
    *,
    store: str,
    name: str,
    scheduler: str,
    ca: str,
    cert: str,
    key: str,
    jobs: int,
    quiet: bool,
    config: Path | None,
    as_json: bool,
    **wanted: Any,
) -> int:
    from ergo_capture import config as configuration  # noqa: PLC0415 - the help needs none of it
    from ergo_capture.fleet.run import connected, item_of, progress_of, read_results, take_plan, work_on  # noqa: PLC0415
    from ergo_capture.fleet.summary import sum_up  # noqa: PLC0415
    from ergo_capture.objects.opening import open_store, target_named  # noqa: PLC0415

    query = _query(wanted)
    target = target_named(store, configuration.load(config, client=True).ship.targets)
    opened = open_store(target)
    if not name:
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
        click.echo(f"run {name}", err=True)
    _check_name(name)
    plan = take_plan(opened, name, job, lambda: map(item_of, _found(opened, query)))
    progress = progress_of(plan, name, opened)
    if progress.left:
        with (
            _bar(len(plan.items), quiet=quiet) as advance,
            connected(scheduler, jobs, ca=ca, cert=cert, key=key) as client,
        ):
            advance(progress)
            work_on(progress, job, name, target, client, on_progress=advance)
    for reason in dict.fromkeys(progress.unfinished.values()):
        click.echo(f"not done: {printable(reason)}", err=True)
    if progress.unfinished:
        click.echo(f"Try: the same command with --run {name}, which continues with these", err=True)
    return _show(sum_up(name, plan, read_results(opened, name)), as_json=as_json)


def _check_name(name: str) -> None:
    if not _RUN_NAME.fullmatch(name):
        raise click.BadParameter(f"A run's name consists of letters, digits and ._-, unlike {name!r}.")


@contextmanager
def _bar(bundles: int, *, quiet: bool) -> Iterator[Any]:
    """Show the number of checked bundles, on a terminal."""
    if quiet or not sys.stderr.isatty() or not bundles:
        yield lambda _progress: None
        return
    from rich.console import Console  # noqa: PLC0415 - only on a terminal
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn("bundles"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("bundles", total=bundles)
        yield lambda progress: bars.update(bar, completed=progress.done)


def _show(summed: Summary, *, as_json: bool) -> int:
    if as_json:
        click.echo(msgspec.json.encode(summed))
    else:
        click.echo(f"{summed.in_words}; {counted(summed.events, 'event')}")
        for result in summed.failures[:_LIMIT]:
            item = result.item
            part = f"~{item.part}" if item.part > 1 else ""
            click.echo(
                without_controls(f"{result.outcome}: {item.host} {item.session}{part}: {printable(result.problem)}")
            )
        if len(summed.failures) > _LIMIT:
            click.echo(f"and {len(summed.failures) - _LIMIT:,} more; --json prints all", err=True)
    if summed.unfinished or summed.outcomes.get("unsound") or summed.outcomes.get("failed"):
        return int(ExitCode.FAILED)
    return int(ExitCode.DIVERGED if summed.outcomes.get("diverged") else ExitCode.OK)


def _write_pages(store: ObjectStore, summed: Summary, directory: Path) -> Path:
    """Write the page of a run, and the reports of the bundles that it names; return the page's path."""
    from ergo_capture.bundle.reader.stream import open_bundle  # noqa: PLC0415 - the help needs none of it
    from ergo_capture.errors import ErgoCaptureError  # noqa: PLC0415
    from ergo_capture.fleet.summary import summary_page  # noqa: PLC0415
    from ergo_capture.report.page import report_page  # noqa: PLC0415

    reports = {}
    for result in summed.failures[:_REPORTS]:
        item = result.item
        try:
            with _fetched(store, item.object) as path, open_bundle(path) as stream:
                page = report_page(stream, _name_of(item.session, item.part), None, "")
        except ErgoCaptureError:
            # It cannot be read, which its result reports.
            continue
        name = f"reports/{safe_name(item.host)}~{_name_of(item.session, item.part)}.html"
        write_whole(directory / name, page, "report")
        reports[item.manifest] = quote(name)
    index_page = directory / "index.html"
    write_whole(index_page, summary_page(summed, reports), "page")
    return index_page


def _export_captures(
    names: tuple[str, ...], output: Path, state_dir: str, config: Path | None
) -> Iterator[tuple[Path, int]]:
    from ergo_capture.cli.support.bundle_files import manifest_beside  # noqa: PLC0415 - the help needs none of it
    from ergo_capture.cli.support.captures import captures_in  # noqa: PLC0415
    from ergo_capture.fleet.export import export as write  # noqa: PLC0415

    found = captures_in(names, state_dir, config)
    for run in found:
        part, first = (1, 0) if run.part is None else (run.part.part, run.part.first)
        manifest = run.bundle and manifest_beside(run.bundle)
        if manifest:
            part, first = manifest.part, manifest.first_event
        destination = _destination(output, _name_of(run.session, part), is_alone=len(found) == 1)
        check_output(destination, "Parquet file", run.files)
        with run.open() as stream:
            yield destination, write(stream, destination, session=run.session, part=part, first_event=first)


def _export_found(store: str, query: Query, output: Path, config: Path | None) -> Iterator[tuple[Path, int]]:
    from ergo_capture.bundle.reader.stream import open_bundle  # noqa: PLC0415 - the help needs none of it
    from ergo_capture.fleet.export import export as write  # noqa: PLC0415

    opened = _opened(store, config)
    rows = list(_found(opened, query))
    for row in rows:
        name = _name_of(row["session"], row["part"])
        destination = _destination(output, f"{safe_name(row['host'])}~{name}", is_alone=False)
        check_output(destination, "Parquet file")
        with _fetched(opened, row["object"]) as path, open_bundle(path) as stream:
            count = write(
                stream, destination, session=row["session"], part=row["part"], first_event=row["first_event"] or 0
            )
        yield destination, count


@contextmanager
def _fetched(store: ObjectStore, key: str) -> Iterator[Path]:
    """Yield a downloaded copy of a bundle, which is removed at the end."""
    from ergo_capture.objects.fetching import fetch_object  # noqa: PLC0415 - the help needs none of it

    with tempfile.TemporaryDirectory(prefix="ergo-capture-fleet-") as folder:
        path = Path(folder, key.rpartition("/")[2])
        fetch_object(store, key, path)
        yield path


def _destination(output: Path, name: str, *, is_alone: bool) -> Path:
    if is_alone and not output.is_dir() and not str(output).endswith("/"):
        return output
    return output / f"{name}.parquet"


def _name_of(session: str, part: int) -> str:
    return safe_name(session) + (f"~{part}" if part > 1 else "")


def _query(wanted: Mapping[str, Any], limit: int | None = None) -> Query:
    from ergo_capture.fleet.find import Query  # noqa: PLC0415 - the help needs none of it

    return Query(
        since=_moment(wanted.get("since", ""), "--since"),
        until=_moment(wanted.get("until", ""), "--until"),
        labels=labels_from(wanted.get("labels", ())),
        where=wanted.get("where", ""),
        limit=limit,
        **{name: wanted.get(name) for name in ("graph", "host", "session", "ended")},
    )


def _moment(text: str, option: str) -> datetime | None:
    """Return a time from its text: a span before now, a date, or a time of RFC 3339, in UTC unless it says a zone."""
    if not text:
        return None
    try:
        return datetime.now(UTC) - timedelta(seconds=Duration.parse(text).seconds)
    except (ValueError, OverflowError):
        pass
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{option} is a time such as 7d, 2026-11-28 or 2026-11-28T09:30:00Z, not {text!r}"
        ) from None


def _found(store: ObjectStore, query: Query) -> Iterator[dict[str, Any]]:
    from ergo_capture.fleet.find import find as find_rows  # noqa: PLC0415 - the help needs none of it
    from ergo_capture.fleet.find import parts_for  # noqa: PLC0415
    from ergo_capture.objects.opening import cache_of  # noqa: PLC0415

    parts = parts_for(store, query, cache_of(store))
    if not parts:
        click.echo("note: the catalogue has no file for these dates; run `ergo-capture fleet index`", err=True)
    with closing(find_rows(parts, query)) as rows:
        yield from rows


def _table(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    lines = [("ENDED (UTC)", "HOW", "GRAPH", "HOST", "EVENTS", "SIZE", "SESSION")]
    lines += map(_row, rows)
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    for line in lines if len(lines) > 1 else []:
        left = [f"{line[column]:<{widths[column]}}" for column in range(4)]
        right = [f"{line[column]:>{widths[column]}}" for column in (4, 5)]
        yield "  ".join([*left, *right, line[6]])


def _row(row: Mapping[str, Any]) -> tuple[str, str, str, str, str, str, str]:
    lost = f", {row['lost']:,} lost" if row["lost"] else ""
    return (
        "-" if row["ended_at"] is None else f"{row['ended_at']:%Y-%m-%d %H:%M:%S}",
        f"{row['ended'] or '-'}{lost}",
        row["graph"] or "-",
        row["host"] or "-",
        "-" if row["events"] is None else f"{row['events']:,}",
        "-" if row["file_bytes"] is None else size(row["file_bytes"]),
        row["session"] or "-" if row["part"] in (None, 1) else f"{row['session']}~{row['part']}",
    )
