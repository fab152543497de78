"""The metrics: a text that Prometheus's own parser reads, named by its conventions."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import shutil
import socket
import stat
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anyio
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from tests.daemons import PATIENCE, Daemon, configured, event, running_daemon, short_directory
from tests.server.looks import until

from ergo_capture import config as configuration
from ergo_capture import telemetry
from ergo_capture.config import ConfigError
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.log_output import LogOutput
from ergo_capture.server.ops.metrics import Textfile
from ergo_capture.server.service import Service

#: Debian's name of node_exporter.
EXPORTER = "prometheus-node-exporter"


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
    return [family for name, family in found.items() if not name.startswith("ergo_capture_process_")]


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
                known = {"graph", "code", "kind", "le", "version", "termination", "result"}
                assert set(sample.labels) - known == {"state_directory"}
        assert {"ergo_capture_process_resident_memory_bytes", "ergo_capture_process_cpu_seconds"} <= found.keys()
        assert all(name.startswith("ergo_capture_") for name in found)
        (started,) = values(found, "ergo_capture_start_time_seconds").values()
        assert time.time() - 3600 < started <= time.time()


async def test_the_start_time_does_not_move_with_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken once."""
    async with running_daemon() as daemon:
        before = values(await scrape(daemon), "ergo_capture_start_time_seconds")
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + 1e6)
        assert values(await scrape(daemon), "ergo_capture_start_time_seconds") == before


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
    return {
        tuple(value for label, value in sample.labels.items() if label != "state_directory"): sample.value
        for sample in found[name].samples
    }


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
            found = await written(path)
            assert values(found, "ergo_capture_ready") == {(): 1}
            assert stat.S_IMODE(path.stat().st_mode) == 0o644
            assert found.keys() == (await scrape(daemon)).keys()
        assert list(place.iterdir()) == []


async def written(path: Path) -> dict[str, Metric]:
    """Return the families of a text file once it says that the daemon serves."""
    with anyio.fail_after(PATIENCE):
        while not path.exists() or "_ready{" not in path.read_text() or "} 0.0" in _line(path, "ergo_capture_ready"):
            await anyio.sleep(0.01)
    return families(path.read_text())


def _line(path: Path, name: str) -> str:
    return next(line for line in path.read_text().splitlines() if line.startswith(f"{name}{{"))


async def test_a_daemon_that_recovers_replaces_the_textfile_of_its_dead_predecessor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The file that a killed daemon left says that it is ready, and a recovery may take long."""
    with short_directory() as place:
        path, recovering = place / "ergo.prom", threading.Event()
        path.write_text('ergo_capture_ready{state_directory="x"} 1.0\n')
        real = Service._open_journal

        def slow(service: Service) -> Any:
            assert recovering.wait(PATIENCE)
            return real(service)

        monkeypatch.setattr(Service, "_open_journal", slow)
        service = Service(configured(place / "state", place / "s", f'[metrics]\ntextfile = "{path}"\n'))
        task = asyncio.create_task(service.run())
        try:
            with anyio.fail_after(PATIENCE):
                while not _line(path, "ergo_capture_ready").endswith("} 0.0"):
                    await anyio.sleep(0.01)
            recovering.set()
            await written(path)
        finally:
            recovering.set()
            service.stop()
            await asyncio.wait_for(task, PATIENCE)


@pytest.mark.skipif(shutil.which(EXPORTER) is None, reason=f"needs {EXPORTER}")
async def test_node_exporter_reads_the_textfiles_of_two_daemons_without_an_error() -> None:
    """Every sample of both comes through, beside node_exporter's own metrics of its process."""
    with short_directory() as place:
        texts = [f'[metrics]\ntextfile = "{place}/{name}.prom"\n' for name in ("a", "b")]
        async with running_daemon(texts[0]) as one, running_daemon(texts[1]) as other:
            await written(place / "a.prom")
            await written(place / "b.prom")
            page = await anyio.to_thread.run_sync(exported, place)
            # The exporter's own metrics of Go have one name twice, with and without `_total`.
            found = {family.name: family for family in text_string_to_metric_families(page)}
            assert values(found, "node_textfile_scrape_error") == {(): 0}
            assert {"process_resident_memory_bytes", "ergo_capture_process_resident_memory_bytes"} <= found.keys()
            ready = {sample.labels["state_directory"]: sample.value for sample in found["ergo_capture_ready"].samples}
            assert ready == {str(one.state): 1, str(other.state): 1}
            assert {Path(sample.labels["file"]).name for sample in found["node_textfile_mtime_seconds"].samples} == {
                "a.prom",
                "b.prom",
            }


def exported(directory: Path) -> str:
    """Return what node_exporter says of the text files in a directory."""
    # Port 0 would not be told; a free one may be taken by another process, so try again.
    for _ in range(10):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        with subprocess.Popen(
            [
                EXPORTER, f"--web.listen-address={address}", "--collector.disable-defaults", "--collector.textfile",
                f"--collector.textfile.directory={directory}",
            ],
            stderr=subprocess.DEVNULL,
        ) as exporter:  # fmt: skip
            try:
                deadline = time.monotonic() + PATIENCE
                while exporter.poll() is None and time.monotonic() < deadline:
                    try:
                        with urllib.request.urlopen(f"http://{address}/metrics", timeout=PATIENCE) as answer:
                            page: str = answer.read().decode()
                            return page
                    except urllib.error.URLError:
                        time.sleep(0.02)
            finally:
                exporter.terminate()
    raise AssertionError("node_exporter did not come up")


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
            assert "write metrics textfile" in logged.out + logged.err
            assert "ergo-capture help metrics" in logged.out + logged.err
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


async def test_dropped_lines_of_the_log_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads the log meanwhile, so no line could say it."""
    reading, writing = os.pipe()
    try:
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        os.write(writing, b"x" * 4096)
        output = LogOutput(writing, lambda _dropped: None, max_bytes=100)
        monkeypatch.setattr(telemetry, "_background", output)
        async with running_daemon() as daemon:
            assert values(await scrape(daemon), "ergo_capture_log_lines_dropped") == {(): 0}
            output.write(b"a" * 100, is_error=False)
            await until(lambda: output.waiting_bytes == 0)
            for _ in range(3):
                output.write(b"b" * 100, is_error=False)
            assert values(await scrape(daemon), "ergo_capture_log_lines_dropped") == {(): 2}
        os.read(reading, 4096)
        output.drain(PATIENCE)
    finally:
        os.close(reading)
        os.close(writing)
