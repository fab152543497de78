"""What this program calls itself.

Owns: the version and the name that journals, manifests and greetings bear.
Not here: what they say besides.
"""

from __future__ import annotations

from typing import Final

__version__: Final = "0.1.0"
PROGRAM: Final = f"ergo-capture {__version__}"
