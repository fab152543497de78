"""Every kind of engine behaves in the same way."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import get_args

import anyio
import pytest
from tests.contract.documents import assert_same
from tests.daemons import Daemon, running_daemon, short_directory
from tests.engine.engines import captured, listening_puppet, process_graph, socket_graph, terminations

from ergo_capture import EventTime, RunTermination, compute_effect_hash
from ergo_capture.config.graphs import EngineConfig
from ergo_capture.engine.spec import FORMS, engine_from
from ergo_capture.errors import ErgoCaptureError, ExitCode

KINDS = ("fixed", "scripted", "python", "python async", "process", "socket")
#: Those that do what the ids of events say.
OBEDIENT = ("python", "python async", "process", "socket")


@asynccontextmanager
async def served(kind: str, graph: str = "") -> AsyncIterator[Daemon]:
    """Run a daemon whose default graph has this engine."""
    async with AsyncExitStack() as stack:
        place = stack.enter_context(short_directory())
        text = f"[graphs.default]\n{graph}\n"
        if kind == "scripted":
            (place / "script.json").write_text(json.dumps({"default": "Completed", "schedule": {"x": ["Aborted"]}}))
            text += f'engine = {{ kind = "scripted", file = "{place}/script.json" }}\n'
        elif kind.startswith("python"):
            name = "obey_later" if "async" in kind else "obey"
            text += f'engine = {{ kind = "python", callable = "tests.engine.scripts:{name}" }}\n'
        elif kind == "process":
            text = process_graph(graph=graph)
        elif kind == "socket":
            stack.enter_context(listening_puppet(place / "engine.sock"))
            text = socket_graph(place / "engine.sock", graph=graph)
        yield await stack.enter_async_context(running_daemon(text))


def test_every_kind_of_the_configuration_is_tested_here() -> None:
    """A kind that is not in ``KINDS`` could behave differently."""
    kinds = [str(kind.__struct_config__.tag) for kind in get_args(EngineConfig)]
    assert_same((kind.partition(" ")[0] for kind in KINDS), kinds, "KINDS in tests/engine/test_contract.py")


@pytest.mark.parametrize("form", FORMS.split(", "))
def test_every_form_that_is_named_leads_to_an_engine(form: str) -> None:
    """It may lead to an error about its words, but never to the one about unknown forms."""
    try:
        assert engine_from(form, "g").name == form.partition(":")[0]
    except ErgoCaptureError as error:
        assert "none of the known forms" not in error.message


@pytest.mark.parametrize("kind", KINDS)
async def test_an_engine_has_the_name_of_its_kind(kind: str) -> None:
    """``status`` shows the kind that runs, so a wrong kind would be noticed."""
    async with served(kind) as daemon:
        (engine,) = (await daemon.ask("status"))["status"]["running"]["engines"]
    assert engine["engine"] == kind.partition(" ")[0]


@pytest.mark.parametrize("kind", KINDS)
async def test_episodes_are_run_and_recorded_in_order(kind: str) -> None:
    """One decision for each event, invoked and completed."""
    async with served(kind) as daemon:
        bundle = await captured(daemon, [f"ok.{n}" for n in range(50)])
    assert [record.event_id for record in bundle.decisions] == [f"ok.{n}" for n in range(50)]
    assert {record.termination for record in bundle.decisions} == {RunTermination.Completed}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_deadline_of_zero_aborts_without_a_call(kind: str) -> None:
    """Rule 5: the engine is not asked, and the record has the deadline."""
    async with served(kind, 'deadline = "0s"') as daemon:
        bundle = await captured(daemon, ["ok", "die", "hang"])
    assert [record.termination for record in bundle.decisions] == [RunTermination.Aborted] * 3
    assert bundle.decisions[0].deadline == EventTime(0, 0)


@pytest.mark.parametrize("kind", OBEDIENT)
async def test_a_mechanical_failure_is_retried_up_to_max_retries(kind: str) -> None:
    """Rule 4: the record has the number of retries and the last attempt's termination."""
    async with served(kind, "max_retries = 3") as daemon:
        bundle = await captured(daemon, ["fail", "ok"])
    assert [(record.retry_count, str(record.termination)) for record in bundle.decisions] == [
        (3, "RunTermination.Failed(ErrKind.NetworkTimeout)"),
        (0, "RunTermination.Completed"),
    ]


