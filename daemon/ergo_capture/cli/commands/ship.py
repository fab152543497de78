"""``ergo-capture ship``: ship finished bundles to object stores."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from ergo_capture import config as configuration
from ergo_capture.cli.support.command import (
    NAME,
    Command,
    Group,
    argument,
    config_option,
    flag,
    json_flag,
    seal_option,
    state_option,
)
from ergo_capture.cli.support.output import print_error, printable, size, span, with_hint
from ergo_capture.config import Config, ConfigError
from ergo_capture.config.settings import RetentionConfig
from ergo_capture.config.shipping import TargetConfig
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.units import counted

if TYPE_CHECKING:
    from ergo_capture.bundle.catalogue import StoredBundle
    from ergo_capture.ship.announcing import Announcer
    from ergo_capture.ship.audit import Finding
    from ergo_capture.ship.plan import Plan
    from ergo_capture.ship.shipper import Shipper

_target_option: Final = click.option("--target", metavar="NAME", help="Only this target; by default all of them.")


@click.group(cls=Group)
def ship() -> None:
    """Ship finished bundles to object stores."""


@ship.command(cls=Command, examples=("ergo-capture ship run --config /etc/ergo-capture/config.toml",))
@config_option
@state_option
def run(config: Path | None, state_dir: str) -> int:
    """Ship until SIGTERM; SIGHUP reads the configuration again."""
    import asyncio  # noqa: PLC0415 - only for the service

    from ergo_capture import telemetry  # noqa: PLC0415
    from ergo_capture.server.ops.systemd import SystemdNotifier  # noqa: PLC0415
    from ergo_capture.ship.service import ShipService  # noqa: PLC0415

    def reread() -> Config:
        loaded = _loaded(config, state_dir)
        _require_stores(loaded)
        return loaded

    loaded = reread()
    log = loaded.log
    telemetry.configure(log.level, log.format, burst=log.burst, window=log.window.seconds)
    telemetry.write_in_background()
    service = ShipService(loaded, reread, SystemdNotifier.from_environment())
    with asyncio.Runner() as runner:
        runner.run(service.run())
        if service.left_behind:
            # Exit at once: Python would wait for threads that hang on a store.
            telemetry.exit_at_once(int(ExitCode.OK))
    return int(ExitCode.OK)


@ship.command(cls=Command, examples=("ergo-capture ship once --target archive",))
@config_option
@state_option
@_target_option
def once(config: Path | None, state_dir: str, target: str | None) -> int:
    """Ship the bundles that are due now, and print how many are left.

    Exit code 0 if everything is shipped, 1 if a store failed or bundles are left, 3 if a bundle is not sent because it
    differs from its manifest.
    """
    import anyio  # noqa: PLC0415 - only to ship

    from ergo_capture import telemetry  # noqa: PLC0415
    from ergo_capture.ship.service import announcer_of, lister_of, shippers_of  # noqa: PLC0415

    loaded = _only(_loaded(config, state_dir), target)
    telemetry.configure("error")
    with _progress() as on_bytes:
        listed = lister_of(loaded)
        shippers = shippers_of(loaded, listed, on_bytes=on_bytes.advance)
        announcer = announcer_of(loaded, listed)

        async def ship_all() -> None:
            for shipper in shippers:
                plan = await shipper.look()
                on_bytes.expect(shipper.name, plan.due_bytes, twice=shipper.target.verify == "read")
                await shipper.send_due()
            if announcer is not None:
                await announcer.look()
                await announcer.announce_due()

        anyio.run(ship_all)
    for shipper in shippers:
        _tell(shipper)
    if announcer is not None:
        _tell_announced(announcer)
    if any(shipper.outage.error is not None or shipper.plan.due for shipper in shippers):
        return int(ExitCode.FAILED)
    if announcer is not None and announcer.waiting:
        return int(ExitCode.FAILED)
    return int(ExitCode.DATA_LOSS if any(shipper.unsound for shipper in shippers) else ExitCode.OK)


def _tell(shipper: Shipper) -> None:
    left = f", {counted(len(shipper.plan.due), 'bundle')} left" if shipper.plan.due else ""
    click.echo(
        f"{shipper.name}: shipped {counted(shipper.counts.sent, 'bundle')}, {size(shipper.counts.sent_bytes)}{left}"
    )
    _tell_trouble(shipper.outage.error)


def _tell_announced(announcer: Announcer) -> None:
    left = f", {len(announcer.waiting)} left" if announcer.waiting else ""
    click.echo(f"announced {counted(announcer.counts.announced, 'bundle')}{left}")
    _tell_trouble(announcer.outage.error)


def _tell_trouble(error: ErgoCaptureError | None) -> None:
    if error is not None:
        print_error(printable(error.message), error.hint)


@ship.command(cls=Command, examples=("ergo-capture ship status --json",))
@config_option
@state_option
@_target_option
@json_flag("target")
def status(config: Path | None, state_dir: str, target: str | None, *, as_json: bool) -> None:
    """Show which bundles are shipped and announced.

    It reads the receipts beside the bundles, and asks no store.
    """
    loaded = _only(_loaded(config, state_dir), target)
    for name, plan in _plans(loaded):
        silent = _unannounced(loaded, name, plan)
        url, oldest = loaded.ship.targets[name].url, plan.oldest_seconds(datetime.now(UTC))
        if as_json:
            said = {
                "target": name,
                "url": url,
                "shipped": len(plan.shipped),
                "backlog_bundles": len(plan.due),
                "backlog_bytes": plan.due_bytes,
                "oldest_unshipped_seconds": round(oldest, 3),
                "unsound": len(plan.unsound),
                "unannounced": len(silent.due),
                "oldest_unannounced_seconds": round(silent.oldest_seconds(datetime.now(UTC)), 3),
            }
            click.echo(msgspec.json.encode(said))
            continue
        click.echo(f"{name}: {url}")
        click.echo(f"  shipped  {counted(len(plan.shipped), 'bundle')}")
        waits = f", the oldest for {span(oldest)}" if plan.due else ""
        click.echo(f"  to ship  {counted(len(plan.due), 'bundle')}, {size(plan.due_bytes)}{waits}")
        if loaded.ship.announce.servers:
            waits = f", the oldest for {span(silent.oldest_seconds(datetime.now(UTC)))}" if silent.due else ""
            click.echo(f"  to announce  {counted(len(silent.due), 'bundle')}{waits}")
        if plan.unsound:
            click.echo(
                f"  unsound  {counted(len(plan.unsound), 'bundle')}, for example {printable(plan.unsound[0].path)}"
            )


@ship.command(cls=Command, examples=("ergo-capture ship check",))
@config_option
@_target_option
def check(config: Path | None, target: str | None) -> int:
    """Test each store, and the announcements.

    A small object is written to each store, read and listed, and the stream of announcements is checked. It reports
    what is missing. Exit code 1 if bundles cannot be shipped to a target, or if a graph's bundles cannot be announced.
    """
    from ergo_capture.objects.opening import open_store  # noqa: PLC0415
    from ergo_capture.ship.audit import probe  # noqa: PLC0415
    from ergo_capture.ship.service import host_name  # noqa: PLC0415

    loaded, worst = _only(_loaded(config, ""), target), ExitCode.OK
    for name, settings in loaded.ship.targets.items():
        click.echo(f"{name}: {settings.url}")
        try:
            for step in probe(open_store(settings), host_name(loaded)):
                click.echo(f"  {step}")
        except ErgoCaptureError as error:
            worst = ExitCode.FAILED
            click.echo(with_hint(f"  failed: {printable(error.message)}", error.hint))
            continue
        if not settings.url.startswith("file:"):
            click.echo(
                "  not visible from here: the bucket's lifecycle rule; it should end multipart uploads after a day"
            )
    if loaded.ship.announce.servers and not _check_stream(loaded):
        worst = ExitCode.FAILED
    return int(worst)


def _check_stream(config: Config) -> bool:
    """Print the findings on the stream of announcements; return whether it takes them."""
    import anyio  # noqa: PLC0415

    from ergo_capture.ship.probing import probe_stream  # noqa: PLC0415

    click.echo(f"announcements: {config.ship.announce.subject}")

    async def look() -> bool:
        works = True
        async for finding in probe_stream(config.ship.announce, list(config.graphs)):
            works = works and not finding.is_failure
            failed = "failed: " if finding.is_failure else ""
            click.echo(with_hint(f"  {failed}{printable(finding.text)}", finding.hint))
        return works

    return anyio.run(look)


@ship.command(cls=Command, examples=("ergo-capture ship audit --read",))
@config_option
@state_option
@_target_option
@flag("--read", help="Read every object and compare its SHA-256, not only its size.")
@flag("--store", "whole_store", help="Also check every bundle of this host that a manifest in the store names.")
@seal_option("check this host's chain of seals in the store.")
@flag("--dry-run", help="Delete no receipt.")
@json_flag("object")
def audit(
    config: Path | None,
    state_dir: str,
    target: str | None,
    *,
    read: bool,
    whole_store: bool,
    seal: str | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Check that each store still holds the bundles with receipts.

    The receipt of a bundle that is missing or differs is deleted, so that the bundle is shipped again. Exit code 3 if
    there is one.
    """
    from ergo_capture.cli.seals import print_chain  # noqa: PLC0415
    from ergo_capture.objects.opening import open_store  # noqa: PLC0415
    from ergo_capture.seal.chain import check_chain  # noqa: PLC0415
    from ergo_capture.ship.audit import audit_receipts, audit_store, sealed_in  # noqa: PLC0415
    from ergo_capture.ship.service import host_name  # noqa: PLC0415

    loaded, lost = _only(_loaded(config, state_dir), target), 0
    for name, plan in _plans(loaded):
        store = open_store(loaded.ship.targets[name])
        there = wrong = 0
        findings: list[Iterator[Finding]] = [audit_receipts(store, name, plan.shipped, read=read, drop=not dry_run)]
        if whole_store:
            findings.append(audit_store(store, host_name(loaded), read=read))
        for finding in (finding for each in findings for finding in each):
            there, wrong = there + (finding.problem is None), wrong + (finding.problem is not None)
            _print_finding(name, finding, as_json=as_json)
        if seal is not None:
            report = check_chain(sealed_in(store, host_name(loaded)), (), seal)
            wrong += len(report.findings) or not report.is_right
            print_chain(name, report, as_json=as_json)
        lost += wrong
        click.echo(f"{name}: {counted(there, 'object')} there, {wrong} missing or wrong", err=True)
    return int(ExitCode.DATA_LOSS if lost else ExitCode.OK)


