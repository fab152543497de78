"""Keep the Python processes that this one starts from importing modules of the current directory.

``python -m`` puts the current directory in front of all other places. A ``queue.py`` or ``click.py`` that happens to lie
there would be run by the worker that composes bundles.
"""

from __future__ import annotations

import os
from typing import Final

_VARIABLE: Final = "PYTHONSAFEPATH"
#: Any text sets it; this one says that it was set here.
_OURS: Final = "ergo-capture"


def protect_children() -> None:
    """Start every further Python process as with ``python -P``."""
    if not os.environ.get(_VARIABLE):
        os.environ[_VARIABLE] = _OURS


def inherited_environment() -> dict[str, str]:
    """Return the environment without that: for the programs of others, which may import what lies beside them."""
    return {name: value for name, value in os.environ.items() if (name, value) != (_VARIABLE, _OURS)}
