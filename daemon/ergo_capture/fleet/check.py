"""Check one bundle of a store; a task of the cluster calls it. It is synchronous: workers have no event loop."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from ergo_capture import telemetry
from ergo_capture.bundle.proof import compare_with_manifest
from ergo_capture.bundle.reader.stream import open_bundle
from ergo_capture.bundle.verify import Verdict, verify_stream
from ergo_capture.engine.replaying import EngineFailed, ReplayOptions, Watcher
from ergo_capture.engine.spec import replay_with
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.explanation import to_builtins
from ergo_capture.objects.keys import ShippedManifest, parse_manifest_key
from ergo_capture.objects.port import ObjectStore, StoreAway, StoreRefused
from ergo_capture.seal.chain import decode_seal
from ergo_capture.seal.keys import is_signed
from ergo_capture.ship.fetching import fetch_described, read_shipped_manifest

#: Outcomes, the worst first.
UNSOUND: Final = "unsound"
#: The bundle could not be checked: the engine failed, or the worker ended.
FAILED: Final = "failed"
DIVERGED: Final = "diverged"
OK: Final = "ok"
OUTCOMES: Final = (UNSOUND, FAILED, DIVERGED, OK)
#: How often a bundle must be found unsound: what is read may have been damaged on its way.
_UNSOUND_TIMES: Final = 3


class Item(msgspec.Struct, frozen=True):
    """One bundle of a run."""

    #: The keys of its manifest and of the bundle.
    manifest: str
    object: str
    host: str
    session: str
    part: int
    graph: str
    #: Bytes of the bundle's file.
    size: int


class Job(msgspec.Struct, frozen=True):
    """The work that is done with each bundle."""

    #: The engine that runs the episodes, as ``engine_from`` takes it; empty to verify.
    engine: str = ""
    #: The engine's time-out for one attempt, in seconds.
    timeout: float = 300.0
    #: The trusted public keys of seals; empty if seals are not checked.
    trusted: tuple[str, ...] = ()


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result of checking a bundle."""

    item: Item
    #: One of ``OUTCOMES``.
    outcome: str
    events: int = 0
    decisions: int = 0
    #: The problem, as a sentence; empty for none.
    problem: str = ""
    #: The first decision that differs, as JSON types.
    divergence: Any = None
    notes: tuple[str, ...] = ()
    #: The duration in seconds, including the download.
    seconds: float = 0.0


def check_item(store: ObjectStore, item: Item, job: Job, scratch: str) -> Result:
    """Download a bundle and its manifest, compare the two, and verify or replay the bundle.

    A bundle that is found unsound is downloaded and checked again, because a byte may have changed on its way.

    Args:
        store: the store.
        item: the bundle.
        job: what to do with it.
        scratch: the directory for the copy.

    Raises:
        StoreAway: the store does not answer; the bundle was not checked.
        StoreRefused: as ``StoreAway``.
    """
    began = time.monotonic()
    for _ in range(_UNSOUND_TIMES):
        found = _check_copy(store, item, job, scratch)
        if found.outcome != UNSOUND:
            break
    return msgspec.structs.replace(found, seconds=round(time.monotonic() - began, 3))


def _check_copy(store: ObjectStore, item: Item, job: Job, scratch: str) -> Result:
    with tempfile.TemporaryDirectory(prefix="ergo-capture-fleet-", dir=scratch) as folder:
        try:
            if parse_manifest_key(item.manifest) is None:
                raise ErgoCaptureError(f"'{item.manifest}' is not the key of a manifest")
            about, text = read_shipped_manifest(store, item.manifest)
            if about.key != item.object:
                raise ErgoCaptureError(f"'{item.manifest}' is the manifest of '{about.key}', not of '{item.object}'")
            _check_seal(about, text, job)
            bundle = fetch_described(store, item.manifest, about, text, Path(folder))
            compared = compare_with_manifest(bundle)
            assert compared is not None
            if compared.problem is not None:
                raise ErgoCaptureError(compared.in_words.replace(f"'{compared.path}'", f"'{item.manifest}'"))
            return _verify(bundle, item) if not job.engine else _replay(bundle, item, job)
        except (StoreAway, StoreRefused):
            raise
        except EngineFailed as error:
            return Result(item, FAILED, problem=error.message)
        except ErgoCaptureError as error:
            # Remove the worker's temporary path from the message.
            return Result(item, UNSOUND, problem=error.message.replace(f"{folder}/", ""))
        except Exception as error:  # noqa: BLE001 - one bundle must not end a run of many
            return Result(item, FAILED, problem=f"{type(error).__name__}: {error}")


def _check_seal(about: ShippedManifest, text: bytes, job: Job) -> None:
    if not job.trusted:
        return
    seal = decode_seal(msgspec.json.encode(about.seal))
    if seal is None:
        # The bundle may be older than the key; the check of the chain decides.
        return
    if seal.key not in job.trusted or not is_signed(seal.key, seal.signature, seal.content):
        raise ErgoCaptureError("its seal is not trusted: it was signed with another key, or changed")
    if seal.manifest_sha256 != hashlib.sha256(text).hexdigest():
        raise ErgoCaptureError("its manifest is not the one that was sealed")


def _verify(bundle: Path, item: Item) -> Result:
    with open_bundle(bundle) as stream:
        verdict: Verdict = verify_stream(stream)
    if verdict.complaint is not None:
        raise verdict.complaint
    found = verdict.divergence
    return Result(
        item,
        OK if found is None else DIVERGED,
        verdict.events,
        verdict.decisions,
        problem="" if found is None else f"decision {found.index}, event {found.event_id!r}, field {found.field}",
        divergence=None
        if found is None
        else {
            "index": found.index,
            "event_id": found.event_id,
            "field": found.field,
            "captured": to_builtins(found.captured),
            "replayed": to_builtins(found.replayed),
        },
        notes=verdict.notes,
    )


def _replay(bundle: Path, item: Item, job: Job) -> Result:
    # Send the log lines of engines to standard error; by default structlog prints them among the results.
    telemetry.configure("warning", "console")
    with open_bundle(bundle) as stream:
        replayed = asyncio.run(replay_with(job.engine, stream, ReplayOptions(timeout=job.timeout), Watcher()))
    first = replayed.explanations[0] if replayed.explanations else None
    return Result(
        item,
        OK if first is None else DIVERGED,
        replayed.decisions,
        replayed.decisions,
        problem="" if first is None else f"decision {first.index}, event {first.event_id!r}, field {first.field}",
        divergence=None if first is None else msgspec.to_builtins(first),
        notes=replayed.notes,
    )
