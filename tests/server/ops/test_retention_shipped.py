"""Bundles that must be shipped first are deleted only when they are shipped or given up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from tests.bundle.test_receipt import PLACE, receipt_of
from tests.bundles import DAY, NOW, store
from tests.daemons import command, command_environment, event, running_daemon
from tests.server.ops.test_retention import names, newest, until

from ergo_capture.bundle.names import manifest_path
from ergo_capture.bundle.receipt import encode_receipt, receipt_path
from ergo_capture.bundle.retention import Bounds, RetentionRules
from ergo_capture.server.ops.pruner import Pruner
from ergo_capture.storage import RealStorage

SHIPPED = RetentionRules(Bounds(max_age=DAY), shipped_to={"archive": PLACE})
WEEK = 7 * DAY


def shipped(state: Path, name: str, *targets: str, **options: Any) -> Path:
    """Write a bundle with receipts of these targets."""
    bundle = store(state, name, **options)
    for target in targets:
        receipt_path(bundle, target).write_bytes(encode_receipt(receipt_of(bundle, target=target)))
    return bundle


def prune(state: Path, rules: RetentionRules, **options: Any) -> list[tuple[str, bool]]:
    """Prune; return the names of the bundles, each with whether it was given up."""
    steps = Pruner(state, RealStorage()).prune(rules, now=NOW, **options)
    return [(step.choice.bundle.path.name.partition(".")[0], step.choice.is_given_up) for step in steps]


def test_only_what_has_a_receipt_of_every_target_is_deleted(tmp_path: Path) -> None:
    """Its receipts are deleted too; the others stay, however old."""
    shipped(tmp_path, "both", "archive", "second", age=WEEK)
    shipped(tmp_path, "one", "archive", age=WEEK)
    shipped(tmp_path, "none", age=WEEK)
    newest(tmp_path)
    rules = replace(SHIPPED, shipped_to={"archive": PLACE, "second": PLACE})
    assert prune(tmp_path, rules, dry_run=True) == [("both", False)]
    assert prune(tmp_path, rules) == [("both", False)]
    assert [name for name in names(tmp_path) if "both" in name] == []
    assert [name for name in names(tmp_path) if name.startswith(("one", "none"))] == [
        "none.capture.json", "none.manifest.json", "one.capture.json", "one.manifest.json", "one.shipped.archive.json",
    ]  # fmt: skip
    assert prune(tmp_path, SHIPPED) == [("one", False)]


def test_a_receipt_of_another_store_keeps_nothing_from_staying(tmp_path: Path) -> None:
    """The target's URL was changed, and nothing is in the new store yet."""
    shipped(tmp_path, "old", "archive", age=WEEK)
    newest(tmp_path)
    elsewhere = replace(SHIPPED, shipped_to={"archive": PLACE._replace(url="s3://other")})
    assert prune(tmp_path, elsewhere) == []
    assert prune(tmp_path, SHIPPED) == [("old", False)]


@pytest.mark.parametrize(
    "bounds", [{"default": Bounds(max_bundles=2)}, {"keep_free_bytes": 1 << 60}], ids=["max_bundles", "keep_free_bytes"]
)
def test_what_is_shipped_goes_in_place_of_what_is_not(tmp_path: Path, bounds: Any) -> None:
    """A bundle that is not shipped counts against the bound, and stays."""
    for number in range(5):
        shipped(tmp_path, f"b{number}", *(["archive"] if number % 2 else []), age=(9 - number) * DAY)
    assert prune(tmp_path, RetentionRules(shipped_to={"archive": PLACE}, **bounds)) in (
        [("b1", False)],
        [("b1", False), ("b3", False)],
    )
    assert {name[:2] for name in names(tmp_path)} >= {"b0", "b2", "b4"}


def test_after_a_time_a_bundle_is_given_up(tmp_path: Path) -> None:
    """It must also exceed a bound; shipped bundles are deleted as usual."""
    shipped(tmp_path, "older", age=30 * DAY)
    shipped(tmp_path, "old", age=WEEK)
    shipped(tmp_path, "held", "archive", age=WEEK)
    newest(tmp_path)
    rules = replace(SHIPPED, give_up_after=20 * DAY)
    assert prune(tmp_path, rules) == [("older", True), ("held", False)]
    assert prune(tmp_path, rules) == []


def test_while_ages_are_not_judged_nothing_is_given_up() -> None:
    """A clock that is years ahead for a moment must not delete bundles that no store has."""
    rules = replace(SHIPPED, give_up_after=DAY, default=Bounds(max_bundles=1))
    assert rules.have_ages
    assert not rules.without_ages().give_up_after
    assert not replace(rules, shipped_to={}).have_ages


