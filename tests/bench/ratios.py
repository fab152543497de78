"""Measure two sides in turns and report the ratios.

On a machine that others use too, the same work can take twice as long a minute later. So each round measures both sides
within a second or two, in changing order, and gives one ratio.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path


def in_turns(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> list[tuple[float, float]]:
    """Return the figures of both sides, a pair for each round."""
    pairs = []
    for number in range(rounds):
        if number % 2:
            second, first = theirs(), ours()
        else:
            first, second = ours(), theirs()
        pairs.append((first, second))
    return pairs


def report(title: str, unit: str, pairs: list[tuple[float, float]], goal: str) -> float:
    """Print a row and return the median ratio of ours to theirs."""
    ratios = sorted(ours / theirs for ours, theirs in pairs)
    median = statistics.median(ratios)
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(  # noqa: T201 - a report
        f"\n{title}: {median:.2f} of the other ({ratios[0]:.2f} to {ratios[-1]:.2f}, {len(ratios)} rounds), goal {goal}; "
        f"medians {ours:,.4g} and {theirs:,.4g} {unit}"
    )
    return median


def processor_seconds(pid: int) -> float:
    """Return the processor time of a process, in seconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
