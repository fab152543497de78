"""Check one bundle of a store: what a task of a cluster does. Synchronous: a worker has a thread and no event loop."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from ergo_capture.bundle.names import manifest_path
from ergo_capture.bundle.proof import compare_with_manifest
from ergo_capture.bundle.reader.stream import open_bundle
from ergo_capture.bundle.verify import Verdict, verify_stream
from ergo_capture.engine.replaying import EngineFailed, ReplayOptions, Watcher
from ergo_capture.engine.spec import replay_with
from ergo_capture.errors import ErgoCaptureError
from ergo_capture.kernel.explanation import to_builtins
from ergo_capture.objects.fetching import fetch_object
from ergo_capture.objects.keys import decode_shipped_manifest
from ergo_capture.objects.port import ObjectStore, StoreAway, StoreRefused

#: Outcomes, the worst first.
UNSOUND: Final = "unsound"
#: Nothing is known of the bundle: the engine failed, or the worker that had it ended.
FAILED: Final = "failed"
DIVERGED: Final = "diverged"
OK: Final = "ok"
OUTCOMES: Final = (UNSOUND, FAILED, DIVERGED, OK)


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
    """What to do with each bundle."""

    #: What runs the episodes, as ``engine_from`` takes it; empty to verify.
    engine: str = ""
    #: Seconds that the engine may take for one attempt.
    timeout: float = 300.0


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was found of a bundle."""

    item: Item
    #: One of ``OUTCOMES``.
    outcome: str
    events: int = 0
    decisions: int = 0
    #: What is wrong, as a sentence.
    problem: str = ""
    #: The first decision that differs, as JSON types.
    divergence: Any = None
    notes: tuple[str, ...] = ()
    #: How long it took, the copy out of the store included.
    seconds: float = 0.0


def check_item(store: ObjectStore, item: Item, job: Job) -> Result:
    """Copy a bundle and its manifest out of the store, compare the two, and verify or replay the bundle.

    Raises:
        StoreAway: the store does not answer; nothing is known of the bundle.
        StoreRefused: as ``StoreAway``.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ergo-capture-fleet-") as folder:
        try:
            bundle = _fetch(store, item, Path(folder))
            compared = compare_with_manifest(bundle)
            assert compared is not None
            if compared.problem is not None:
                raise ErgoCaptureError(compared.in_words.replace(f"'{compared.path}'", f"'{item.manifest}'"))
            found = _verify(bundle, item) if not job.engine else _replay(bundle, item, job)
        except (StoreAway, StoreRefused):
            raise
        except EngineFailed as error:
            found = Result(item, FAILED, problem=error.message)
        except ErgoCaptureError as error:
            # The path is one of this worker, and gone.
            found = Result(item, UNSOUND, problem=error.message.replace(f"{folder}/", ""))
        except Exception as error:  # noqa: BLE001 - one bundle must not end the run of a hundred thousand
            found = Result(item, FAILED, problem=f"{type(error).__name__}: {error}")
    return msgspec.structs.replace(found, seconds=round(time.monotonic() - began, 3))


def _fetch(store: ObjectStore, item: Item, folder: Path) -> Path:
    """Write the bundle under the name that its manifest states, with the manifest beside it."""
    try:
        shipped = decode_shipped_manifest(b"".join(store.get(item.manifest)))
        name = shipped.manifest["bundle"]
    except (ValueError, KeyError, RecursionError) as error:
        raise ErgoCaptureError(f"'{item.manifest}' is not the manifest of a shipped bundle: {error}") from error
    if not isinstance(name, str) or Path(name).name != name or not name:
        raise ErgoCaptureError(f"'{item.manifest}' names a bundle {name!r}, which is not the name of a file")
    if shipped.key != item.object:
        raise ErgoCaptureError(f"'{item.manifest}' is that of '{shipped.key}', and '{item.object}' was asked for")
    bundle = folder / name
    fetch_object(store, item.object, bundle)
    manifest_path(bundle).write_bytes(msgspec.json.encode(shipped.manifest))
    return bundle


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