@pytest.mark.parametrize("kind", OBEDIENT)
async def test_effects_are_recorded_with_their_hash_and_interruptions_too(kind: str) -> None:
    """Rule 8: the hash covers the canonical JSON."""
    async with served(kind) as daemon:
        bundle = await captured(daemon, ["ok", "effect"])
    assert bundle.decisions[0].effects == ()
    (effect,) = bundle.decisions[1].effects
    assert effect.effect.writes[0].value.Number == 1.5
    assert effect.effect_hash == compute_effect_hash(effect.effect)
    assert bundle.decisions[1].interruption == "a word"


@pytest.mark.parametrize("kind", OBEDIENT)
async def test_a_positive_deadline_is_enforced_in_real_time(kind: str) -> None:
    """Rule 5: the run is abandoned as TimedOut, and the next one is run."""
    async with served(kind, 'deadline = "200ms"') as daemon:
        ended = await terminations(daemon, ["ok", "hang.1"])
    assert ended == ["Completed", "TimedOut"]


@pytest.mark.parametrize("kind", KINDS)
async def test_concurrent_sessions_share_the_engine(kind: str) -> None:
    """Each gets the answers to its own runs."""
    async with served(kind) as daemon:
        bundles = {}

        async def one(name: str) -> None:
            bundles[name] = await captured(daemon, [f"ok.{name}-{n}" for n in range(30)])

        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(one, str(number))
    for name, bundle in bundles.items():
        assert [record.event_id for record in bundle.decisions] == [f"ok.{name}-{n}" for n in range(30)]


@pytest.mark.parametrize("kind", ["process", "socket", "python"])
async def test_the_bundle_is_byte_for_byte_that_of_a_scripted_engine(kind: str) -> None:
    """P11: with the same events, outcomes and provenance."""
    ids = [f"ok.{n}" for n in range(100)]
    provenance = 'runtime_provenance = "rpv1:puppet"\nmax_per_window = 3\nrate_window = "10s"'
    texts = []
    for each in ("scripted", kind):
        async with served(each, provenance) as daemon:
            await captured(daemon, ids)
            texts.append(daemon.bundles()[0].read_bytes())
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        ('{ kind = "scripted", file = "/nowhere/script.json" }', "/nowhere/script.json"),
        ('{ kind = "python", callable = "nowhere:run" }', "nowhere"),
        ('{ kind = "python", callable = "tests.engine.scripts:not_callable" }', "not_callable"),
        ('{ kind = "python", callable = "tests" }', "module:callable"),
    ],
)
async def test_an_engine_that_cannot_be_made_keeps_the_daemon_from_starting(engine: str, says: str) -> None:
    """P4: exit code 78, and the message names the setting's value."""
    with pytest.raises(ErgoCaptureError) as caught:
        async with running_daemon(f"[graphs.default]\nengine = {engine}\n"):
            pass
    assert says in caught.value.message
    assert caught.value.exit_code == ExitCode.CONFIG
    assert caught.value.hint


async def test_an_invalid_script_is_named_in_the_error(tmp_path: Path) -> None:
    """The error has the path of the script."""
    (tmp_path / "bad.json").write_text('{"default": "Finished"}')
    with pytest.raises(ErgoCaptureError, match=r"bad\.json"):
        async with running_daemon(
            f'[graphs.default]\nengine = {{ kind = "scripted", file = "{tmp_path}/bad.json" }}\n'
        ):
            pass


async def test_the_readmes_engine_runs() -> None:
    """The bundle has the effects that it makes of payloads, and its provenance."""
    from tests.engine.engines import command_event

    from ergo_capture import decode_bundle
    from ergo_capture.client import CaptureClient

    example = Path(__file__).with_name("example_engine.py")
    text = f'[graphs.default]\nengine = {{ kind = "process", command = ["{sys.executable}", "{example}"] }}\n'
    async with running_daemon(text) as daemon, CaptureClient(daemon.socket) as client:
        await client.open("default")
        await client.send(command_event("a", 0, {"price": 10.5}))
        await client.send(command_event("b", 1))
        published = await client.close()
        bundle = decode_bundle(Path(published.bundle).read_bytes())
    assert bundle.runtime_provenance == "rpv1:example-1"
    assert [len(record.effects) for record in bundle.decisions] == [1, 0]
