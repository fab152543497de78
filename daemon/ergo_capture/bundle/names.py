"""Names of bundle files: ``STATE/bundles/GRAPH/SESSION.capture.json[.zst]``, and of the files beside it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

BUNDLE_SUFFIX: Final = ".capture.json"
MANIFEST_SUFFIX: Final = ".manifest.json"
#: Ends the name of the file with the events that were left over.
REST_SUFFIX: Final = ".rest.jsonl"
#: Ends the name of the index (``reader/index.py``).
INDEX_SUFFIX: Final = ".index.json"
#: Ends the name of the file with the seal of a manifest (``seal/chain.py``).
SEAL_SUFFIX: Final = ".seal.json"
#: Ends the name of the file with the result of shadow verification.
VERIFIED_SUFFIX: Final = ".verified.json"
#: The file of the tombstones, in the directory of the bundles: ``seal/keeper.py``.
TOMBSTONES: Final = "tombstones.jsonl"
#: Follows ``BUNDLE_SUFFIX`` in the name of a compressed bundle.
COMPRESSED_SUFFIX: Final = ".zst"
#: Longest name made of an id, in bytes; leaves room for ``.manifest.json.4194304.123456.tmp``.
MAX_NAME: Final = 180


def safe_name(text: str) -> str:
    """Return a file name for an arbitrary id; different ids have different names.

    The name has no slash, no leading dot and no ``~``. Every character that is not a letter, a digit or one of
    ``-_.`` becomes ``%XX``. The empty id becomes ``~``. A name longer than ``MAX_NAME`` is cut, and ends in ``~`` and
    the first 32 digits of the id's SHA-256.
    """
    name = quote(text, safe="")
    if not name:
        return "~"
    name = name.replace("~", "%7E")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if len(name) > MAX_NAME:
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        name = f"{name[: MAX_NAME - 33]}~{digest}"
    return name


def bundle_name(session: str, part: int, *, compressed: bool = False) -> str:
    """Return the file name of a session's bundle; from the second part on, ``~PART`` follows the session."""
    suffix = ("" if part == 1 else f"~{part}") + BUNDLE_SUFFIX + (COMPRESSED_SUFFIX if compressed else "")
    return safe_name(session) + suffix


def names_beside(bundle: Path, part: int) -> Iterator[Path]:
    """Yield names for a bundle that must not have the name ``bundle``: ``SESSION~PART~2``, ``SESSION~PART~3``, ...

    No part of any session has such a name.
    """
    suffix = bundle.name.removeprefix(bundle_stem(bundle))
    session = bundle_stem(bundle).removesuffix(f"~{part}" if part > 1 else "")
    for number in itertools.count(2):
        yield bundle.with_name(f"{session}~{part}~{number}{suffix}")


def bundle_path(state: Path, graph: str, session: str, part: int, *, compressed: bool = False) -> Path:
    """Return the path of a bundle in a state directory."""
    return state / "bundles" / safe_name(graph) / bundle_name(session, part, compressed=compressed)


def bundle_stem(bundle: Path) -> str:
    """Return the name of a bundle file without its suffixes; the names of its manifest and side files begin with it."""
    return bundle.name.removesuffix(COMPRESSED_SUFFIX).removesuffix(BUNDLE_SUFFIX)


def manifest_path(bundle: Path) -> Path:
    """Return the path of the manifest beside a bundle."""
    return bundle.with_name(bundle_stem(bundle) + MANIFEST_SUFFIX)


def index_path(bundle: Path) -> Path:
    """Return the path of the index beside a bundle."""
    return bundle.with_name(bundle_stem(bundle) + INDEX_SUFFIX)


def seal_path(bundle: Path) -> Path:
    """Return the path of the seal beside a bundle."""
    return bundle.with_name(bundle_stem(bundle) + SEAL_SUFFIX)


def verified_path(bundle: Path) -> Path:
    """Return the path of the file beside a bundle with the result of shadow verification."""
    return bundle.with_name(bundle_stem(bundle) + VERIFIED_SUFFIX)


def side_files(bundle: Path) -> list[Path]:
    """Return the paths of the files that move with a bundle, besides its manifest; some may not exist."""
    return [rest_path(bundle), index_path(bundle), seal_path(bundle), verified_path(bundle)]


def rest_path(bundle: Path) -> Path:
    """Return the path of the file with the events that were left over, beside a bundle."""
    return bundle.with_name(bundle_stem(bundle) + REST_SUFFIX)


def other_form(bundle: Path) -> Path:
    """Return the compressed form's path for an uncompressed bundle, and the reverse."""
    if bundle.name.endswith(COMPRESSED_SUFFIX):
        return bundle.with_name(bundle.name.removesuffix(COMPRESSED_SUFFIX))
    return bundle.with_name(bundle.name + COMPRESSED_SUFFIX)
