"""The number of each finished bundle in its manifest: its place in the order of publication.

A number is one above the greatest in the manifests, in those of bundles that are being deleted, and in the journal's
PUBLISHED frames. It does not depend on a clock.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ergo_capture.bundle.manifest import read_sequence
from ergo_capture.bundle.names import MANIFEST_SUFFIX

#: Follows a manifest's name while its bundle is being deleted.
PRUNING_SUFFIX: Final = ".pruning"


@dataclass(slots=True)
class Sequence:
    """The greatest number that was given."""

    greatest: int = 0


def greatest_sequence(bundles: Path) -> int:
    """Return the greatest number in the manifests below a directory, 0 where there is none."""
    return max((number for number, _ in numbered_manifests(bundles) if number is not None), default=0)


def numbered_manifests(bundles: Path) -> Iterator[tuple[int | None, Path]]:
    """Yield the manifests below a directory, those of bundles that are being deleted too, each with its number.

    A manifest that has no number, or cannot be read, comes with None.
    """
    with suppress(OSError):
        for folder in list(os.scandir(bundles)):
            with suppress(OSError):
                for entry in list(os.scandir(folder.path)) if folder.is_dir() else ():
                    if entry.name.removesuffix(PRUNING_SUFFIX).endswith(MANIFEST_SUFFIX):
                        path = Path(entry.path)
                        yield read_sequence(path), path