def test_a_receipt_that_goes_meanwhile_keeps_its_bundle(tmp_path: Path) -> None:
    """An audit may find that the store lost the bundle, and delete its receipt."""
    bundle = shipped(tmp_path, "old", "archive", age=WEEK)
    newest(tmp_path)

    class Slow(Pruner):
        def _difference(self, choice: Any) -> str | None:
            receipt_path(bundle, "archive").unlink(missing_ok=True)
            return super()._difference(choice)

    assert list(Slow(tmp_path, RealStorage()).prune(SHIPPED, now=NOW)) == []
    assert bundle.exists()


def test_a_crash_leaves_no_receipt_behind(tmp_path: Path) -> None:
    """The next round deletes what the last one began."""
    bundle = shipped(tmp_path, "old", "archive", age=WEEK)
    newest(tmp_path)
    manifest = manifest_path(bundle)
    manifest.rename(manifest.with_name(manifest.name + ".pruning"))
    bundle.unlink()
    prune(tmp_path, SHIPPED)
    assert names(tmp_path) == []


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """Yield the lines of the log."""
    with structlog.testing.capture_logs() as lines:
        yield lines


async def test_the_daemon_deletes_what_the_shipper_has_shipped(tmp_path: Path, logged: list[Any]) -> None:
    """Two processes, one directory, and receipts between them."""
    (tmp_path / "store").mkdir()
    table = f'[ship.targets.archive]\nurl = "{(tmp_path / "store").as_uri()}"\n'
    text = f'{table}[retention]\nmax_bundles = 1\nshipped_to = ["archive"]\ninterval = "50ms"\n'
    (tmp_path / "ship.toml").write_text(f'[state]\ndirectory = "{tmp_path}"\n{table}')
    async with running_daemon(text, state=tmp_path) as daemon:
        for _ in range(3):
            async with daemon.session() as wire:
                await wire.say(event("a"), {"type": "close"})
                await wire.until("closed")
        await daemon.service.retention.take_round()
        assert len(daemon.bundles()) == 3
        ran = command("ship", "once", "--config", str(tmp_path / "ship.toml"))
        assert (ran.returncode, ran.stderr) == (0, "")
        await until(logged, "bundle.pruned", 2)
        assert len(daemon.bundles()) == 1
        assert len(list(tmp_path.glob("bundles/*/*.shipped.*"))) == 1
    assert not [line for line in logged if line["event"] == "retention.gave_up"]


async def test_what_is_given_up_is_an_error_line_each(tmp_path: Path, logged: list[Any]) -> None:
    """It must not go unnoticed."""
    for number in range(3):
        store(tmp_path, f"b{number}", graph="default", age=WEEK, sequence=number + 1)
    table = '[ship.targets.archive]\nurl = "file:///nowhere"\n'
    text = f'{table}[retention]\nmax_bundles = 1\nshipped_to = ["archive"]\ngive_up_after = "1d"\ninterval = "50ms"\n'
    async with running_daemon(text, state=tmp_path) as daemon:
        given_up = await until(logged, "retention.gave_up", 2)
        assert len(daemon.bundles()) == 1
    assert {line["log_level"] for line in given_up} == {"error"}
    assert not [line for line in logged if line["event"] == "bundle.pruned"]


def test_prune_says_what_must_be_shipped_first(tmp_path: Path) -> None:
    """The command does so as the daemon does."""
    for number in range(3):
        store(tmp_path, f"b{number}", age=WEEK, sequence=number + 1)
    table = f'[state]\ndirectory = "{tmp_path}"\n[ship.targets.archive]\nurl = "file:///nowhere"\n'
    config = tmp_path / "config.toml"
    config.write_text(f'{table}[retention]\nshipped_to = ["archive"]\n')
    ran = command("bundles", "prune", "--max-age", "1d", "--config", str(config))
    assert ran.stdout == ""
    assert "3 bundles must be shipped first" in ran.stderr
    config.write_text(f'{table}[retention]\nshipped_to = ["archive"]\ngive_up_after = "1d"\n')
    ran = command("bundles", "prune", "--max-age", "1d", "--config", str(config))
    assert ran.stdout.count("max_age, not shipped") == 2


def test_the_daemon_imports_nothing_that_ships() -> None:
    """Neither packages nor client are imported: a hung store cannot affect it, and its start costs nothing more."""
    code = (
        "import sys\n"
        "from ergo_capture.config import parse\n"
        "import ergo_capture.server.process, ergo_capture.server.factories as factories\n"
        'config = parse(\'[ship.announce]\\nservers = ["tls://n"]\\n[ship.targets.a]\\nurl = "s3://b"\\n[retention]\\nshipped_to = ["a"]\\n\', \'test\')\n'
        "factories.retention_rules(config)\n"
        "wrong = [name for name in sys.modules if name.startswith(('obstore', 'ergo_capture.ship', 'ergo_capture.objects', 'ergo_capture.fleet', 'duckdb', 'pyarrow', 'nats', 'nkeys'))]\n"
        "assert not wrong, wrong\n"
    )
    subprocess.run([sys.executable, "-c", code], env=command_environment(), check=True)
