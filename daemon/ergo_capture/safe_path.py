"""Keep the Python processes that this one starts from importing modules of the current directory.

``python -m`` searches the current directory first. A ``queue.py`` or ``click.py`` there would be run by the worker that
composes bundles.
"""

from __future__ import annotations

import os
from typing import Final

_VARIABLE: Final = "PYTHONSAFEPATH"
#: The value of the variable: any text has the same effect; this one shows that it was set here.
_OURS: Final = "ergo-capture"


def protect_children() -> None:
    """Start every further Python process as with ``python -P``."""
    if not os.environ.get(_VARIABLE):
        os.environ[_VARIABLE] = _OURS


def inherited_environment() -> dict[str, str]:
    """Return the environment without that setting, for the user's programs, which may import modules beside them."""
    return {name: value for name, value in os.environ.items() if (name, value) != (_VARIABLE, _OURS)}
