"""``cat``, ``tail``, ``info``, ``diff`` and ``extract`` of sessions, with a running daemon."""

from __future__ import annotations

import json
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
from tests.daemons import COMMAND, PATIENCE, DaemonProcess, command_environment, event, short_directory
from tests.journal.journals import journal_in

from ergo_capture.cli import app
from ergo_capture.cli.support import bundle_files, captures

CONFIG = "[rotation]\nmax_events = 4\n"


class Client:
    """A client that waits for each answer."""

    def __init__(self, path: Path, session: str | None = None) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rw")
        self.say({"type": "hello", "protocol": "ergo-capture.v1"})
        self.say({"type": "open", "graph": "default"} | ({"session": session} if session else {}))
        self.session: str = self.until("opened")["session"]
        self.sent = 0

    def say(self, frame: Any) -> None:
        """Send a frame."""
        self._file.write(json.dumps(frame) + "\n")
        self._file.flush()

    def until(self, kind: str) -> dict[str, Any]:
        """Return the next frame of a kind."""
        while True:
            frame: dict[str, Any] = json.loads(self._file.readline())
            if frame["type"] == kind:
                return frame

    def send(self, *ids: str) -> None:
        """Send events, and wait until they are decided."""
        for event_id in ids:
            self.say(event(event_id, at=int(event_id[1:]), payload={"id": event_id}))
            self.sent += 1
        while self.until("ack")["decided"] < self.sent:
            pass

    def close(self) -> None:
        """Close the session."""
        self.say({"type": "close"})
        self.until("closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()


@pytest.fixture
def daemon() -> Iterator[DaemonProcess]:
    """Run a daemon that rotates after four events."""
    with short_directory() as place, DaemonProcess(place, place / "state", config=CONFIG) as daemon:
        yield daemon.start()


@contextmanager
def following(*arguments: str, command: str = "cat") -> Iterator[subprocess.Popen[str]]:
    """Run ``cat --follow`` or ``tail --follow``; kill it at the end."""
    with subprocess.Popen(
        [*COMMAND, command, "--follow", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=command_environment(),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    """Return the next line; the test's timeout ends a wait that is too long."""
    assert process.stdout is not None
    return process.stdout.readline()


def test_follow_survives_rotations_and_a_killed_daemon(daemon: DaemonProcess) -> None:
    """Each event once, in order; it ends with the session, exit code 0."""
    with Client(daemon.socket) as client:
        session = client.session
        with following(session, "--state-dir", str(daemon.state), "--json") as process:
            client.send("e0")
            assert json.loads(line_of(process))["event_id"] == "e0"
            client.send(*(f"e{number}" for number in range(1, 10)))
            daemon.kill()
            daemon.start()
            with Client(daemon.socket, session) as again:
                again.send("e10", "e11")
                again.close()
            assert process.stdout is not None
            assert process.stderr is not None
            items = [json.loads(line) for line in process.stdout]
            assert process.wait(PATIENCE) == 0
            assert process.stderr.read() == ""
    assert [item["event_id"] for item in items] == [f"e{number}" for number in range(1, 12)]
    assert [item["index"] for item in items] == list(range(1, 12))
    assert {item["session"] for item in items} == {session}
    assert items[0]["payload"] == {"id": "e1"}


def test_tail_follow_starts_with_the_last_events(daemon: DaemonProcess) -> None:
    """``tail -n 2 -f``: the last two, over a rotation, then new ones; it ends with the session."""
    with Client(daemon.socket) as client:
        client.send(*(f"e{number}" for number in range(6)))
        with following(
            client.session, "-n", "2", "--state-dir", str(daemon.state), "--kind", "Command", command="tail"
        ) as process:
            shown = [line_of(process), line_of(process)]
            client.send("e6")
            shown.append(line_of(process))
            client.close()
            assert process.stdout is not None
            assert process.stdout.read() == ""
            assert process.wait(PATIENCE) == 0
    assert [line.split()[4] for line in shown] == ["'e4'", "'e5'", "'e6'"]


def test_tail_follow_of_zero_lines_prints_new_events_only(daemon: DaemonProcess) -> None:
    """``tail -n 0 -f --json`` of every session: each object has its session's id."""
    with Client(daemon.socket) as client:
        client.send("e0")
        with following(str(daemon.state), "-n", "0", "--json", command="tail") as process:
            item: dict[str, Any] = {}
            while not item:
                # Send repeatedly: the command leaves out what is there when it starts to read, and that moment is unknown.
                client.send(f"e{client.sent}")
                assert process.stdout is not None
                if select.select([process.stdout], [], [], 0.05)[0]:
                    item = json.loads(line_of(process))
        assert item["session"] == client.session
        assert item["index"] > 0


def test_a_state_directory_is_followed_with_filters(daemon: DaemonProcess) -> None:
    """Every session, with its id in front; ends at the event that --to-id names."""
    with following(str(daemon.state), "--event-id", "e1", "--event-id", "e3", "--to-id", "e3") as process:
        with Client(daemon.socket) as client:
            client.send("e0", "e1", "e2", "e3")
            assert [line_of(process), line_of(process)] == [
                f'{client.session}  1  1 s  Command  \'e1\'  Invoke  episode 1  Completed  {{"id": "e1"}}\n',
                f'{client.session}  3  3 s  Command  \'e3\'  Invoke  episode 3  Completed  {{"id": "e3"}}\n',
            ]
        assert process.wait(PATIENCE) == 0


def test_follow_ends_when_its_pipe_is_closed(daemon: DaemonProcess) -> None:
    """It ends even while nothing happens, and without a traceback."""
    with Client(daemon.socket) as client:
        client.send("e0")
        with following(client.session, "--state-dir", str(daemon.state)) as process:
            assert "'e0'" in line_of(process)
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == ""
            assert process.wait(PATIENCE) == 141


def test_ctrl_c_ends_follow_quietly(daemon: DaemonProcess) -> None:
    """Exit code 130, as with any command."""
    with Client(daemon.socket) as client:
        client.send("e0")
        with following(client.session, "--state-dir", str(daemon.state)) as process:
            assert "'e0'" in line_of(process)
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            assert process.stderr.read().strip() == ""
            assert process.wait(PATIENCE) == 130


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["a", "b", "--follow"], 2, "--follow needs one"),
        (["a", "--new"], 2, "--new needs --follow"),
        (["nope", "--follow", "--state-dir", "{state}"], 1, "it is not in the journal"),
        (["nope", "--follow", "--state-dir", "/nowhere"], 1, "neither a file of that name"),
        (["nope", "--state-dir", "{state}"], 1, "neither a file of that name"),
        (["{state}/lock", "--follow"], 1, "only a journal can be followed"),
        (["{state}/journal/0000000000000001.journal"], 1, "not a whole session"),
        (["{state}"], 1, "holds no session"),
        (["/nowhere/x.capture.json"], 1, "No such file"),
    ],
)
def test_a_name_that_cannot_be_read_or_followed_is_an_error(
    arguments: list[str], code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One message, and the exit code of its kind."""
    (tmp_path / "journal").mkdir()
    (tmp_path / "lock").touch()
    journal_in(tmp_path / "journal").close()
    (tmp_path / "journal" / "0000000000000001.journal").touch()
    assert app.run(["cat", *[text.replace("{state}", str(tmp_path)) for text in arguments]]) == code
    said = capsys.readouterr()
    assert says in said.err
    assert said.out == ""


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return what a successful command prints."""
    assert app.run(arguments) == 0, capsys.readouterr()
    return capsys.readouterr().out


def test_a_session_is_read_from_bundles_and_journal(daemon: DaemonProcess, capsys: pytest.CaptureFixture[str]) -> None:
    """Every event is read once, during the session and after it, and also from a state directory or its journal."""
    where = ["--state-dir", str(daemon.state)]
    everything = [f"e{number}" for number in range(10)]
    with Client(daemon.socket) as client:
        # The part that is full ends when the next event comes.
        client.send(*everything[:5])
        client.send(*everything[5:])
        for name in (client.session, str(daemon.state), str(daemon.state / "journal")):
            lines = printed(["cat", name, "--json", *where], capsys).splitlines()
            assert sorted(json.loads(line)["event_id"] for line in lines) == everything, name
        parts = [json.loads(line) for line in printed(["info", client.session, "--json", *where], capsys).splitlines()]
        assert sum(part["events"] for part in parts) == 10
        last = parts[-1]
        assert (last["session"]["session"], last["session"]["ended"]) == (client.session, "open")
        client.close()
    lines = printed(["cat", client.session, "--json", *where], capsys).splitlines()
    assert [json.loads(line)["event_id"] for line in lines] == everything
    bundles = sorted((daemon.state / "bundles").rglob("*.capture.json"))
    assert app.run(["extract", client.session, *where]) == 1
    assert f"stands for {len(bundles)} runs" in capsys.readouterr().err


def test_a_part_published_meanwhile_is_not_missed(
    daemon: DaemonProcess, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It moves from the journal to the bundles between the two reads."""
    with Client(daemon.socket) as client:
        client.send("e0", "e1")
        list_bundles = bundle_files.bundles_below

        def publish_first(directory: Path, is_wanted: Any) -> Any:
            client.close()
            return list_bundles(directory, is_wanted)

        monkeypatch.setattr(captures, "bundles_below", publish_first)
        lines = printed(["cat", client.session, "--json", "--state-dir", str(daemon.state)], capsys).splitlines()
    assert [json.loads(line)["event_id"] for line in lines] == ["e0", "e1"]


def test_a_snapshot_is_not_counted_beside_its_session(
    daemon: DaemonProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    """The journal is newer than the snapshot."""
    with Client(daemon.socket) as client:
        client.send("e0")
        client.say({"type": "flush"})
        client.until("flushed")
        client.send("e1")
        for name in (client.session, str(daemon.state)):
            lines = printed(["cat", name, "--json", "--state-dir", str(daemon.state)], capsys).splitlines()
            assert [json.loads(line)["event_id"] for line in lines] == ["e0", "e1"]


def test_extract_and_diff_read_a_running_session(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The session is read from the journal, as if from a bundle."""
    with short_directory() as place, DaemonProcess(place, place / "state") as daemon:
        daemon.start()
        where = ["--state-dir", str(daemon.state)]
        with Client(daemon.socket) as client:
            client.send("e0", "e1", "e2")
            printed(["extract", client.session, "-o", str(tmp_path / "s.json"), *where], capsys)
            simulated = str(tmp_path / "a.capture.json")
            printed(["simulate", str(tmp_path / "s.json"), "-o", simulated], capsys)
            assert printed(["diff", client.session, simulated, *where], capsys) == "the same, 3 events\n"
            said = printed(["info", client.session, *where], capsys)
            assert f"{client.session}, part 1, open" in said
