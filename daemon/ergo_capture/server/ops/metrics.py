"""Prometheus metrics, and the text file for node_exporter.

Nothing is counted twice: a collector turns the current status into samples. Names follow Prometheus's conventions: the
prefix ``ergo_capture_``, base units, ``_total`` for counters. Labels are graphs, codes and kinds of memory, never
sessions or clients, so that the configuration bounds their number. The state directory is a label of every sample:
node_exporter reads the text files of several daemons, and reports samples that occur twice as an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio
import structlog
from anyio import to_thread
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from ergo_capture import telemetry
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.server.commit.meter import HistogramSnapshot
from ergo_capture.server.ops.status_model import DaemonStatus, RunningStatus, ShadowStatus
from ergo_capture.server.session.session import FATES
from ergo_capture.storage.atomic import AtomicFile
from ergo_capture.storage.write_error import as_written

log = structlog.get_logger()

PREFIX: Final = "ergo_capture_"
#: The label that tells the daemons of a host apart; Prometheus itself sets ``instance``.
STATE_LABEL: Final = "state_directory"
_Families = Iterator[Metric]


def exposition(status: DaemonStatus) -> bytes:
    """Return the status and the process's own figures in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(StatusCollector(status))
    text: bytes = generate_latest(registry)
    return text


class StatusCollector(Collector):
    """Collects the samples of one status and of this process."""

    def __init__(self, status: DaemonStatus) -> None:
        self._status = status

    def collect(self) -> _Families:
        """Return every metric of the daemon, each sample with the state directory."""
        state = as_written(Path(self._status.state).absolute())
        for family in (*self._daemon(), *_process()):
            family.samples = [
                sample._replace(labels={STATE_LABEL: state, **sample.labels}) for sample in family.samples
            ]
            yield family

    def _daemon(self) -> _Families:
        status, totals = self._status, self._status.totals
        yield InfoMetricFamily(PREFIX + "build", "The release that runs.", {"version": status.program.split()[-1]})
        yield _gauge(
            "ready", "Whether the daemon serves: 0 while it starts or stops, or its disk fails.", status.is_ready
        )
        yield _gauge("start_time_seconds", "When the daemon started, in Unix time.", status.started_at)
        yield _gauge("clients", "Clients connected.", status.clients)
        yield _gauge("clients_limit", "Clients that may be connected.", status.max_clients)
        yield _counter("clients_served", "Clients that were let in.", totals.clients)
        yield _counter("sessions_opened", "Sessions opened.", totals.sessions_opened)
        yield _counter("sessions_resumed", "Sessions resumed.", totals.sessions_resumed)
        yield _counter("sessions_finished", "Sessions that ended with a bundle.", totals.sessions_finished)
        yield _counter(
            "acknowledged_lost",
            "Resumes by clients to which missing events were acknowledged.",
            totals.acknowledged_lost,
        )
        yield _counter("bundles_published", "Bundles published, snapshots included.", totals.bundles_published)
        yield _counter(
            "bundles_diverted", "Bundles published beside a finished one of the same name.", totals.bundles_diverted
        )
        yield _counter("bundles_pruned", "Bundles deleted by retention.", totals.bundles_pruned)
        yield _counter(
            "bundles_pruned_bytes", "Bytes of the bundles that retention deleted.", totals.bundles_pruned_bytes
        )
        yield _counter("tap_decisions_shown", "Decisions shown to taps.", totals.decisions_tapped)
        yield _counter("tap_decisions_skipped", "Decisions that taps did not show.", totals.decisions_skipped)
        yield _counter(
            "log_lines_dropped",
            "Lines of the log that were dropped because no process read them.",
            totals.log_lines_dropped,
        )
        yield _labelled(
            CounterMetricFamily(PREFIX + "refusals", "Clients, frames and events refused, by code.", labels=["code"]),
            status.refusals,
        )
        if status.disk_free_bytes is not None:
            yield _gauge("disk_free_bytes", "Room on the state directory's file system.", status.disk_free_bytes)
        if status.running is not None:
            yield from _commits(status.running)
            yield from _sessions(status.running)
            yield from _episodes(status.running)
            yield from _fates(status.running)
            yield from _intents(status.running)
            yield from _engines(status.running)


