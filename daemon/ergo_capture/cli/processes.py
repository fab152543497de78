"""Process several captures at once, in several processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

import click

from ergo_capture.bundle.proving import checking
from ergo_capture.errors import ErgoCaptureError

if TYPE_CHECKING:
    from ergo_capture.cli.support.captures import Capture

Result = TypeVar("Result")

#: The largest number of captures that a process takes at a time.
_MOST_AT_A_TIME: Final = 16


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))


def jobs_default(_context: click.Context, _option: click.Parameter, value: int | None) -> int:
    """Return the number of processes; by default one for each core."""
    return cores() if value is None else value


jobs_option: Final = click.option(
    "--jobs",
    "-j",
    type=click.IntRange(min=1),
    callback=jobs_default,
    metavar="N",
    help="Processes that work at once; by default as many as there are cores.",
)


def are_worth_processes(runs: Sequence[Capture], jobs: int) -> bool:
    """Return whether several processes read these bundles faster than one."""
    if jobs == 1 or len(runs) < 2 or any(run.bundle is None for run in runs):
        return False
    return sum(sizes_of(runs)) >= checking.WORTH_A_PROCESS


def sizes_of(runs: Sequence[Capture]) -> list[int]:
    """Return the sizes of the runs' bundle files, in bytes; 0 for runs without a file."""
    sizes = []
    for run in runs:
        try:
            sizes.append(0 if run.bundle is None else run.bundle.stat().st_size)
        except OSError:
            # Reading it reports the error.
            sizes.append(0)
    return sizes


def in_order(
    one: Callable[[Capture], Result],
    runs: Sequence[Capture],
    jobs: int,
    *,
    op: str,
    prepare: Callable[[], None] | None = None,
) -> Iterator[Result]:
    """Yield a result for each run, in order, computed in several processes.

    Args:
        one: returns the result of a run; it must be picklable.
        runs: the captures.
        jobs: the number of processes.
        op: the operation, for the error message.
        prepare: called first in each process.

    Raises:
        ErgoCaptureError: a process was killed.
    """
    import multiprocessing  # noqa: PLC0415 - slow to import
    from concurrent.futures import ProcessPoolExecutor  # noqa: PLC0415 - slow to import
    from concurrent.futures.process import BrokenProcessPool  # noqa: PLC0415

    from ergo_capture import child_setup  # noqa: PLC0415 - loads ctypes

    child_setup.protect_children()
    at_a_time = max(1, min(_MOST_AT_A_TIME, len(runs) // (4 * jobs)))
    with ProcessPoolExecutor(jobs, initializer=_begin, initargs=(os.getpid(), prepare)) as pool:
        try:
            yield from pool.map(one, runs, chunksize=at_a_time)
        except KeyboardInterrupt:
            # Cancel the rest: the pool would wait for its processes.
            for process in multiprocessing.active_children():
                process.kill()
            raise
        except BrokenProcessPool as error:
            raise ErgoCaptureError(
                f"{op}: a process that read a bundle was killed",
                op=op,
                hint="find out what killed it (memory?), or use --jobs 1 to see which bundle it was",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(parent: int, prepare: Callable[[], None] | None) -> None:
    from ergo_capture.bundle.proving.workers import begin_worker  # noqa: PLC0415

    begin_worker(parent)
    if prepare is not None:
        prepare()
