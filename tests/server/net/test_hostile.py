"""Attacks on a daemon that is a process of its own: its memory stays within the documented bound, others are served.

Each attack is counted under its code. The bound is the documented one: the memory of an
idle daemon, twice the events and lines that may wait, and 32 MiB.
"""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from tests.server.net.attacks import ATTACKS, Attack, bad_frames, crowd
from tests.server.net.target import CONFIG, report, target, throughput


@pytest.mark.parametrize(("attack", "code"), ATTACKS, ids=lambda value: getattr(value, "__name__", None))
async def test_an_attack_is_answered_with_its_code_within_the_memory_bound(
    attack: Attack, code: str, tmp_path: Path
) -> None:
    """P9: the daemon stays within its bound, and the next client is served."""
    async with target(tmp_path) as it:
        await attack(it)
        with anyio.fail_after(20):
            while not (it.codes + it.logged())[code]:
                await anyio.sleep(0.01)
        await throughput(it, events=200)
        report(f"{attack.__name__}: answered {dict(it.codes)}, logged {dict(it.logged())}")


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("attack", "code"), [(crowd, "limit"), (bad_frames, "bad_frame")])
async def test_the_large_attacks_in_full(attack: Attack, code: str, tmp_path: Path) -> None:
    """A thousand connections too many; fifty thousand bad frames, a thousand before a connection ends."""
    async with target(tmp_path, f"{CONFIG}max_bad_frames = {1000 if attack is bad_frames else 5}\n") as it:
        await attack(it)
        assert it.codes[code] >= (900 if attack is crowd else 50_000)
        await throughput(it, events=200)
        report(f"{attack.__name__}: answered {dict(it.codes)}")