def _process() -> _Families:
    """Return the process's own figures under our prefix: node_exporter has its own ``process_*``."""
    process = ProcessCollector(namespace=PREFIX.rstrip("_"), registry=None)
    # Leave out the start time: under a private /proc it would be in 1970, and ``start_time_seconds`` has it.
    return (family for family in process.collect() if not family.name.endswith("_start_time_seconds"))


def _commits(running: RunningStatus) -> _Families:
    writer, journal, commits = running.writer, running.journal, running.commits
    yield _counter("events", "Events accepted: on stable storage.", writer.events)
    yield _counter("decisions", "Decisions on stable storage.", writer.decisions)
    yield _counter("journal_written_bytes", "Bytes written to the journal.", writer.bytes_written)
    yield _counter("commits_refused", "Commits that the disk had no room for, or that failed.", writer.refused_batches)
    yield _histogram("commit_seconds", "Time to write and sync one commit.", commits.seconds)
    yield _histogram("commit_bytes", "Bytes in one commit.", commits.bytes)
    yield _histogram("commit_events", "Events in one commit.", commits.events)
    yield _gauge(
        "oldest_undurable_seconds", "Age of the oldest submission that is not durable.", writer.oldest_undurable_seconds
    )
    yield _gauge("disk_full", "Whether the last commit found the disk full.", writer.full)
    yield _gauge("disk_unwritable", "Whether the last test write to the disk failed.", writer.disk_error is not None)
    yield _gauge("journal_failed", "Whether the journal takes no more data.", writer.failed is not None)
    yield _gauge("journal_bytes", "Size of the journal, space allocated ahead included.", journal.bytes)
    yield _gauge("journal_segments", "Segments of the journal.", journal.segments)
    held = 0 if running.journal_holder is None else running.journal_holder.bytes
    yield _gauge("journal_held_bytes", "Segments kept for the session that needs the oldest one.", held)
    composing = 0 if running.composing is None else running.composing.bytes
    shadow = running.shadow or ShadowStatus(waiting=0, passed=0, failed=0, skipped=0)
    verified = CounterMetricFamily(
        PREFIX + "shadow_verifications", "Finished bundles verified again, by result.", labels=["result"]
    )
    yield _labelled(verified, {name: getattr(shadow, name) for name in ("passed", "failed", "skipped")})
    yield _gauge("shadow_waiting", "Finished bundles that wait to be verified again.", shadow.waiting)
    yield _gauge("composing_bytes", "Temporary files of bundles composed while their sessions run.", composing)


def _sessions(running: RunningStatus) -> _Families:
    sessions = running.sessions
    # Report every graph, not only those with sessions: a series that comes and goes cannot be alerted on.
    graphs = {engine.graph for engine in running.engines} | {session.graph for session in sessions}
    counts, undecided, deferred, queued = (Counter(dict.fromkeys(sorted(graphs), 0)) for _ in range(4))
    for session in sessions:
        counts[session.graph] += 1
        undecided[session.graph] += session.accepted - session.decided
        deferred[session.graph] += session.deferred
        queued[session.graph] += session.queued_bytes
    yield _by_graph("sessions", "Sessions that are not finished.", counts)
    yield _by_graph("undecided_events", "Events that are accepted and whose decisions are not durable.", undecided)
    yield _by_graph("deferred_episodes", "Episodes that wait for their time.", deferred)
    yield _by_graph("queued_bytes", "Events that wait to be decided.", queued)
    failed = sum(session.state == "failed" for session in sessions)
    yield _gauge("sessions_failed", "Sessions that cannot continue until a restart.", failed)
    delayed = sum(bool(session.delayed_by) for session in sessions)
    yield _gauge("sessions_delayed", "Sessions with a bundle that waits for room on the disk.", delayed)
    yield _gauge(
        "sessions_quarantined", "Sessions whose journal is damaged or whose graph is gone.", len(running.quarantined)
    )
    used = GaugeMetricFamily(PREFIX + "memory_bytes", "Memory held for clients, by purpose.", labels=["kind"])
    yield _labelled(used, {kind: memory.used for kind, memory in running.memory.items()})
    limit = GaugeMetricFamily(
        PREFIX + "memory_limit_bytes", "Memory that may be held for clients, by purpose.", labels=["kind"]
    )
    yield _labelled(limit, {kind: memory.limit for kind, memory in running.memory.items()})


