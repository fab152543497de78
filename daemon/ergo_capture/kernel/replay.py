"""Runs a bundle's events again: what does the same input lead to now."""

from __future__ import annotations

from ergo_capture.kernel.ports import MemoryDecisionLog, RuntimeInvoker
from ergo_capture.kernel.records import CaptureBundle, EpisodeInvocationRecord
from ergo_capture.kernel.supervisor import Supervisor
from ergo_capture.kernel.validation import rehydrate, validate_bundle, validate_bundle_strict


def replay_checked(bundle: CaptureBundle, runtime: RuntimeInvoker) -> list[EpisodeInvocationRecord]:
    """Validate, then run every event through a fresh supervisor (``replay::replay_checked``).

    Raises:
        ReplayError: as ``validate_bundle``, or InvalidPayload.
    """
    validate_bundle(bundle)
    return _replay(bundle, runtime)


def replay_checked_strict(
    bundle: CaptureBundle,
    runtime: RuntimeInvoker,
    *,
    expected_adapter_provenance: str,
    expected_runtime_provenance: str,
) -> list[EpisodeInvocationRecord]:
    """As ``replay_checked``, after the strict validation (``replay::replay_checked_strict``).

    Raises:
        ReplayError: as ``validate_bundle_strict``, or InvalidPayload.
    """
    validate_bundle_strict(
        bundle,
        expected_adapter_provenance=expected_adapter_provenance,
        expected_runtime_provenance=expected_runtime_provenance,
    )
    return _replay(bundle, runtime)


def _replay(bundle: CaptureBundle, runtime: RuntimeInvoker) -> list[EpisodeInvocationRecord]:
    log = MemoryDecisionLog()
    supervisor = Supervisor(bundle.graph_id, bundle.config, log, runtime)
    for record in bundle.events:
        supervisor.drive(rehydrate(record))
    return log.records()