def _print_finding(target: str, finding: Finding, *, as_json: bool) -> None:
    if as_json:
        bundle = None if finding.bundle is None else printable(finding.bundle)
        said = {"target": target, "bundle": bundle, "key": finding.key, "problem": finding.problem}
        click.echo(msgspec.json.encode(said))
    elif finding.problem is not None:
        named = finding.key if finding.bundle is None else printable(finding.bundle)
        click.echo(f"{target}: {named}: {finding.problem}")


@ship.command(cls=Command, examples=("ergo-capture ship put salvaged/run.capture.json --target archive",))
@argument(
    "bundles",
    "Bundle files with their manifests beside them, directories of bundles, or patterns.",
    type=NAME,
    nargs=-1,
    required=True,
    metavar="BUNDLE...",
)
@config_option
@_target_option
def put(bundles: tuple[str, ...], config: Path | None, target: str | None) -> int:
    """Ship bundles from outside a state directory.

    Use it for recovered bundles, for example. A receipt is written beside each. Exit code 1 if one was not shipped.
    """
    from ergo_capture.bundle.catalogue import bundle_at  # noqa: PLC0415
    from ergo_capture.bundle.receipt import Receipts, place_of  # noqa: PLC0415
    from ergo_capture.cli.support.bundle_files import bundles_in  # noqa: PLC0415
    from ergo_capture.objects.opening import open_store  # noqa: PLC0415
    from ergo_capture.ship.sending import Sender  # noqa: PLC0415
    from ergo_capture.ship.service import host_name  # noqa: PLC0415

    loaded, worst = _only(_loaded(config, ""), target), ExitCode.OK
    paths = list(bundles_in(bundles))
    found = [bundle_at(path) for path in paths]
    with _progress() as progress:
        for name, settings in loaded.ship.targets.items():
            receipts = Receipts({name: place_of(settings)})
            store, host = open_store(settings), host_name(loaded)
            sender = Sender(store, name, place_of(settings), host, settings.verify, progress.advance)
            due = {bundle.path: bundle for bundle in found if not receipts.holders(bundle)}
            progress.expect(name, sum(bundle.size for bundle in due.values()), twice=settings.verify == "read")
            for bundle in found:
                if bundle.path not in due:
                    click.echo(f"{name}: {printable(bundle.path)}: shipped already")
                    continue
                try:
                    if bundle.problem is not None:
                        raise _not_finished(bundle)
                    sent = sender.send(bundle, is_repeated=True)
                except ErgoCaptureError as error:
                    worst = ExitCode.FAILED
                    click.echo(with_hint(f"{name}: {printable(error.message)}", error.hint), err=True)
                else:
                    click.echo(f"{name}: {printable(bundle.path)}: {store.url}/{sent.receipt.key}")
    if loaded.ship.announce.servers and not _announce([bundle_at(path) for path in paths], loaded):
        worst = ExitCode.FAILED
    return int(worst)


