"""Bundle files from what a person names: files, directories, patterns.

Owns: ``bundles_in``.
Not here: finished bundles with their manifests (``capture/catalogue.py``).
"""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

from ergo_capture.capture.manifest import BUNDLE_SUFFIX
from ergo_capture.capture.opening import COMPRESSED_SUFFIX
from ergo_capture.errors import ErgoCaptureError


def bundles_in(names: Iterable[str]) -> list[Path]:
    """The files that are named: each file, every bundle below each directory, whatever a pattern matches; sorted.

    Raises:
        ErgoCaptureError: a name stands for no file at all.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            below = [*path.rglob(f"*{BUNDLE_SUFFIX}"), *path.rglob(f"*{BUNDLE_SUFFIX}{COMPRESSED_SUFFIX}")]
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
