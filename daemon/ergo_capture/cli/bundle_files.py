"""Bundle files from what a person names: files, directories, patterns.

Owns: ``bundles_in``, ``bundles_below``, what an empty name is.
Not here: finished bundles with their manifests (``bundle/catalogue.py``).
"""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ergo_capture.bundle.names import BUNDLE_SUFFIX, COMPRESSED_SUFFIX
from ergo_capture.bundle.reader.opening import list_files
from ergo_capture.errors import ErgoCaptureError, ExitCode

#: How the names of bundles end.
_SUFFIXES: Final = (BUNDLE_SUFFIX, BUNDLE_SUFFIX + COMPRESSED_SUFFIX)


def bundles_below(directory: Path) -> list[Path]:
    """Every file below the directory that is called as bundles are, sorted.

    Raises:
        OSError: one of the directories cannot be read.
    """
    named = (path for path in list_files(directory) if path.name.endswith(_SUFFIXES))
    # Why no pipe: nobody named it, and it would be waited for for ever. A link into nowhere is a bundle that is gone.
    return [path for path in named if path.is_file() or not path.exists()]


def refuse_empty(name: str) -> None:
    """Why: to the file system an empty name is the current directory, and a variable that is not set is none.

    Raises:
        ErgoCaptureError: it is empty.
    """
    if not name:
        raise ErgoCaptureError(
            "find bundles: a name is empty",
            op="find bundles",
            hint="is a variable of the shell not set? The current directory is '.'",
            exit_code=ExitCode.USAGE,
        )


def bundles_in(names: Iterable[str]) -> list[Path]:
    """The files that are named: each file, every bundle below each directory, whatever a pattern matches; sorted.

    Raises:
        ErgoCaptureError: a name stands for no file at all.
        OSError: a directory cannot be read.
    """
    found: dict[Path, None] = {}
    for name in names:
        refuse_empty(name)
        path = Path(name)
        if path.is_dir():
            below = bundles_below(path)
        elif path.exists() or not glob.has_magic(name):
            below = [path]
        else:
            below = [Path(match) for match in glob.glob(name, recursive=True)]  # noqa: PTH207 - it may be absolute
        if not below:
            raise ErgoCaptureError(
                f"find bundles: there is none at '{name}'",
                op="find bundles",
                path=name,
                hint=f"name bundle files, or directories that hold *{BUNDLE_SUFFIX}",
            )
        found |= dict.fromkeys(sorted(below))
    return list(found)
