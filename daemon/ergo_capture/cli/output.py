"""Standard output, as commands that may be the left side of a pipe need it.

Owns: writing a large text, finding the descriptor.
Not here: what becomes of a broken pipe (``app.py``).
"""

from __future__ import annotations

import sys
from typing import Final

#: Bytes that are written at a time.
_PIECE: Final = 64 << 10


def write_out(text: bytes) -> None:
    """Write all of it.

    Raises:
        BrokenPipeError: whoever reads it has gone.
    """
    # Why in pieces: of one large write only a part is gone, and no error comes, when the reader goes away.
    for start in range(0, len(text), _PIECE):
        sys.stdout.buffer.write(text[start : start + _PIECE])
    sys.stdout.buffer.flush()


def standard_output() -> int | None:
    """Its descriptor, if there is one: whoever runs us may have put something else in its place."""
    try:
        return sys.stdout.fileno()
    except (OSError, ValueError):
        return None
