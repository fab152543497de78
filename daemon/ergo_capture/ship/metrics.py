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

from ergo_capture.ship.shipper import Shipper
from ergo_capture.storage.atomic import AtomicFile
from ergo_capture.storage.write_error import as_written

_PREFIX: Final = "ergo_capture_ship_"
#: Every reason from the start: a series that comes with the first failure cannot be alerted on.
_REASONS: Final = ("away", "refused", "differs", "unsound", "changed", "failed")


def exposition(state: Path, shippers: Iterable[Shipper]) -> bytes:
    """Return the metrics of all targets.

    Args:
        state: the state directory.
        shippers: one for each target.
    """
    registry = CollectorRegistry()
    registry.register(_Targets(as_written(state.absolute()), list(shippers)))
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
                ("backlog_bytes", "Bytes of those."),
                ("oldest_unshipped_seconds", "Age of the oldest of those, from its end."),
                ("unsound", "Bundles that are not sent because they are not what their manifests say."),
            )
        )
        sent, sent_bytes, differs = (
            CounterMetricFamily(_PREFIX + name, text, labels=("state_directory", "target"))
            for name, text in (
                ("sent", "Bundles shipped."),
                ("sent_bytes", "Bytes of those."),
                ("verify_failures", "Objects that the store did not give back as they were written."),
            )
        )
        failures = CounterMetricFamily(
            _PREFIX + "failures", "Attempts that failed, by reason.", labels=("state_directory", "target", "reason")
        )
        for shipper in self._shippers:
            labels = (self._state, shipper.name)
            up.add_metric(labels, float(shipper.failure is None))
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
