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

from ergo_capture.bundle.manifest import ManifestError, read_manifest_fields
from ergo_capture.bundle.names import MANIFEST_SUFFIX

#: Follows a manifest's name while its bundle is being deleted.
PRUNING_SUFFIX: Final = ".pruning"
#: Greater numbers are ignored: a manifest that was edited must not use up the numbers.
_MOST: Final = 1 << 53


@dataclass(slots=True)
class Sequence:
    """The greatest number that was given."""

    greatest: int = 0


def greatest_sequence(bundles: Path) -> int:
    """Return the greatest number in the manifests below a directory, 0 where there is none.

    A manifest that cannot be read has no number.
    """
    return max(_numbers(bundles), default=0)


def _numbers(bundles: Path) -> Iterator[int]:
    with suppress(OSError):
        for folder in list(os.scandir(bundles)):
            with suppress(OSError):
                for entry in list(os.scandir(folder.path)) if folder.is_dir() else ():
                    if entry.name.removesuffix(PRUNING_SUFFIX).endswith(MANIFEST_SUFFIX):
                        with suppress(ManifestError, OSError):
                            number = read_manifest_fields(Path(entry.path)).get("sequence")
                            if type(number) is int and number < _MOST:
                                yield number
