"""Verify or replay many bundles of a store on a cluster of Dask.

    runs/RUN/run.json           what the run does, and its bundles
    runs/RUN/<batch>.jsonl      the results of a batch, one line a bundle

The *worker* writes the results of its batch, so a run that was ended for any reason can be continued: bundles with
results are not checked again. A batch's name is made from its bundles. If the worker of a batch ends repeatedly, each
of its bundles is tried alone, to find the one that ends the worker.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from ergo_capture.config.shipping import TargetConfig
from ergo_capture.errors import ErgoCaptureError, ExitCode
from ergo_capture.extras import import_extra
from ergo_capture.fleet.check import FAILED, Item, Job, Result, check_item
from ergo_capture.objects.keys import RUNS
from ergo_capture.objects.opening import open_store
from ergo_capture.objects.port import ObjectMissing, ObjectStore, StoreAway
from ergo_capture.version import PROGRAM

#: The most bundles, and bytes of bundles, in a batch.
_BATCH_ITEMS: Final = 16
_BATCH_BYTES: Final = 64 << 20
#: How many batches are submitted at a time, for each thread of the workers.
_AHEAD: Final = 4
#: Seconds between the attempts of a worker whose store does not answer.
_PAUSES: Final = (1.0, 2.0, 4.0, 8.0)
#: Seconds to wait for the first worker.
_WORKER_SECONDS: Final = 60
_NAME_DIGITS: Final = 32


class RunPlan(msgspec.Struct, frozen=True):
    """The plan of a run: its job and its bundles."""

    job: Job
    items: tuple[Item, ...]
    #: The release that began it.
    program: str = PROGRAM


class Progress(msgspec.Struct):
    """The progress of a run."""

    #: The number of bundles with results.
    done: int
    #: Batches without results.
    left: list[tuple[Item, ...]]
    #: The reason why a bundle cannot be checked now, by the key of its manifest.
    unfinished: dict[str, str] = {}


def import_distributed() -> Any:
    """Return the module.

    Raises:
        ErgoCaptureError: the extra is not installed.
    """
    distributed = import_extra("fleet", "distributed", purpose="work on many bundles")
    # Silence it: it logs, with tracebacks, errors that it also raises or recovers from.
    for name in [*logging.root.manager.loggerDict]:
        if name.split(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)
    return distributed


def item_of(row: Mapping[str, Any]) -> Item:
    """Return the bundle of a row of the catalogue."""
    return Item(
        row["manifest"],
        row["object"],
        row["host"] or "",
        row["session"] or "",
        row["part"] or 1,
        row["graph"] or "",
        row["file_bytes"] or 0,
    )


def take_plan(store: ObjectStore, run: str, job: Job, items: Callable[[], Iterable[Item]]) -> RunPlan:
    """Return a run's plan: the one that its first start wrote, or else a new one, which is written.

    Args:
        store: the store.
        run: the run's name.
        job: what to do with each bundle.
        items: returns the bundles; called only if there is no plan.

    Raises:
        ErgoCaptureError: the plan is that of another job, or of another release.
    """
    key = _plan_key(run)
    try:
        plan = read_plan(store, run)
    except ObjectMissing:
        plan = RunPlan(job, tuple(items()))
        text = msgspec.json.encode(plan)
        store.put(key, [text], len(text))
        return plan
    if msgspec.structs.replace(plan.job, trusted=()) != msgspec.structs.replace(job, trusted=()):
        raise _of_another(run, "does something else")
    if plan.program != PROGRAM:
        raise _of_another(run, f"was begun by {plan.program}")
    return plan


def read_plan(store: ObjectStore, run: str) -> RunPlan:
    """Return a run's plan.

    Raises:
        ObjectMissing: there is no such run.
        ErgoCaptureError: it cannot be read.
    """
    key = _plan_key(run)
    try:
        text = b"".join(store.get(key))
    except ObjectMissing as error:
        hint = "name a run as `fleet verify` and `fleet replay` print it or --run gave it, and the store that it is in"
        raise ObjectMissing(
            f"read run '{run}': there is none in '{store.url}'", op="read run", path=key, hint=hint
        ) from error
    try:
        return msgspec.json.decode(text, type=RunPlan)
    except (ValueError, RecursionError) as error:
        raise ErgoCaptureError(
            f"read '{store.url}/{key}': {error}", op="read run", path=key, hint="begin another run with another --run"
        ) from error


def read_results(store: ObjectStore, run: str) -> Iterator[Result]:
    """Yield the results of a run, in no particular order; those of bundles that were done twice, once.

    Raises:
        StoreError: the store does not answer.
    """
    seen = set()
    for info in store.list(f"{RUNS}/{run}"):
        if not info.key.endswith(".jsonl"):
            continue
        for line in b"".join(store.get(info.key)).splitlines():
            result = msgspec.json.decode(line, type=Result)
            if result.item.manifest not in seen:
                seen.add(result.item.manifest)
                yield result


def progress_of(plan: RunPlan, run: str, store: ObjectStore) -> Progress:
    """Return the progress of a run, from the results in the store."""
    done = {info.key for info in store.list(f"{RUNS}/{run}")}
    progress = Progress(0, [])
    for batch in batches_of(plan.items):
        if result_key(run, batch) in done:
            progress.done += len(batch)
            continue
        single = [item for item in batch if result_key(run, (item,)) not in done]
        progress.done += len(batch) - len(single)
        # If some have results of their own, the batch was split.
        progress.left += [batch] if len(single) == len(batch) else [(item,) for item in single]
    return progress


def work_on(
    progress: Progress,
    job: Job,
    run: str,
    target: TargetConfig,
    client: Any,
    *,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
) -> None:
    """Let the workers of a cluster check the bundles of a run that have no results yet.

    Args:
        progress: the progress of the run; it is updated.
        job: what to do with each bundle.
        run: the run's name.
        target: the settings with which the workers open the store; they use their own credentials.
        client: a client of Dask.
        on_progress: called after each batch.

    Raises:
        ErgoCaptureError: the cluster is gone, has no workers, or has some of another release. Another call with the
            same run continues it.
    """
    distributed = import_distributed()
    store = open_store(target)
    workers = _require_workers(client)
    room = _AHEAD * workers
    queue = deque(progress.left)
    waiting: dict[Any, tuple[Item, ...]] = {}
    #: Bundles whose worker ended. Another bundle there may have ended it, so each is tried alone.
    suspects: deque[tuple[Item, ...]] = deque()
    finished = distributed.as_completed(loop=client.loop, with_results=False, raise_errors=False)

    def submit(batch: tuple[Item, ...]) -> None:
        key = result_key(run, batch)
        # Not pure: the same batch in two runs is two tasks.
        future = client.submit(work, target, job, batch, key, PROGRAM, pure=False, key=f"{key}-{time.monotonic_ns()}")
        waiting[future] = batch
        finished.add(future)

    while queue or waiting or suspects:
        is_alone = not queue and not waiting
        if is_alone:
            submit(suspects.popleft())
        while queue and len(waiting) < room:
            submit(queue.popleft())
        future = next(finished)
        batch = waiting.pop(future)
        if future.status in ("cancelled", "lost"):
            raise _cluster_gone(future.status)
        error = future.exception() if future.status == "error" else None
        if error is None:
            progress.done += len(batch)
        elif isinstance(error, StoreAway):
            progress.unfinished |= {item.manifest: error.message for item in batch}
        elif not isinstance(error, distributed.KilledWorker):
            raise error
        elif is_alone:
            put_results(store, result_key(run, batch), [Result(batch[0], FAILED, problem=_killed(error))])
            progress.done += 1
        elif len(batch) > 1:
            queue.extend((item,) for item in batch)
        else:
            suspects.append(batch)
        on_progress(progress)


def work(target: TargetConfig, job: Job, batch: Sequence[Item], key: str, program: str) -> int:
    """Check a batch and write its results; a worker calls it.

    Raises:
        ErgoCaptureError: the worker is of another release.
        StoreError: the store does not answer, or refuses.
    """
    if program != PROGRAM:
        raise ErgoCaptureError(
            f"work on bundles: a worker is {PROGRAM}, and the run is of {program}",
            op="work on bundles",
            hint="install the same release on every worker",
        )
    store = open_store(target)
    # Copies of a worker that is killed go with its directory, which the next worker sweeps.
    scratch = import_distributed().get_worker().local_directory
    results = [_patiently(check_item, store, item, job, scratch) for item in batch]
    _patiently(put_results, store, key, results)
    return len(results)


def put_results(store: ObjectStore, key: str, results: Iterable[Result]) -> None:
    """Write the results of a batch."""
    text = b"".join(msgspec.json.encode(result) + b"\n" for result in results)
    store.put(key, [text], len(text))


def result_key(run: str, batch: Sequence[Item]) -> str:
    """Return the key of a batch's results."""
    names = msgspec.json.encode([item.manifest for item in batch])
    return f"{RUNS}/{run}/{hashlib.sha256(names).hexdigest()[:_NAME_DIGITS]}.jsonl"


