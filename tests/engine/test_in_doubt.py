"""session.in_doubt: the daemon is killed between accepted, sent, answered and decided; which episodes run again."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.daemons import short_directory
from tests.engine.engines import listening_puppet
from tests.engine.rig import Rig, ended

MODES = ["reinvoke", "interrupt"]
#: Decisions wait for a commit that does not come.
NO_COMMIT = '[journal]\ndecision_delay = "1h"\n'


@pytest.mark.parametrize("mode", MODES)
async def test_an_accepted_event_that_was_not_sent_is_in_doubt(mode: str) -> None:
    """The engine is away. Nothing ran, but that is not recorded; an event that comes after the restart is not in doubt."""
    with short_directory() as place:
        rig, engine = Rig(place, mode), place / "engine.sock"
        with rig.daemon:
            await rig.start_with(f'kind = "socket"\npath = "{engine}"')
            session = await rig.begin(["a", "b"])
            await rig.kill()
            with listening_puppet(engine, "--log", str(rig.calls_file)):
                await rig.start_with(f'kind = "socket"\npath = "{engine}"')
                records = await rig.finish(session, ["c"])
        assert ended(records) == ["in doubt" if mode == "interrupt" else "Completed", "Completed", "Completed"]
        assert rig.calls() == Counter({"b", "c"} if mode == "interrupt" else {"a", "b", "c"})


@pytest.mark.parametrize("mode", MODES)
async def test_a_run_that_was_not_answered_is_in_doubt(mode: str) -> None:
    """Daemon and engine are killed while the first of three runs is under way."""
    with short_directory() as place:
        rig = Rig(place, mode)
        with rig.daemon:
            await rig.start("--mute")
            session = await rig.begin(["a", "b", "c"])
            await rig.until_called(["a"])
            await rig.kill()
            await rig.start()
            records = await rig.finish(session, ["d"])
        assert ended(records) == ["in doubt" if mode == "interrupt" else "Completed", *["Completed"] * 3]
        assert rig.calls() == Counter(a=1 if mode == "interrupt" else 2, b=1, c=1, d=1)


@pytest.mark.parametrize("mode", MODES)
async def test_a_run_whose_decision_is_not_durable_is_not_repeated_where_it_must_not_be(mode: str) -> None:
    """Five runs have ended; with ``interrupt`` each decision but the last is durable before the next run begins."""
    ids = [f"ok.{n}" for n in range(5)]
    with short_directory() as place:
        rig = Rig(place, mode)
        with rig.daemon:
            await rig.start(more=NO_COMMIT)
            session = await rig.begin(ids)
            await rig.until_called(ids)
            await rig.kill()
            await rig.start()
            records = await rig.finish(session, ["after"])
        calls = rig.calls()
        if mode == "interrupt":
            assert set(calls.values()) == {1}
            assert ended(records)[:4] == ["Completed"] * 4
            assert ended(records)[4:] in (["in doubt", "Completed"], ["Completed", "Completed"])
        else:
            assert ended(records) == ["Completed"] * 6
            assert all(calls[event_id] in (1, 2) for event_id in ids)
            assert calls["after"] == 1


@pytest.mark.parametrize("mode", MODES)
async def test_a_decided_event_is_not_in_doubt(mode: str) -> None:
    """Nothing runs again, and nothing is interrupted."""
    with short_directory() as place:
        rig = Rig(place, mode, "pipeline = 4")
        with rig.daemon:
            await rig.start()
            session = await rig.begin(["a", "b"], decided=2)
            await rig.kill()
            await rig.start()
            records = await rig.finish(session, ["c"])
        assert ended(records) == ["Completed"] * 3
        assert rig.calls() == Counter("abc")


async def test_at_most_a_pipeline_of_the_undecided_events_is_in_doubt() -> None:
    """A pipeline of 2 gives two of three events, one of 64 all three, and none that came after the restart."""
    for pipeline, doubtful in ((2, 2), (64, 3)):
        with short_directory() as place:
            rig = Rig(place, "interrupt", f"pipeline = {pipeline}")
            with rig.daemon:
                await rig.start("--mute")
                session = await rig.begin(["a", "b", "c"])
                await rig.until_called("abc"[:doubtful])
                await rig.kill()
                await rig.start()
                records = await rig.finish(session, ["d", "e"])
            assert ended(records) == ["in doubt"] * doubtful + ["Completed"] * (5 - doubtful)
            assert set(rig.calls().values()) == {1}
