"""``ergo-capture egress``: an outbox in front of an egress channel, as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.daemons import COMMAND, command, command_environment
from tests.egress.channels import heard, puppet, ready
from tests.processes import is_alive, wait_until

from ergo_capture.egress.outbox import Outbox, OutboxError

DYING = Path(__file__).with_name("dying.py")
READY = ready("send")["send"]


def intent(name: str, value: int = 1) -> str:
    """Return an intent as the host writes it."""
    return f'{{"type":"intent","intent_id":"{name}","kind":"send","fields":{{"n":{value}}}}}'


def ack(name: str, **more: Any) -> str:
    """Return an ack as the puppet writes it."""
    return json.dumps(
        {"type": "intent_ack", "intent_id": name, "status": "accepted", "acceptance": "durable"} | more,
        ensure_ascii=False,
    )


class Host:
    """A host that runs a wrapped channel."""

    def __init__(
        self, place: Path, *channel: str, program: tuple[str, ...] = (), options: tuple[str, ...] = ()
    ) -> None:
        self.process = subprocess.Popen(
            [*(program or COMMAND), "egress", "--outbox", str(place / "outbox"), *options, "--", *channel],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=command_environment(),
        )

    def ask(self, line: str) -> str:
        """Write a line and return the answer; an empty one where the channel is gone."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return ""
        return self.hear()

    def hear(self) -> str:
        """Return the next line."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().rstrip("\n")

    def end(self, *, say: bool = True) -> tuple[int, str]:
        """Say ``end``; return how the wrapper ended and what it wrote to standard error."""
        _, errors = self.process.communicate(b'{"type":"end"}\n' if say else None, timeout=60)
        return self.process.returncode, errors.decode()

    def play(self, *lines: str) -> list[str]:
        """Play a whole run; return the answers, up to the channel's end."""
        answers = [self.hear()]
        for line in lines:
            if answers[-1]:
                answers.append(self.ask(line))
        self.end()
        return [answer for answer in answers if answer]


def outbox_of(place: Path, *, keep: int = 1 << 40, most_bytes: int = 1 << 30, now: int = 1 << 31) -> Outbox:
    """Open an outbox."""
    return Outbox(place / "outbox", keep=keep, most_bytes=most_bytes, now=now)


def test_lines_pass_unchanged_both_ways(tmp_path: Path) -> None:
    """The outbox is named on standard error, with its bound and how long it keeps what."""
    script = {"start": [ready("send")], "intents": [[{"ack": {"egress_ref": "größe"}}]], "end": [{"exit": 5}]}
    host = Host(tmp_path, *puppet(tmp_path, "a", script))
    assert host.hear() == READY
    assert host.ask(intent("i1")) == ack("i1", egress_ref="größe")
    code, errors = host.end()
    assert code == 5
    assert [json.dumps(message, separators=(",", ":")) for message in heard(tmp_path, "a")] == [
        intent("i1"),
        '{"type":"end"}',
    ]
    assert f"outbox {tmp_path}/outbox: 0 intents, 0 without an ack; at most 64MiB, kept for 30d" in errors
    assert "1 intent, 0 without an ack, 0 answered from it" in errors


def test_an_acknowledged_intent_is_answered_from_the_outbox(tmp_path: Path) -> None:
    """The answer is the line that the channel wrote; the channel does not see the intent again."""
    script = {"start": [ready("send")], "intents": [[{"ack": {"egress_ref": "r1"}}]]}
    first = Host(tmp_path, *puppet(tmp_path, "a", script)).play(intent("i1"))
    assert Host(tmp_path, *puppet(tmp_path, "b", script)).play(intent("i1"), intent("i2")) == [
        *first,
        ack("i2", egress_ref="r1"),
    ]
    assert [message.get("intent_id") for message in heard(tmp_path, "b")] == ["i2", None]


@pytest.mark.parametrize(
    "answer",
    [
        {"ack": {"status": "rejected"}},
        {"ack": {"acceptance": "volatile"}},
        {"ack": {"intent_id": "other"}},
        {"send": "nonsense"},
        {"bytes_hex": "ff0a"},
    ],
)
def test_an_answer_that_is_no_ack_is_handed_on_and_not_kept(tmp_path: Path, answer: dict[str, Any]) -> None:
    """The host judges it; the next run sends the intent again."""
    script = {"start": [ready("send")], "intents": [[answer]]}
    host = Host(tmp_path, *puppet(tmp_path, "a", script))
    assert host.hear() == READY
    assert host.process.stdin is not None
    host.process.stdin.write(intent("i1").encode() + b"\n")
    host.process.stdin.flush()
    assert host.process.stdout is not None
    assert host.process.stdout.readline()
    host.end()
    outbox = outbox_of(tmp_path)
    assert outbox.unacknowledged == ["i1"]
    outbox.close()
    assert Host(tmp_path, *puppet(tmp_path, "b", {"start": [ready("send")]})).play(intent("i1"))[1] == ack("i1")


