"""The program's name and version."""

from __future__ import annotations

from typing import Final

__version__: Final = "0.2.0"
PROGRAM: Final = f"ergo-capture {__version__}"