def _announce(bundles: list[StoredBundle], config: Config) -> bool:
    """Announce shipped bundles; return whether all of them are announced."""
    import anyio  # noqa: PLC0415

    from ergo_capture import telemetry  # noqa: PLC0415
    from ergo_capture.ship.announcing import Announcer  # noqa: PLC0415
    from ergo_capture.ship.service import host_name  # noqa: PLC0415

    telemetry.configure("critical")
    announcer = Announcer(config.ship, lambda: bundles, host_name(config))

    async def announce_all() -> None:
        await announcer.look()
        await announcer.announce_due()

    anyio.run(announce_all)
    _tell_announced(announcer)
    return not announcer.waiting


def _not_finished(bundle: StoredBundle) -> ErgoCaptureError:
    return ErgoCaptureError(
        f"send '{bundle.path}': {bundle.problem}",
        op="send bundle",
        path=bundle.path,
        hint="only a finished bundle is shipped, with the manifest beside it",
    )


def _loaded(config: Path | None, state_dir: str) -> Config:
    loaded = configuration.load(config, state=state_dir, client=True)
    if not loaded.ship.targets:
        raise ConfigError(
            "ship: no target is configured",
            op="ship",
            hint='write a table such as [ship.targets.archive] with url = "s3://BUCKET/PREFIX"; see `ergo-capture help ship`',
        )
    return loaded


