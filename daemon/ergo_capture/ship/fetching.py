"""Fetch bundles from a store: find them by session or hash, download them, and compare them with their keys."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from ergo_capture.bundle.names import (
    BUNDLE_SUFFIX,
    COMPRESSED_SUFFIX,
    MANIFEST_SUFFIX,
    REST_SUFFIX,
    SEAL_SUFFIX,
    safe_name,
)
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.objects.fetching import fetch_object
from ergo_capture.objects.keys import (
    MANIFESTS,
    ManifestKey,
    ShippedManifest,
    decode_shipped_manifest,
    object_key,
    parse_manifest_key,
    sha256_of,
    sha256_of_rest,
)
from ergo_capture.objects.port import ObjectStore
from ergo_capture.storage.atomic import write_bytes_atomic

#: The largest number of bundles that one name may stand for: all are downloaded before the first is read.
MAX_BUNDLES: Final = 1000


def find_session(store: ObjectStore, session: str, *, host: str = "", date: str = "") -> list[str]:
    """Return the keys of the manifests of a session's parts, by date and then by name.

    Args:
        store: the store.
        session: the session's id.
        host: the name of the host that shipped it; empty for any.
        date: the date of its end, YYYY-MM-DD; empty for any, for which the manifests of all dates are listed.
    """
    stem = safe_name(session)
    found: list[str] = []
    dates = [f"date={date}"] if date else store.folders(MANIFESTS)
    for folder in dates:
        below = f"{MANIFESTS}/{folder}"
        hosts = [f"host={safe_name(host)}"] if host else store.folders(below)
        for name in hosts:
            for info in store.list(f"{below}/{name}"):
                key = parse_manifest_key(info.key)
                if key is not None and _is_part(key, stem):
                    found.append(info.key)
    return found


def _is_part(key: ManifestKey, stem: str) -> bool:
    # The number of a part may be followed by that of a bundle beside a finished one.
    return key.stem.startswith(stem) and re.fullmatch(r"(~\d+){0,2}", key.stem.removeprefix(stem), re.ASCII) is not None


def find_file(store: ObjectStore, sha256: str) -> list[str]:
    """Return the key of the bundle whose file has that SHA-256, if the store has it."""
    keys = (object_key(sha256, compressed=compressed) for compressed in (True, False))
    return [key for key in keys if store.head(key) is not None][:1]


def bundles_at(store: ObjectStore, key: str) -> Iterator[str]:
    """Yield the keys that a key or a prefix stands for: a bundle, a manifest, or all manifests or bundles below it.

    If both are below it, yield the manifests.
    """
    if sha256_of(key) is not None or parse_manifest_key(key) is not None:
        yield key
        return
    prefix = key if key.startswith((MANIFESTS, "objects")) else "/".join(filter(None, (key, MANIFESTS)))
    for info in store.list(prefix):
        if sha256_of(info.key) is not None or parse_manifest_key(info.key) is not None:
            yield info.key


def fetch(store: ObjectStore, key: str, directory: Path) -> Path:
    """Download a bundle, and its manifest if the key is the manifest's; return the bundle's path.

    The bundle's name is that in the manifest, or else its hash. An existing file is replaced only by the same content.

    Args:
        store: the store.
        key: a bundle's key, or a manifest's.
        directory: the destination; it is created if it is missing.

    Raises:
        StoreError: the store failed, or there is no such object.
        ErgoCaptureError: an object does not match its key, another file has the name, or a file cannot be written.
    """
    if parse_manifest_key(key) is None:
        return _download(store, key, directory / key.rpartition("/")[2])
    about, text = read_shipped_manifest(store, key)
    return fetch_described(store, key, about, text, directory)


def fetch_described(store: ObjectStore, key: str, about: ShippedManifest, text: bytes, directory: Path) -> Path:
    """Download the bundle that a manifest's object describes, with its manifest; return the bundle's path.

    Args:
        store: the store.
        key: the key of the manifest's object.
        about: the decoded object.
        text: the content of the manifest's file.
        directory: the destination; it is created if it is missing.

    Raises:
        StoreError: as ``fetch``.
        ErgoCaptureError: as ``fetch``.
    """
    name = Path(str(about.manifest.get("bundle", ""))).name
    stem = name.removesuffix(COMPRESSED_SUFFIX).removesuffix(BUNDLE_SUFFIX)
    if not stem or not name.removesuffix(COMPRESSED_SUFFIX).endswith(BUNDLE_SUFFIX):
        raise _damaged(store, key, f"it names the bundle {name!r}")
    suffix = COMPRESSED_SUFFIX if about.key.endswith(COMPRESSED_SUFFIX) else ""
    path = _download(store, about.key, directory / (stem + BUNDLE_SUFFIX + suffix))
    if about.rest is not None:
        _download(store, about.rest, directory / (stem + REST_SUFFIX))
    write_bytes_atomic(directory / (stem + MANIFEST_SUFFIX), text, what="manifest")
    if about.seal is not None:
        seal = msgspec.json.format(msgspec.json.encode(about.seal), indent=2) + b"\n"
        write_bytes_atomic(directory / (stem + SEAL_SUFFIX), seal, what="seal")
    return path


def read_shipped_manifest(store: ObjectStore, key: str) -> tuple[ShippedManifest, bytes]:
    """Return a manifest's object, and the content of the manifest's file.

    Raises:
        StoreError: the store failed, or there is no such object.
        ErgoCaptureError: it does not match its key.
    """
    parsed = parse_manifest_key(key)
    try:
        about = decode_shipped_manifest(b"".join(store.get(key)))
        text = about.text
    except (ValueError, RecursionError) as error:
        raise _damaged(store, key, str(error)) from error
    if parsed is not None and not hashlib.sha256(text).hexdigest().startswith(parsed.digits):
        raise _damaged(store, key, "its SHA-256 is not that of its key")
    return about, text


def _download(store: ObjectStore, key: str, path: Path) -> Path:
    expected = sha256_of(key) or sha256_of_rest(key)
    if expected is None:
        raise _damaged(store, key, "that is not a bundle's key")
    if os.path.lexists(path):
        if path.is_file() and _sha256(path) == expected:
            return path
        raise ErgoCaptureError(
            f"fetch '{store.url}/{key}': '{path}' exists and is another file",
            op="fetch bundle",
            path=path,
            hint="move it away, or name another directory with -o",
        )
    fetch_object(store, key, path)
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(store: ObjectStore, key: str, problem: str) -> ErgoCaptureError:
    return ErgoCaptureError(
        f"fetch '{store.url}/{key}': {problem}",
        op="fetch bundle",
        path=f"{store.url}/{key}",
        hint="`ergo-capture ship audit --read` on the host that shipped it checks whether the store lost it",
    )
