"""The shipper's metrics, in Prometheus's text format, and the file for node_exporter.

Names and the label of the state directory are as for the daemon's metrics; the other label is the target.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ergo_capture.ship.announcing import Announcer
from ergo_capture.ship.shipper import Shipper
from ergo_capture.storage.atomic import AtomicFile
from ergo_capture.storage.write_error import as_written

_PREFIX: Final = "ergo_capture_ship_"
#: Every reason is reported from the start: a series that comes with the first failure cannot be alerted on.
_REASONS: Final = ("away", "refused", "differs", "unsound", "changed", "failed")
_ANNOUNCE_REASONS: Final = ("away", "refused", "failed")


def exposition(state: Path, shippers: Iterable[Shipper], announcer: Announcer | None = None) -> bytes:
    """Return the metrics of all targets, and of announcements where there are any.

    Args:
        state: the state directory.
        shippers: one for each target.
        announcer: the announcer; None if bundles are not announced.
    """
    registry = CollectorRegistry()
    registry.register(_Targets(as_written(state.absolute()), list(shippers)))
    if announcer is not None:
        registry.register(_Announcements(as_written(state.absolute()), announcer))
    text: bytes = generate_latest(registry)
    return text


def write_textfile(path: Path, text: bytes) -> None:
    """Replace the file as a whole.

    Raises:
        CaptureWriteError: it cannot be written.
    """
    with AtomicFile(path, what="metrics textfile") as file:
        file.write(text)
        # node_exporter runs as another user, and nothing in the file is secret.
        file.path.chmod(0o644)
        file.commit()


class _Targets(Collector):
    def __init__(self, state: str, shippers: list[Shipper]) -> None:
        self._state = state
        self._shippers = shippers

    def collect(self) -> Iterator[Metric]:
        """Return every metric, each with a sample for each target."""
        up, backlog, size, oldest, unsound = (
            GaugeMetricFamily(_PREFIX + name, text, labels=("state_directory", "target"))
            for name, text in (
                ("up", "Whether the last attempt to send something to the target succeeded."),
                ("backlog_bundles", "Finished bundles that are not shipped."),
                ("backlog_bytes", "Bytes of the bundles that are not shipped."),
                ("oldest_unshipped_seconds", "Age of the oldest bundle that is not shipped, from its end."),
                ("unsound", "Bundles that are not sent because they are not what their manifests say."),
            )
        )
        sent, sent_bytes, differs = (
            CounterMetricFamily(_PREFIX + name, text, labels=("state_directory", "target"))
            for name, text in (
                ("sent", "Bundles shipped."),
                ("sent_bytes", "Bytes of the bundles shipped."),
                ("verify_failures", "Objects that the store did not give back as they were written."),
            )
        )
        failures = CounterMetricFamily(
            _PREFIX + "failures", "Attempts that failed, by reason.", labels=("state_directory", "target", "reason")
        )
        for shipper in self._shippers:
            labels = (self._state, shipper.name)
            up.add_metric(labels, float(shipper.outage.error is None))
            backlog.add_metric(labels, float(len(shipper.plan.due)))
            size.add_metric(labels, float(shipper.plan.due_bytes))
            oldest.add_metric(labels, shipper.oldest_seconds())
            unsound.add_metric(labels, float(shipper.unsound))
            sent.add_metric(labels, float(shipper.counts.sent))
            sent_bytes.add_metric(labels, float(shipper.counts.sent_bytes))
            differs.add_metric(labels, float(shipper.counts.failures["differs"]))
            for reason in _REASONS:
                failures.add_metric((*labels, reason), float(shipper.counts.failures[reason]))
        yield from (up, backlog, size, oldest, sent, sent_bytes, failures, differs, unsound)


class _Announcements(Collector):
    def __init__(self, state: str, announcer: Announcer) -> None:
        self._state = state
        self._announcer = announcer

    def collect(self) -> Iterator[Metric]:
        """Return the metrics of announcements."""
        announcer, counts = self._announcer, self._announcer.counts
        for name, text, value in (
            (
                "announce_up",
                "Whether the last attempt to announce something succeeded.",
                announcer.outage.error is None,
            ),
            ("unannounced_bundles", "Shipped bundles that are not announced.", len(announcer.waiting)),
            (
                "oldest_unannounced_seconds",
                "Age of the oldest bundle that is not announced, from its end.",
                announcer.oldest_seconds(),
            ),
        ):
            yield self._with(GaugeMetricFamily(_PREFIX + name, text, labels=("state_directory",)), value)
        for name, text, value in (
            ("announced", "Announcements that the stream acknowledged.", counts.announced),
            ("announced_again", "Announcements that the stream had already.", counts.duplicates),
        ):
            yield self._with(CounterMetricFamily(_PREFIX + name, text, labels=("state_directory",)), value)
        failures = CounterMetricFamily(
            _PREFIX + "announce_failures", "Rounds that failed, by reason.", labels=("state_directory", "reason")
        )
        for reason in _ANNOUNCE_REASONS:
            failures.add_metric((self._state, reason), float(counts.failures[reason]))
        yield failures

    def _with(self, metric: GaugeMetricFamily | CounterMetricFamily, value: float) -> Metric:
        metric.add_metric((self._state,), float(value))
        return metric