def _only(config: Config, target: str | None) -> Config:
    """Return the configuration with only one target."""
    if target is None:
        return config
    if target not in config.ship.targets:
        raise ErgoCaptureError(
            f"ship: there is no target '{target}'",
            op="ship",
            hint=f"name one of {', '.join(config.ship.targets)}",
            exit_code=ExitCode.USAGE,
        )
    ship = msgspec.structs.replace(config.ship, targets={target: config.ship.targets[target]})
    # Retention may name the others.
    return msgspec.structs.replace(config, ship=ship, retention=RetentionConfig())


def _require_stores(config: Config) -> None:
    """Raise if a target needs the extra and it is not installed: nothing could be shipped there."""
    if any(not target.url.startswith("file:") for target in config.ship.targets.values()):
        from ergo_capture.objects.remote import import_obstore  # noqa: PLC0415 - only for stores that are elsewhere

        import_obstore()
    if config.ship.announce.servers:
        from ergo_capture.ship.jetstream import import_nats  # noqa: PLC0415 - only where something is announced

        import_nats()


def _plans(config: Config) -> Iterator[tuple[str, Plan]]:
    """Yield the plan of each target, by the receipts on disk."""
    from ergo_capture.bundle.catalogue import Catalogue  # noqa: PLC0415

    bundles = Catalogue(Path(config.state.directory) / "bundles").read()
    for name, target in config.ship.targets.items():
        yield name, _plan(bundles, name, target)


def _plan(bundles: Sequence[StoredBundle], name: str, target: TargetConfig) -> Plan:
    from ergo_capture.bundle.receipt import Receipts, place_of  # noqa: PLC0415
    from ergo_capture.ship.plan import make_plan  # noqa: PLC0415

    receipts = Receipts({name: place_of(target)})
    return make_plan(bundles, lambda bundle: bool(receipts.holders(bundle)))


def _unannounced(config: Config, name: str, plan: Plan) -> Plan:
    """Return the bundles that a target holds and that are not announced, as a plan; empty without announcements."""
    from ergo_capture.bundle.receipt import Receipts, place_of  # noqa: PLC0415
    from ergo_capture.ship.plan import Plan  # noqa: PLC0415

    if not config.ship.announce.servers:
        return Plan()
    receipts = Receipts({name: place_of(config.ship.targets[name])})
    subject = config.ship.announce.subject
    return Plan({bundle.path: bundle for bundle in plan.shipped if receipts.unannounced(bundle, subject)})


class _Progress:
    """Bars for bytes, one a target; on a terminal only."""

    def __init__(self, bars: Any = None) -> None:
        self._bars = bars
        self._task: Any = None

    def expect(self, name: str, count: int, *, twice: bool) -> None:
        """Begin a bar; bytes that are read back count too."""
        if self._bars is not None and count:
            self._task = self._bars.add_task(name, total=count * (2 if twice else 1))

    def advance(self, count: int) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bars.advance(self._task, count)


@contextmanager
def _progress() -> Iterator[_Progress]:
    if not sys.stderr.isatty():
        yield _Progress()
        return
    from rich.console import Console  # noqa: PLC0415 - rich is slow to import
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Progress(bars)
