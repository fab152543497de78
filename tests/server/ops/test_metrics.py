"""The metrics: a text that Prometheus's own parser reads, named by its conventions."""

from __future__ import annotations

import errno
import re
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anyio
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from tests.daemons import PATIENCE, Daemon, event, running_daemon, short_directory

from ergo_capture import config as configuration
from ergo_capture.config import ConfigError
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.server.ops.metrics import Textfile


async def scrape(daemon: Daemon) -> dict[str, Metric]:
    """Return the families by name, as Prometheus reads them."""
    return families((await daemon.ask("metrics"))["text"])


def families(text: str) -> dict[str, Metric]:
    """Return the families of an exposition; a name must not come twice."""
    found = list(text_string_to_metric_families(text))
    assert len({family.name for family in found}) == len(found)
    return {family.name: family for family in found}


def ours(found: dict[str, Metric]) -> Iterable[Metric]:
    """Return the families that are not the process's."""
    return [family for name, family in found.items() if not name.startswith("process_")]


async def test_metric_names_follow_the_conventions() -> None:
    """The prefix, base units, `_total` for counters only, help that is a sentence; every sample of a known type."""
    async with running_daemon() as daemon, daemon.session() as wire:
        await wire.say(event("a"))
        await wire.until_ack(1, 1)
        found = await scrape(daemon)
        for family in ours(found):
            assert re.fullmatch(r"ergo_capture_[a-z][a-z_]*[a-z]", family.name)
            assert family.documentation.endswith("."), family.name
            assert family.type in {"counter", "gauge", "histogram"}, family.name
            assert not re.search(r"_(ms|milliseconds|kib|mib|count|sum|bucket|info_info)$", family.name)
            for sample in family.samples:
                assert sample.name.endswith("_total") == (family.type == "counter"), sample.name
                assert set(sample.labels) <= {"graph", "code", "kind", "le", "version"}, sample.name
        assert {"process_resident_memory_bytes", "process_cpu_seconds"} <= found.keys()
        (started,) = values(found, "ergo_capture_start_time_seconds").values()
        assert time.time() - 3600 < started <= time.time()


async def test_metrics_agree_with_what_happened() -> None:
    """A session adds no series: their number depends on the configuration only."""
    two = "[graphs.a]\n[graphs.b]\n"
    async with running_daemon(two) as daemon:
        before = await scrape(daemon)
        async with daemon.session(graph="a") as wire, daemon.session(graph="a"):
            await wire.say(event("x"), event("y"), event("x"))
            await wire.until("reject")
            await wire.until_ack(3, 3)
            after = await scrape(daemon)
        assert values(after, "ergo_capture_events") == {(): 2}
        assert values(after, "ergo_capture_decisions") == {(): 2}
        assert values(after, "ergo_capture_sessions") == {("a",): 2, ("b",): 0}
        assert values(after, "ergo_capture_refusals")["duplicate_event_id",] == 1
        assert values(after, "ergo_capture_engine_up") == {("a",): 1, ("b",): 1}
        assert values(after, "ergo_capture_ready") == {(): 1}
        count = {family.name: len(family.samples) for family in ours(after)}
        assert count == {family.name: len(family.samples) for family in ours(before)}


def values(found: dict[str, Metric], name: str) -> dict[tuple[str, ...], float]:
    """Return a family's samples by the values of their labels."""
    return {tuple(sample.labels.values()): sample.value for sample in found[name].samples}


async def test_histograms_are_cumulative_and_end_at_infinity() -> None:
    """Buckets never fall, the last one is the count, and the commits' bytes add up to what was written."""
    async with running_daemon() as daemon, daemon.session() as wire:
        for number in range(5):
            await wire.say(event(f"e{number}"))
            await wire.until_ack(number + 1, number + 1)
        found = await scrape(daemon)
        histograms = [family for family in ours(found) if family.type == "histogram"]
        assert len(histograms) == 3
        for family in histograms:
            buckets = [sample for sample in family.samples if sample.name.endswith("_bucket")]
            counts = [sample.value for sample in buckets]
            (total,) = (sample.value for sample in family.samples if sample.name.endswith("_count"))
            assert counts == sorted(counts)
            assert (buckets[-1].labels["le"], counts[-1]) == ("+Inf", total)
        (written,) = (s.value for s in found["ergo_capture_commit_bytes"].samples if s.name.endswith("_sum"))
        assert values(found, "ergo_capture_journal_written_bytes") == {(): written}


async def test_the_textfile_is_complete_readable_by_others_and_removed_at_the_end() -> None:
    """node_exporter is another user; a file that stayed would claim for ever what was true last."""
    with short_directory() as place:
        path = place / "ergo.prom"
        async with running_daemon(f'[metrics]\ntextfile = "{path}"\n') as daemon:
            with anyio.fail_after(PATIENCE):
                while not path.exists():
                    await anyio.sleep(0.01)
            found = families(path.read_text())
            assert values(found, "ergo_capture_ready") == {(): 1}
            assert stat.S_IMODE(path.stat().st_mode) == 0o644
            assert found.keys() == (await scrape(daemon)).keys()
        assert list(place.iterdir()) == []


async def test_a_textfile_that_cannot_be_written_is_logged_once_and_tried_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """When the directory exists the file is written."""
    with short_directory() as place:
        path = place / "away" / "ergo.prom"
        async with running_daemon() as daemon:
            from ergo_capture.server.ops.status import take_status

            textfile = Textfile(path, 1.0, lambda: take_status(daemon.service.components))
            await textfile.write()
            await textfile.write()
            logged = capsys.readouterr()
            assert (logged.out + logged.err).count("metrics.failed") == 1
            path.parent.mkdir()
            await textfile.write()
            assert textfile.written == 1
            assert families(path.read_text())


async def test_a_textfile_whose_mode_cannot_be_set_is_logged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file system may have no modes; the daemon serves on."""
    with short_directory() as place:
        monkeypatch.setattr(Path, "chmod", _refused)
        textfile = Textfile(place / "metrics.prom", 1.0, _no_status)
        monkeypatch.setattr("ergo_capture.server.ops.metrics.exposition", lambda _: b"")
        await textfile.write()
        assert textfile.written == 0
        assert list(place.iterdir()) == []
    assert "metrics.failed" in capsys.readouterr().out


def _refused(*_: Any) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


async def _no_status() -> Any:
    return None


@pytest.mark.parametrize("text", ['textfile = "/tmp/metrics.txt"', 'interval = "10ms"', 'interval = "0s"'])
def test_useless_and_harmful_settings_are_refused(text: str) -> None:
    """A name that node_exporter ignores; a file that is written without pause."""
    with pytest.raises(ConfigError) as refused:
        configuration.parse(f"[metrics]\n{text}\n", "test")
    assert isinstance(refused.value, ErgoCaptureError)
    assert refused.value.exit_code == 78


def test_the_global_registry_stays_unused() -> None:
    """Prometheus's default registry has no metric of the daemon."""
    from prometheus_client import REGISTRY, generate_latest

    import ergo_capture.server.ops.metrics as module

    assert Path(module.__file__).name == "metrics.py"
    assert b"ergo_capture" not in generate_latest(REGISTRY)
