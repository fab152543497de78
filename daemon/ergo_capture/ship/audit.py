"""Check that a store still holds the bundles with receipts, and that bundles can be shipped to a target."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from ergo_capture.bundle.catalogue import StoredBundle
from ergo_capture.bundle.names import safe_name
from ergo_capture.bundle.receipt import Receipt, read_receipt, receipt_path
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.objects.keys import (
    MANIFESTS,
    ShippedManifest,
    decode_shipped_manifest,
    parse_manifest_key,
    sha256_of,
    sha256_of_rest,
)
from ergo_capture.objects.port import ObjectMissing, ObjectStore, StoreError
from ergo_capture.seal.chain import Sealed, decode_seal
from ergo_capture.ship.fetching import read_shipped_manifest
from ergo_capture.storage import directory_lock

_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class Finding:
    """The finding for one object."""

    #: The bundle on this host; None for one that only the store has.
    bundle: Path | None
    key: str
    #: The problem, in words; None if the store has it.
    problem: str | None


def audit_receipts(
    store: ObjectStore, target: str, bundles: Iterable[StoredBundle], *, read: bool = False, drop: bool = True
) -> Iterator[Finding]:
    """Yield a finding for each bundle with a receipt.

    Args:
        store: the target's store.
        target: its name.
        bundles: bundles with valid receipts of the target.
        read: whether to read every object and compare its hash, rather than only its size.
        drop: whether to delete the receipts of bundles that the store lost, so that they are shipped again.

    Raises:
        StoreError: the store failed; bundles that were not checked keep their receipts.
    """

    def look(bundle: StoredBundle) -> Finding | None:
        path = receipt_path(bundle.path, target)
        receipt = read_receipt(path)
        if receipt is None:
            return None
        problem = _problem(store, receipt, read=read)
        if problem is not None and drop:
            with directory_lock(path.parent), suppress(FileNotFoundError):
                path.unlink()
        return Finding(bundle.path, receipt.key, problem)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield from (finding for finding in pool.map(look, bundles) if finding is not None)


def _problem(store: ObjectStore, receipt: Receipt, *, read: bool) -> str | None:
    try:
        about, _ = read_shipped_manifest(store, receipt.manifest_key)
    except ObjectMissing:
        return f"the store has no manifest '{receipt.manifest_key}'"
    except StoreError:
        raise
    except ErgoCaptureError as error:
        return error.message
    if about.key != receipt.key:
        return f"its manifest in the store names '{about.key}'"
    info = store.head(receipt.key)
    if info is not None and info.size != receipt.bytes:
        return f"it has {info.size} bytes in the store, and {receipt.bytes} by the receipt"
    return _missing(store, about, read=read)


def _missing(store: ObjectStore, about: ShippedManifest, *, read: bool) -> str | None:
    """Return which object named by a manifest's object a store lacks, in words; None if it has all of them."""
    for key in filter(None, (about.key, about.rest)):
        if store.head(key) is None:
            return f"the store has no such object, '{key}'"
        if read and _sha256(store, key) not in (sha256_of(key), sha256_of_rest(key)):
            return f"its SHA-256 is not that of its key, '{key}'"
    return None


def sealed_in(store: ObjectStore, host: str) -> Iterator[Sealed]:
    """Yield the bundles of a host that manifests in the store name, with their seals.

    Raises:
        StoreError: the store failed.
    """
    for key in _manifests_of(store, host):
        try:
            about = decode_shipped_manifest(b"".join(store.get(key)))
        except ObjectMissing:
            continue
        except (ValueError, RecursionError):
            yield Sealed(key, None, "", None)
            continue
        number = about.manifest.get("sequence")
        yield Sealed(
            key,
            number if isinstance(number, int) else None,
            hashlib.sha256(about.text).hexdigest(),
            decode_seal(msgspec.json.encode(about.seal)),
        )


def _manifests_of(store: ObjectStore, host: str) -> Iterator[str]:
    for date in store.folders(MANIFESTS):
        for info in store.list(f"{MANIFESTS}/{date}/host={safe_name(host)}"):
            if parse_manifest_key(info.key) is not None:
                yield info.key


def audit_store(store: ObjectStore, host: str, *, read: bool = False) -> Iterator[Finding]:
    """Yield a finding for every bundle of this host that a manifest in the store names.

    Args:
        store: the store.
        host: the name of the host.
        read: whether to read every object and compare its hash.

    Raises:
        StoreError: the store failed.
    """
    for key in _manifests_of(store, host):
        try:
            about, _ = read_shipped_manifest(store, key)
        except ObjectMissing:
            continue
        except StoreError:
            raise
        except ErgoCaptureError as error:
            yield Finding(None, key, error.message)
            continue
        yield Finding(None, about.key, _missing(store, about, read=read))


def _sha256(store: ObjectStore, key: str) -> str:
    digest = hashlib.sha256()
    for block in store.get(key):
        digest.update(block)
    return digest.hexdigest()


def probe(store: ObjectStore, host: str) -> Iterator[str]:
    """Write, read and list a small object; after each step, yield its description.

    Raises:
        StoreError: a step failed.
        ErgoCaptureError: the store returns another content than was written.
    """
    key = f"probe/host={safe_name(host)}.json"
    content = f'{{"host":"{safe_name(host)}","at":"{datetime.now(UTC).isoformat()}"}}\n'.encode()
    store.put(key, [content], len(content))
    yield f"wrote {key}"
    if b"".join(store.get(key)) != content:
        raise ErgoCaptureError(
            f"check '{store.url}': the object '{key}' differs from what was written",
            op="check target",
            path=store.url,
            hint="do not trust the store, or the network to it",
        )
    yield "read it back"
    if key not in [info.key for info in store.list("probe")]:
        raise ErgoCaptureError(
            f"check '{store.url}': the object '{key}' is not listed",
            op="check target",
            path=store.url,
            hint="the store's lists are late; `bundles fetch` and `ship audit --store` may miss new bundles",
        )
    yield "listed it"