def test_killed_before_any_step_no_intent_is_lost_and_no_acknowledged_one_is_sent_again(tmp_path: Path) -> None:
    """The run is repeated after the kill, and every intent of it is answered."""
    intents = [intent("i1"), intent("i2", 2)]
    complete = [READY, ack("i1"), ack("i2")]
    for step in range(20):
        place = tmp_path / str(step)
        place.mkdir()
        program = (sys.executable, str(DYING), str(step))
        answers = Host(place, *puppet(place, "a", {"start": [ready("send")]}), program=program).play(*intents)
        outbox = outbox_of(place)
        known = {f"i{number}" for number in (1, 2)} - set(outbox.unacknowledged)
        known &= {f"i{number}" for number in range(1, outbox.asked + 1)}
        outbox.close()
        # An answer that the host heard is in the outbox.
        assert {json.loads(answer)["intent_id"] for answer in answers[1:]} <= known
        assert Host(place, *puppet(place, "b", {"start": [ready("send")]})).play(*intents) == complete
        again = {message["intent_id"] for message in heard(place, "b") if message["type"] == "intent"}
        assert again == {"i1", "i2"} - known
        if len(heard(place, "a")) == 3:
            break
    else:
        pytest.fail("it never ran to its end")
    assert step == 10


def test_an_outbox_of_another_run_is_refused(tmp_path: Path) -> None:
    """The same id with other fields is not taken for the same intent: it would not be sent."""
    script = {"start": [ready("send")]}
    Host(tmp_path, *puppet(tmp_path, "a", script)).play(intent("i1"))
    host = Host(tmp_path, *puppet(tmp_path, "b", script))
    assert host.hear() == READY
    assert host.ask(intent("i1", 2)) == ""
    code, errors = host.end(say=False)
    assert code == 1
    assert "holds another intent with this id" in errors
    assert heard(tmp_path, "b") == []


def test_the_intents_of_an_outbox_are_listed(tmp_path: Path) -> None:
    """This works while it is in use, too; the exit code is 3 if an intent has no ack."""
    script = {"start": [ready("send")], "intents": [[{"ack": {"egress_ref": "r1"}}], [{"sleep_ms": 3_600_000}]]}
    host = Host(tmp_path, *puppet(tmp_path, "a", script))
    assert host.hear() == READY
    host.ask(intent("i1"))
    listed = command("intents", str(tmp_path / "outbox"))
    assert (listed.returncode, listed.stdout.splitlines()[1]) == (0, "  send  i1  acknowledged as 'r1'")
    assert host.process.stdin is not None
    host.process.stdin.write(intent("i2").encode() + b"\n")
    host.process.stdin.flush()
    wait_until(lambda: len(heard(tmp_path, "a")) == 2)
    listed = command("intents", str(tmp_path / "outbox"), "--json")
    found = json.loads(listed.stdout)
    assert (listed.returncode, found["expected"], found["unacknowledged"]) == (3, 2, 1)
    host.process.kill()
    host.end(say=False)


def test_a_full_outbox_takes_no_further_intent(tmp_path: Path) -> None:
    """It is not sent: its ack could not be kept."""
    host = Host(tmp_path, *puppet(tmp_path, "a", {"start": [ready("send")]}), options=("--max-bytes", "500B"))
    assert host.hear() == READY
    answers = [host.ask(intent(f"i{number}")) for number in range(3)]
    code, errors = host.end(say=False)
    assert answers[0] == ack("i0")
    assert answers[-1] == ""
    assert (code, "it has reached its bound of 500B" in errors) == (1, True)


def test_two_channels_share_no_outbox(tmp_path: Path) -> None:
    """The second is refused."""
    first = outbox_of(tmp_path)
    ran = command("egress", "--outbox", str(tmp_path / "outbox"), "--", "true")
    assert ran.returncode == 1
    assert "another process uses it" in ran.stderr
    first.close()


