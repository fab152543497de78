"""``ergo-capture config check|show|default``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from ergo_capture import config as configuration
from ergo_capture.cli import app
from ergo_capture.errors import ExitCode


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the path of a configuration file in a temporary directory."""
    return tmp_path / "config.toml"


def test_default_prints_the_documented_file(capsys: pytest.CaptureFixture[str]) -> None:
    """``config default`` prints a file that changes nothing and explains every setting."""
    assert app.run(["config", "default"]) == 0
    text = capsys.readouterr().out
    assert configuration.parse(text, "printed") == configuration.Config()
    assert "# The socket that clients connect to.\n[socket]\n" in text


def test_show_prints_the_configuration_in_force(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file's settings and the defaults of all others, with paths filled in."""
    file.write_text('[socket]\npath = "/x.sock"\n[rotation]\nmax_events = 7\n')
    assert app.run(["config", "show", "--config", str(file)]) == 0
    shown = capsys.readouterr().out
    assert configuration.parse(shown, "shown") == configuration.load(file)
    assert 'path = "/x.sock"' in shown
    assert "max_events = 7" in shown
    assert 'directory = ""' not in shown


def test_check_of_a_valid_file_prints_one_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code is 0."""
    file.write_text('[socket]\npath = "/x.sock"\n[graphs.a]\n[graphs.b]\n')
    assert app.run(["config", "check", "--config", str(file)]) == 0
    assert capsys.readouterr().out == "ok: 2 graphs, socket /x.sock\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[jurnal]\n", "did you mean `journal`?"),
        ("[graphs.a]\nmax_in_flight = -1\n", "configure graph 'a'"),
        ('[graphs.a.engine]\nkind = "fixed"\ntermination = "Exploded"\n', "configure graph 'a'"),
        ("[log\n", "correct the TOML"),
    ],
)
def test_check_of_an_invalid_file_exits_78(
    file: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error goes to standard error; 78 is the exit code that systemd knows."""
    file.write_text(text)
    assert app.run(["config", "check", "--config", str(file)]) == 78
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err


def test_check_names_every_mistake(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each mistake has its hint."""
    file.write_text("[jurnal]\n[limits]\nmax_client = 1\nmax_clients = 0\n")
    assert app.run(["config", "check", str(file)]) == ExitCode.CONFIG
    assert capsys.readouterr().err.replace(f"read configuration '{file}': ", "").splitlines() == [
        "Error: there is no setting `jurnal`",
        "Try: did you mean `journal`?",
        "Error: there is no setting `limits.max_client`",
        "Try: did you mean `max_clients`?",
        "Error: `limits.max_clients`: Expected `int` >= 1",
        "Try: `ergo-capture config default` prints every setting with its default",
    ]


def test_check_reports_a_missing_engine_script(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The daemon would not start without it."""
    file.write_text('[graphs.a.engine]\nkind = "scripted"\nfile = "/nonesuch.json"\n')
    assert app.run(["config", "check", "--config", str(file)]) != 0
    assert "/nonesuch.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_per_window = 20", "max_per_window alone limits nothing"),
        ('rate_window = "10m"', "rate_window alone limits nothing"),
        ('engine = { kind = "process", command = ["/nonesuch/engine"] }', "there is no program '/nonesuch/engine'"),
    ],
)
def test_check_warns_about_probable_mistakes(
    file: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The daemon would start, so the exit code is 0."""
    file.write_text(f"[graphs.a]\n{text}\n")
    assert app.run(["config", "check", str(file)]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("ok: 1 graph")
    assert f"Warning: graph 'a': {said}" in captured.err
    assert "Try: " in captured.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "max_events = 0",
            "rotation.max_events = 0: a session's part may have any number of events, so that it ends by",
        ),
        ('max_events = 0\nmax_bytes = "0B"', "so that it is one bundle; its ids stay in memory"),
        ('max_journal_bytes = "0B"', "rotation.max_journal_bytes = 0: one idle session keeps all later segments"),
    ],
)
def test_check_says_what_a_session_without_bounds_costs(
    file: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the defaults, a feed may go on for ever; whoever turns them off is told so."""
    file.write_text(f"[rotation]\n{text}\n")
    assert app.run(["config", "check", str(file)]) == 0
    assert said in capsys.readouterr().err


SHIPPING = '[ship.targets.archive]\nurl = "file:///backup"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", 'Warning: bundle.compress = "none", and bundles are shipped'),
        ('[retention]\nmax_age = "1d"\n', "Warning: retention deletes bundles whether they are shipped or not"),
        ("[graphs.a]\nretention = { max_bundles = 2 }\n", 'Try: set retention.shipped_to = ["archive"]'),
    ],
)
def test_check_says_what_shipping_costs(file: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Plain bundles cost ten times the bytes, and retention may delete unshipped ones; no targets, no warnings."""
    file.write_text(SHIPPING + text)
    assert app.run(["config", "check", str(file)]) == 0
    assert said in capsys.readouterr().err
    file.write_text(SHIPPING + '[bundle]\ncompress = "zstd"\n[retention]\nshipped_to = ["archive"]\nmax_age = "1d"\n')
    assert app.run(["config", "check", str(file)]) == 0
    assert "ship" not in capsys.readouterr().err
    file.write_text(text)
    assert app.run(["config", "check", str(file)]) == 0
    assert "ship" not in capsys.readouterr().err


def test_check_warns_of_two_programs_with_one_text_file(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It also warns of credentials that every user may read."""
    (tmp_path / "keys").write_text("")
    (tmp_path / "keys").chmod(0o644)
    metrics = f'textfile = "{tmp_path}/x.prom"\n'
    file.write_text(f'[metrics]\n{metrics}[ship]\n{metrics}{SHIPPING}credentials = "{tmp_path}/keys"\n')
    assert app.run(["config", "check", str(file)]) == 0
    said = capsys.readouterr().err
    assert f"both '{tmp_path}/x.prom': the daemon and the shipper write over each other" in said
    assert f"every user may read '{tmp_path}/keys' (mode 0644)" in said


def test_check_names_the_extra_that_shipping_needs(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check fails before the service would."""
    monkeypatch.setitem(sys.modules, "obstore", None)
    file.write_text('[ship.targets.archive]\nurl = "s3://bundles"\n')
    assert app.run(["config", "check", str(file)]) == 0
    assert "Try: pip install 'ergo-capture[ship]'" in capsys.readouterr().err


def test_check_does_not_warn_about_a_complete_limit(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The limit is the one of the README."""
    file.write_text('[graphs.a]\nmax_per_window = 20\nrate_window = "10m"\nmax_retries = 2\n')
    assert app.run(["config", "check", str(file)]) == 0
    assert "graph 'a'" not in capsys.readouterr().err


def test_serve_refuses_what_check_refuses(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The daemon exits with 78 before it touches anything."""
    file.write_text("[limits]\nmax_client = 1\n")
    state = file.parent / "state"
    arguments = ["serve", "--config", str(file), "--state-dir", str(state), "--socket", str(file.parent / "s")]
    assert app.run(arguments) == ExitCode.CONFIG
    assert "did you mean `max_clients`?" in capsys.readouterr().err
    assert not state.exists()


@pytest.mark.parametrize(
    "engine", ['"process:python3 engine.py"', '{ kind = "process", command = "python3 engine.py" }']
)
def test_the_table_of_an_engine_is_shown(engine: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The other forms are those of `replay --engine` and of a shell."""
    file.write_text(f"[graphs.a]\nengine = {engine}\n")
    assert app.run(["config", "check", str(file)]) == ExitCode.CONFIG
    assert 'engine = { kind = "process", command = ["python3", "engine.py"] }' in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "show"])
def test_the_file_may_be_an_argument(command: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is the same as ``--config``; both at once are refused."""
    file.write_text('[socket]\npath = "/x.sock"\n')
    assert app.run(["config", command, str(file)]) == 0
    assert "/x.sock" in capsys.readouterr().out
    assert app.run(["config", command, str(file), "--config", "other.toml"]) == ExitCode.USAGE
    assert "name the file once" in capsys.readouterr().err


def test_the_command_in_a_hint_can_be_pasted_into_a_shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The name of the file does not matter."""
    file = tmp_path / "it's $HOME.toml"
    file.write_text("")
    file.chmod(0o666)
    assert app.run(["config", "check", str(file)]) == 0
    (hint,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("Try: chmod 644 "))
    assert shlex.split(hint.removeprefix("Try: ")) == ["chmod", "644", str(file)]


@pytest.mark.parametrize("path", ["@engine", "/\\u0000", "tcp://host:1"])
def test_the_path_of_a_socket_engine_is_checked(path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An address that is not a path of a Unix socket is a mistake in the configuration: exit code 78, with the graph."""
    file = tmp_path / "capture.toml"
    file.write_text(f'[graphs.a.engine]\nkind = "socket"\npath = "{path}"\n', encoding="utf-8")
    assert app.run(["config", "check", str(file)]) == ExitCode.CONFIG
    assert "configure graph 'a'" in capsys.readouterr().err
