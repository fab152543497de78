"""A capture daemon for the Ergo graph engine, and its semantics as a library.

The names are imported at first use: a command that needs none of them starts in half the time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ergo_capture.version import __version__

if TYPE_CHECKING:
    from ergo_capture.library import *  # noqa: F403

__all__ = [  # noqa: F405 - of library.py, at run time by __getattr__
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


def __getattr__(name: str) -> Any:
    """Import the library, and return one of its names."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    library = import_module(f"{__name__}.library")
    globals().update({each: getattr(library, each) for each in __all__})
    return globals()[name]


def __dir__() -> list[str]:
    """Return the public names, loaded or not."""
    return sorted({*globals(), *__all__})
