"""The public names of the library; ``ergo_capture`` has all of them."""

from ergo_capture.bundle.format import (
    CaptureJsonStyle,
    decode_bundle,
    encode_bundle,
    read_capture_bundle,
    write_capture_bundle,
)
from ergo_capture.bundle.recorder import CapturingDecisionLog, CapturingSession
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.constraints import Constraints
from ergo_capture.kernel.effects import ActionEffect, compute_effect_hash
from ergo_capture.kernel.events import ExternalEvent, ExternalEventKind
from ergo_capture.kernel.fault_runtime import FaultRuntime
from ergo_capture.kernel.outcomes import Decision, ErrKind, RunTermination
from ergo_capture.kernel.ports import DecisionLog, MemoryDecisionLog, RunResult, RuntimeInvoker
from ergo_capture.kernel.records import CaptureBundle, EpisodeInvocationRecord, ExternalEventRecord
from ergo_capture.kernel.replay import (
    Divergence,
    ReplayError,
    compare_decisions,
    first_divergence,
    rederive,
    replay_checked,
    replay_checked_strict,
    validate_bundle,
    validate_bundle_strict,
)
from ergo_capture.kernel.supervisor import Supervisor
from ergo_capture.kernel.time import EventTime
from ergo_capture.storage.write_error import CaptureWriteError
from ergo_capture.version import __version__

__all__ = [
    "ActionEffect",
    "CaptureBundle",
    "CaptureJsonStyle",
    "CaptureWriteError",
    "CapturingDecisionLog",
    "CapturingSession",
    "Constraints",
    "Decision",
    "DecisionLog",
    "Divergence",
    "EpisodeInvocationRecord",
    "ErgoCaptureError",
    "ErrKind",
    "EventTime",
    "ExternalEvent",
    "ExternalEventKind",
    "ExternalEventRecord",
    "FaultRuntime",
    "MemoryDecisionLog",
    "ReplayError",
    "RunResult",
    "RunTermination",
    "RuntimeInvoker",
    "Supervisor",
    "__version__",
    "compare_decisions",
    "compute_effect_hash",
    "decode_bundle",
    "encode_bundle",
    "first_divergence",
    "read_capture_bundle",
    "rederive",
    "replay_checked",
    "replay_checked_strict",
    "validate_bundle",
    "validate_bundle_strict",
    "write_capture_bundle",
]