def batches_of(items: Iterable[Item]) -> Iterator[tuple[Item, ...]]:
    """Yield bundles in batches of a bounded number and size; a larger bundle is a batch of its own."""
    batch: list[Item] = []
    size = 0
    for item in items:
        if batch and (len(batch) == _BATCH_ITEMS or size + item.size > _BATCH_BYTES):
            yield tuple(batch)
            batch, size = [], 0
        batch.append(item)
        size += item.size
    if batch:
        yield tuple(batch)


@contextmanager
def connected(scheduler: str, workers: int, *, ca: str = "", cert: str = "", key: str = "") -> Iterator[Any]:
    """Connect to a scheduler, or start a cluster of processes on this machine; a context manager.

    Args:
        scheduler: ``tcp://HOST:PORT`` or ``tls://HOST:PORT``; empty to start a cluster.
        workers: the number of processes of a cluster that is started.
        ca: a PEM file with the authority of the cluster's certificates, for ``tls://``.
        cert: a PEM file with the client's certificate.
        key: a PEM file with its key.

    Raises:
        ErgoCaptureError: the scheduler does not answer.
    """
    distributed = import_distributed()
    security = None
    if scheduler.startswith("tls://"):
        security = distributed.Security(
            tls_ca_file=ca or None, tls_client_cert=cert or None, tls_client_key=key or None, require_encryption=True
        )
    if scheduler:
        try:
            client = distributed.Client(scheduler, security=security, timeout=10, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            raise ErgoCaptureError(
                f"connect to scheduler '{scheduler}': {_first_line(error)}",
                op="connect to scheduler",
                hint="give the address that `dask scheduler` prints; tls:// needs --ca, --cert and --key",
            ) from error
        with client:
            yield client
        return
    # Use temporary certificates: any process that can connect to a scheduler can run code as its user, and every user
    # of this machine can connect to loopback.
    with (
        distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="tls://127.0.0.1",
            dashboard_address=None,
            # Use any free port: if another run has the default one, there is a warning.
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            security=True,
            silence_logs=50,
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _patiently(function: Callable[..., Any], *arguments: Any) -> Any:
    for pause in _PAUSES:
        try:
            return function(*arguments)
        except StoreAway:
            time.sleep(pause)
    return function(*arguments)


def _require_workers(client: Any) -> int:
    """Return the number of the workers' threads, at least one."""
    try:
        client.wait_for_workers(1, timeout=_WORKER_SECONDS)
    except TimeoutError as error:
        raise ErgoCaptureError(
            f"work on bundles: the scheduler had no worker within {_WORKER_SECONDS} s",
            op="work on bundles",
            hint="start some with `dask worker ADDRESS`, where ergo-capture is installed",
        ) from error
    threads: int = sum(client.nthreads().values())
    return max(1, threads)


def _killed(error: Any) -> str:
    return f"its worker ended repeatedly: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _cluster_gone(status: str) -> ErgoCaptureError:
    return ErgoCaptureError(
        f"work on bundles: the scheduler is gone ({status})",
        op="work on bundles",
        hint="start it and run the same command again, which continues the run",
        exit_code=ExitCode.FAILED,
    )


def _plan_key(run: str) -> str:
    return f"{RUNS}/{run}/run.json"


def _of_another(run: str, what: str) -> ErgoCaptureError:
    return ErgoCaptureError(
        f"continue run '{run}': it {what}",
        op="continue run",
        hint="begin another run with another --run",
        exit_code=ExitCode.USAGE,
    )
