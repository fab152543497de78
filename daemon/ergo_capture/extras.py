"""Import optional packages."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ergo_capture.errors import ErgoCaptureError, ExitCode


def import_extra(extra: str, *modules: str, purpose: str) -> Any:
    """Import modules of an optional package, and return the first one.

    Args:
        extra: the extra of this distribution that installs it.
        modules: names of modules.
        purpose: the operation that needs them, as a verb phrase (``"open an object store"``).

    Raises:
        ErgoCaptureError: one cannot be imported; the hint installs the extra (exit code 78).
    """
    try:
        first, *_ = map(import_module, modules)
    except ImportError as error:
        raise ErgoCaptureError(
            f"{purpose}: a package of the extra `{extra}` cannot be imported: {error}",
            op=purpose,
            hint=f"pip install 'ergo-capture[{extra}]'",
            exit_code=ExitCode.CONFIG,
        ) from error
    return first