def test_acknowledged_intents_are_dropped_after_their_time(tmp_path: Path) -> None:
    """Unacknowledged ones never."""
    outbox = outbox_of(tmp_path, now=0)
    for number, name in enumerate(["a", "b", "c"]):
        outbox.ask(name, intent(name).encode(), now=number)
    outbox.acknowledge("a", b"{}", now=10)
    outbox.acknowledge("b", b"{}", now=11)
    outbox.close()
    outbox = outbox_of(tmp_path, keep=5, now=16)
    assert (outbox.asked, outbox.unacknowledged) == (2, ["c"])
    outbox.close()


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_cut_off_and_kept(tmp_path: Path, cut: int) -> None:
    """Nobody has heard of it."""
    outbox = outbox_of(tmp_path)
    outbox.ask("a", intent("a").encode(), now=0)
    outbox.ask("b", intent("b").encode(), now=0)
    outbox.close()
    path = tmp_path / "outbox"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    outbox = outbox_of(tmp_path)
    assert outbox.unacknowledged == ["a"]
    outbox.close()
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    assert (tmp_path / "outbox.torn").read_bytes() == whole.splitlines(keepends=True)[2][:-cut]


@pytest.mark.parametrize("line", [0, 1])
def test_a_damaged_outbox_is_refused(tmp_path: Path, line: int) -> None:
    """An ack may be gone, and its intent would be sent again; the exit code is 3, and the file stays as it is."""
    outbox = outbox_of(tmp_path)
    outbox.ask("a", intent("a").encode(), now=0)
    outbox.ask("b", intent("b").encode(), now=0)
    outbox.close()
    path = tmp_path / "outbox"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b":", b";", 1)
    path.write_bytes(b"".join(lines))
    with pytest.raises(OutboxError, match=f"line {line + 1} is damaged") as caught:
        outbox_of(tmp_path)
    assert caught.value.exit_code == 3
    assert path.read_bytes() == b"".join(lines)


def test_a_file_that_is_no_outbox_is_left_alone(tmp_path: Path) -> None:
    """Its last line may be without an end, as a torn outbox's is."""
    (tmp_path / "outbox").write_text("my notes\nwithout an end")
    with pytest.raises(OutboxError, match="line 1 is damaged"):
        outbox_of(tmp_path)
    assert (tmp_path / "outbox").read_text() == "my notes\nwithout an end"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_passed_on_and_ends_it_as_it_ends_the_channel(tmp_path: Path, number: signal.Signals) -> None:
    """The host looks at how a channel ended."""
    host = Host(tmp_path, *puppet(tmp_path, "a", {"start": [ready("send")]}))
    assert host.hear() == READY
    host.process.send_signal(number)
    assert host.process.wait(60) == -number
    host.end(say=False)


def test_a_channel_ends_with_a_wrapper_that_is_killed(tmp_path: Path) -> None:
    """A successor would run beside it."""
    channel = f"echo $$ > {tmp_path}/pid; echo '{READY}'; exec sleep 3600"
    host = Host(tmp_path, "sh", "-c", channel)
    assert host.hear() == READY
    host.process.kill()
    host.end(say=False)
    pid = (tmp_path / "pid").read_text().strip()
    wait_until(lambda: not is_alive(pid))


def test_where_the_host_is_gone_the_channel_is_ended(tmp_path: Path) -> None:
    """The exit code is the one that a shell gives for it."""
    host = Host(tmp_path, "sh", "-c", "trap '' PIPE; while sleep 0.01; do echo x; done")
    assert host.process.stdout is not None
    host.process.stdout.close()
    host.process.stdout = open(os.devnull, "rb")  # noqa: PTH123, SIM115 - communicate closes it
    assert host.end(say=False)[0] == 141


def test_a_channel_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    """The error has the system's reason."""
    ran = command("egress", "--outbox", str(tmp_path / "outbox"), "--", "/nowhere/channel")
    assert ran.returncode == 1
    assert "start channel '/nowhere/channel': No such file or directory" in ran.stderr


@pytest.mark.parametrize("options", [("--keep", "long"), ("--max-bytes", "much")])
def test_a_bad_option_is_refused(tmp_path: Path, options: tuple[str, str]) -> None:
    """It is wrong usage, and is found before anything is made."""
    ran = command("egress", "--outbox", str(tmp_path / "outbox"), *options, "--", "true")
    assert ran.returncode == 2
    assert not (tmp_path / "outbox").exists()
