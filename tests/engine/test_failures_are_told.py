"""Episodes that fail are counted, logged, and told to whoever sends events."""

from __future__ import annotations

import json

import pytest
from tests.daemons import DaemonProcess, command, running_daemon, short_directory
from tests.engine.engines import command_event, process_graph, python_graph, terminations

from ergo_capture import telemetry
from ergo_capture.client import CaptureClient
from ergo_capture.server.ops.metrics import exposition
from ergo_capture.server.ops.status import take_status

FIVE_BAD = [f"bad-1.{number}" for number in range(5)]


@pytest.mark.parametrize("kind", ["process", "python"])
async def test_what_an_engine_answers_wrongly_is_logged(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The log has words, and no Python representation of an object."""
    text = process_graph() if kind == "process" else python_graph("obey")
    telemetry.configure("info", "json")
    async with running_daemon(text) as daemon:
        assert await terminations(daemon, ["bad-1" if kind == "process" else "wrong"]) == ["RuntimeError"]
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (line,) = (line for line in lines if line["event"] == "engine.failed")
    assert "unknown variant `Finished`" in line["error"]
    assert "{'" not in line["error"]


async def test_episodes_are_counted_by_graph_and_end() -> None:
    """Every end is there from the start, so that a first failure can be alerted on."""
    async with running_daemon(process_graph()) as daemon:

        async def metric(termination: str) -> float:
            found = [
                line
                for line in exposition(await take_status(daemon.service.components)).decode().splitlines()
                if line.startswith("ergo_capture_episodes_total{") and f'termination="{termination}"' in line
            ]
            (line,) = found
            assert 'graph="default"' in line
            return float(line.rpartition(" ")[2])

        assert [await metric(end) for end in ("Completed", "TimedOut", "Aborted", "Failed(RuntimeError)")] == [0.0] * 4
        await terminations(daemon, ["ok.0", *FIVE_BAD, "ok.1", "die"])
        assert await metric("Completed") == 2
        assert await metric("Failed(RuntimeError)") == 5
        assert await metric("Failed(AdapterUnavailable)") == 1


async def test_a_client_is_told_how_episodes_ended() -> None:
    """The answer to its close has the counts."""
    async with running_daemon(process_graph()) as daemon, CaptureClient(daemon.socket) as client:
        await client.open("default")
        for at, event_id in enumerate(["ok", *FIVE_BAD]):
            await client.send(command_event(event_id, at))
        published = await client.close()
    assert published.terminations == {"Completed": 1, "Failed(RuntimeError)": 5}


def test_send_prints_how_many_episodes_failed() -> None:
    """The exit code stays 0, because nothing is lost."""
    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        daemon.config.write_text(process_graph())
        daemon.start()
        text = lines("ok.0", *FIVE_BAD)
        said = command("send", "-", "--socket", str(daemon.socket), input=text)
        assert (said.returncode, said.stdout.rpartition(" in ")[0]) == (0, "6 events, 6 decisions, 5 failed")
        found = command("send", "-", "--socket", str(daemon.socket), "--json", input=text)
        assert json.loads(found.stdout)["terminations"] == {"Completed": 1, "Failed(RuntimeError)": 5}


def lines(*ids: str) -> str:
    """Return events of those ids as JSON Lines."""
    return "".join(
        f'{{"event_id":"{event_id}","kind":"Command","at":{{"secs":{at},"nanos":0}}}}\n'
        for at, event_id in enumerate(ids)
    )


async def test_failures_before_a_restart_count() -> None:
    """They are read back from the journal."""
    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        daemon.config.write_text(process_graph(graph='runtime_provenance = "rpv1:puppet"'))
        daemon.start()
        async with CaptureClient(daemon.socket, give_up_after=20) as client:
            await client.open("default")
            for at, event_id in enumerate(["ok", *FIVE_BAD]):
                await client.send(command_event(event_id, at))
            await client.flush()
            daemon.kill()
            daemon.start()
            published = await client.close()
    assert published.terminations == {"Completed": 1, "Failed(RuntimeError)": 5}