def _episodes(running: RunningStatus) -> _Families:
    # Report every termination of every graph: a series that comes with the first failure cannot be alerted on.
    ended = CounterMetricFamily(
        PREFIX + "episodes", "Episodes, by how their last attempt ended.", labels=["graph", "termination"]
    )
    for graph, counts in running.episodes.items():
        for termination, count in counts.items():
            ended.add_metric([graph, termination], float(count))
    yield ended


def _intents(running: RunningStatus) -> _Families:
    sent = CounterMetricFamily(
        PREFIX + "intents", "Intents sent to egress channels, by result.", labels=["graph", "result"]
    )
    for graph, counts in running.intents.items():
        for result, count in counts.items():
            sent.add_metric([graph, result], float(count))
    yield sent


def _fates(running: RunningStatus) -> _Families:
    texts = {
        "refused": ("refused_events", "Events that were accepted and refused when their turn came."),
        "left_over": ("left_over_events", "Events that were accepted after an interruption of their run."),
        "interrupted": ("interrupted_runs", "Runs of sessions that were interrupted before their events ended."),
    }
    for fate in FATES:
        name, text = texts[fate]
        counts = {graph: fates[fate] for graph, fates in running.fates.items()}
        yield _labelled(CounterMetricFamily(PREFIX + name, text, labels=["graph"]), counts)


def _engines(running: RunningStatus) -> _Families:
    up = GaugeMetricFamily(PREFIX + "engine_up", "Whether the graph's engine can run episodes.", labels=["graph"])
    # None counts as up: an engine in this process cannot be away.
    yield _labelled(up, {engine.graph: engine.up is not False for engine in running.engines})


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, text, value=float(value))


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, text, value=float(value))


def _labelled(family: CounterMetricFamily | GaugeMetricFamily, values: dict[str, int] | dict[str, bool]) -> Metric:
    for label, value in values.items():
        family.add_metric([label], float(value))
    return family


def _by_graph(name: str, text: str, values: Counter[str]) -> Metric:
    return _labelled(GaugeMetricFamily(PREFIX + name, text, labels=["graph"]), dict(values))


def _histogram(name: str, text: str, snapshot: HistogramSnapshot) -> Metric:
    buckets, seen = [], 0
    for bound, count in zip((*snapshot.bounds, float("inf")), snapshot.counts, strict=True):
        seen += count
        buckets.append(("+Inf" if bound == float("inf") else repr(bound), float(seen)))
    return HistogramMetricFamily(PREFIX + name, text, buckets=buckets, sum_value=snapshot.sum)


class Textfile:
    """Writes the metrics to a file at intervals, for node_exporter's textfile collector.

    Args:
        path: ends in ``.prom``; the file is replaced as a whole.
        interval: seconds between two writes.
        take: returns the current status.
    """

    def __init__(self, path: Path, interval: float, take: Callable[[], Awaitable[DaemonStatus]]) -> None:
        self._path = path
        self._interval = interval
        self._take = take
        self._failed = False
        #: The number of times it was written.
        self.written = 0

    async def run(self) -> None:
        """Write until cancelled; then remove the file, because its values would be out of date."""
        try:
            while True:
                await self.write()
                await anyio.sleep(self._interval)
        finally:
            with suppress(OSError):
                self._path.unlink()

    async def write(self) -> None:
        """Write one snapshot."""
        text = exposition(await self._take())
        try:
            await to_thread.run_sync(_replace, self._path, text)
        except (ErgoCaptureError, OSError) as error:
            # Log it once until writing succeeds again.
            if not self._failed:
                hint = f"{getattr(error, 'hint', None) or 'look at its directory'}; see `ergo-capture help metrics`"
                log.error(telemetry.METRICS_FAILED, path=str(self._path), error=str(error), hint=hint)  # noqa: TRY400
            self._failed = True
            return
        self._failed = False
        self.written += 1


def _replace(path: Path, text: bytes) -> None:
    with AtomicFile(path, what="metrics textfile") as file:
        file.write(text)
        # node_exporter runs as another user, and nothing in the file is secret.
        file.path.chmod(0o644)
        file.commit()
