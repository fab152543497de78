"""Files that are not whole yet: ``{name}.{pid}.{n}.tmp``."""

from __future__ import annotations

import itertools
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

_counter: Final = itertools.count()
_TEMPORARY: Final = re.compile(r".+\.(\d+)\.\d+\.tmp")


def temporary_for(destination: Path) -> Path:
    """A name for what is to be ``destination``, beside it; another one each time."""
    return destination.with_name(f"{destination.name}.{os.getpid()}.{next(_counter)}.tmp")


def sweep_temporaries(directory: Path) -> list[Path]:
    """Remove the temporaries that a kill left in a directory; returns them.

    Only files of our own naming go, and only those whose process is gone; the caller holds the daemon's
    lock, so that its own number in a name is one of an earlier life.
    """
    swept = []
    for path in sorted(directory.iterdir()):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or not path.is_file() or path.is_symlink():
            continue
        if int(match[1]) != os.getpid() and _is_alive(int(match[1])):
            continue
        with suppress(FileNotFoundError):
            path.unlink()
            swept.append(path)
    return swept


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
