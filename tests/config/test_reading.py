"""The configuration: the file that is read, its valid content, and the messages about mistakes."""

from __future__ import annotations

import contextlib
import os
import pwd
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ergo_capture import config as configuration
from ergo_capture.config import (
    Config,
    ConfigError,
    FixedEngineConfig,
    GraphConfig,
    GraphRetentionConfig,
    ScriptedEngineConfig,
    load,
    parse,
)
from ergo_capture.config import paths as places
from ergo_capture.units import Duration, Size


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the home of an unprivileged user on a host without any configuration."""
    for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setattr(places, "SYSTEM_FILE", tmp_path / "etc" / "config.toml")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return tmp_path


def refusal(text: str) -> ConfigError:
    """Return the error that this text raises."""
    with pytest.raises(ConfigError) as caught:
        parse(text, "c.toml")
    return caught.value


# --- finding the file ---


def test_no_file_means_defaults(bare: Path) -> None:
    """One graph ``default`` without limits, engine ``fixed``, paths below the user's home."""
    config = load()
    assert config.graphs == {"default": GraphConfig()}
    assert config.graphs["default"].engine == FixedEngineConfig(termination="Completed")
    assert Path(config.state.directory) == bare / "state" / "ergo-capture"
    assert Path(config.socket.path) == bare / "run" / "ergo-capture" / "capture.sock"


def test_root_uses_system_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    """The superuser's daemon uses the directories of the system."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    config = load()
    assert config.state.directory == "/var/lib/ergo-capture"
    assert config.socket.path == "/run/ergo-capture/capture.sock"


def test_systemd_directories_come_before_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """``StateDirectory=`` and ``RuntimeDirectory=`` of the unit; the first of several counts."""
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/private/one:/var/lib/two")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/one")
    config = load()
    assert config.state.directory == "/var/lib/private/one"
    assert config.socket.path == "/run/one/capture.sock"


def test_the_command_line_comes_before_the_file_before_systemd(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options replace the file's settings, and those what systemd says."""
    monkeypatch.setenv("STATE_DIRECTORY", "/systemd")
    file = bare / "c.toml"
    file.write_text('[socket]\npath = "/file.sock"\n[state]\ndirectory = "/file"\n')
    assert (load(file).socket.path, load(file).state.directory) == ("/file.sock", "/file")
    said = load(file, socket="/line.sock", state="/line")
    assert (said.socket.path, said.state.directory) == ("/line.sock", "/line")


def test_the_users_file_comes_before_the_systems(bare: Path) -> None:
    """The system's file is read if the user has none; a named file replaces both."""
    system, user = bare / "etc" / "config.toml", bare / "config" / "ergo-capture" / "config.toml"
    named = bare / "named.toml"
    for file, events in ((system, 1), (user, 2), (named, 3)):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"[rotation]\nmax_events = {events}\n")
        assert load(named if file == named else None).rotation.max_events == events


def test_a_named_file_must_exist(bare: Path) -> None:
    """A file named on the command line is never ignored."""
    with pytest.raises(ConfigError, match="No such file or directory") as caught:
        load(bare / "absent.toml")
    assert caught.value.path == str(bare / "absent.toml")
    assert caught.value.exit_code == 78
    assert "config default" in (caught.value.hint or "")
    assert isinstance(caught.value.cause, FileNotFoundError)


def test_a_file_behind_a_closed_directory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon must not run with the defaults instead."""

    class Closed(type(Path())):  # type: ignore[misc]
        def exists(self, **_: object) -> bool:
            raise PermissionError

        def read_text(self, **_: object) -> str:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(places, "SYSTEM_FILE", Closed("/closed/config.toml"))
    with pytest.raises(ConfigError, match="Permission denied"):
        load()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[log", b"x = 1\nx = 2", b"\x00"])
def test_a_file_that_is_not_toml_is_named(bare: Path, content: bytes) -> None:
    """The file has another encoding, or a syntax error."""
    file = bare / "c.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"c\.toml") as caught:
        load(file)
    assert caught.value.hint


def test_a_byte_order_mark_is_ignored(bare: Path) -> None:
    """Some editors write one."""
    file = bare / "c.toml"
    file.write_bytes(b'\xef\xbb\xbf[log]\nlevel = "error"\n')
    assert load(file).log.level == "error"


def test_without_a_home_directory_the_systems_paths_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user id without an entry in the password database, and no HOME, as in many containers."""
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", dict[int, object]().__getitem__)
    config = load()
    assert config.state.directory == "/var/lib/ergo-capture"
    assert config.socket.path.endswith("/ergo-capture/capture.sock")


def test_a_state_directory_that_is_not_utf_8_is_refused() -> None:
    """Manifests and replies, which are JSON, could not name what is in it."""
    with pytest.raises(ConfigError, match="not UTF-8") as caught:
        load(state=os.fsdecode(b"/srv/\xff"))
    assert caught.value.exit_code == 78


def test_a_variable_in_an_option_is_refused_as_in_the_file() -> None:
    """A shell leaves `$HOME` in single quotes alone."""
    with pytest.raises(ConfigError, match="is not expanded"):
        load(state="$HOME/state")


@pytest.mark.parametrize("key", ["socket", "control"])
def test_sockets_may_be_urls(bare: Path, key: str) -> None:
    """Other programs write them so; abstract sockets are refused."""
    file = bare / "c.toml"
    file.write_text(f'[{key}]\npath = "unix:///run/x.sock"\n')
    assert getattr(load(file), key).path == "/run/x.sock"
    file.write_text(f'[{key}]\npath = "@x"\n')
    with pytest.raises(ConfigError, match="abstract sockets are not supported"):
        load(file)


# --- reading ---


def test_every_section_is_read() -> None:
    """Values of each type arrive converted."""
    config = parse(
        """
        [socket]
        mode = "0600"
        [journal]
        segment_bytes = "8MiB"
        decision_delay = "0s"
        [session]
        in_doubt = "interrupt"
        [bundle]
        style = "pretty"
        [graphs.flights]
        max_in_flight = 1
        max_per_window = 20
        rate_window = "10m"
        deadline = "1h30m"
        max_retries = 2
        adapter_provenance = "a"
        runtime_provenance = "r"
        engine = "fixed"
        [graphs."name with spaces.ü"]
        engine = { kind = "scripted", file = "s.json" }
        """,
        "c.toml",
    )
    assert config.socket.mode == 0o600
    assert config.journal.segment_bytes == Size(8 << 20)
    assert config.session.in_doubt == "interrupt"
    assert config.graphs["flights"] == GraphConfig(
        max_in_flight=1,
        max_per_window=20,
        rate_window=Duration(600_000_000_000),
        deadline=Duration(5_400_000_000_000),
        max_retries=2,
        adapter_provenance="a",
        runtime_provenance="r",
    )
    assert config.graphs["name with spaces.ü"].engine == ScriptedEngineConfig(file="s.json")


def test_graphs_in_the_file_replace_the_default_graph() -> None:
    """``default`` exists beside ``[graphs.NAME]`` only if it is written too."""
    assert list(parse("[graphs.a]\n[graphs.b]\n", "c.toml").graphs) == ["a", "b"]


def test_settings_are_immutable() -> None:
    """A configuration in force stays as it is."""
    with pytest.raises(AttributeError):
        Config().rotation.max_events = 5  # type: ignore[misc]


# --- errors ---


@pytest.mark.parametrize(
    ("text", "key", "meant"),
    [
        ("[jurnal]\n", "jurnal", "journal"),
        ("[journal]\nsegment_byte = 1\n", "journal.segment_byte", "segment_bytes"),
        ("[limits]\nmax_client = 1\n", "limits.max_client", "max_clients"),
        ("[graphs.a]\n[graphs.b]\nmax_retry = 1\n", "graphs.b.max_retry", "max_retries"),
        ('[graphs."x y"]\nmax_retry = 1\n', 'graphs."x y".max_retry', "max_retries"),
        ('[graphs.a.engine]\nkind = "scripted"\nfil = "f"\n', "graphs.a.engine.fil", "file"),
    ],
)
def test_a_misspelt_key_is_refused_with_a_suggestion(text: str, key: str, meant: str) -> None:
    """An unknown key is refused by its full name, and the nearest key of its section is suggested."""
    error = refusal(text)
    assert error.message == f"read configuration 'c.toml': there is no setting `{key}`"
    assert error.hint == f"did you mean `{meant}`?"


def test_every_mistake_in_a_file_is_named() -> None:
    """Each is named once, without those that only follow from another one."""
    error = refusal(
        """
        [socket]
        mod = "0660"
        mode = 660
        [limits]
        max_clients = 0
        context_bytes = "17MiB"
        [retention]
        shipped_to = ["a"]
        [graphs.a.engine]
        kind = "process"
        command = 5
        [graphs.b]
        max_retry = 1
        engine = "proces"
        [graphs.c.egress.d]
        command = ["x"]
        route = {}
        [graphs.e]
        max_retry = 1
        [ship.targets.a]
        verify = "no"
        """
    )
    found = [each.message.removeprefix("read configuration 'c.toml': ") for each in (error, *error.others)]
    assert [message.partition(", expected one of")[0] for message in found] == [
        "there is no setting `socket.mod`",
        '`socket.mode`: 660 is not a file mode; write one such as "0660"',
        "`limits.max_clients`: Expected `int` >= 1",
        "`limits`: `context_bytes` must be at most 16MiB",
        "`graphs.a.engine.command`: Expected `array`, got `int`",
        "there is no setting `graphs.b.max_retry`",
        "`graphs.b.engine.kind`: Invalid value 'proces'",
        "there is no setting `graphs.c.egress.d.route`",
        "`graphs.c.egress.d`: Object missing required field `routes`",
        "there is no setting `graphs.e.max_retry`",
        "`ship.targets.a.verify`: Invalid enum value 'no'",
        "`ship.targets.a`: Object missing required field `url`",
    ]


def test_a_key_of_another_section_is_not_suggested() -> None:
    """``max_bytes`` is a setting of ``[rotation]``; in ``[session]`` it would be refused again."""
    error = refusal("[session]\nmax_byte = 1\n")
    assert "there is no setting `session.max_byte`" in error.message
    assert "max_bytes" not in (error.hint or "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[session]\nlinger = "soon"\n', "`session.linger`: 'soon' is not a duration"),
        ("[session]\nlinger = 30\n", "`session.linger`: 30 is not a duration"),
        ('[limits]\nmax_frame_bytes = "1 parsec"\n', "`limits.max_frame_bytes`: '1 parsec' is not a size"),
        ("[socket]\nmode = 660\n", "`socket.mode`: 660 is not a file mode"),
        ("[limits]\nmax_clients = true\n", "`limits.max_clients`: Expected `int`, got `bool`"),
        ("[limits]\nmax_clients = 0\n", "`limits.max_clients`: Expected `int` >= 1"),
        ("[socket]\nbacklog = 65536\n", "`socket.backlog`: Expected `int` <= 65535"),
        (
            '[log]\nlevel = "loud"\n',
            "`log.level`: Invalid enum value 'loud', expected one of `debug`, `info`, `warning`, `error`",
        ),
        ("[bundle]\nstyle = 3\n", "`bundle.style`: Expected `str`, got `int`, expected one of `compact`, `pretty`"),
        ('[graphs.a]\n[graphs.b]\nrate_window = "10"\n', "`graphs.b.rate_window`: '10' is not a duration"),
        (
            '[graphs.a]\nengine = "fast"\n',
            "`graphs.a.engine.kind`: Invalid value 'fast', expected one of `fixed`, `scripted`",
        ),
        ('[graphs.a]\nengine = "scripted"\n', "`graphs.a.engine`: Object missing required field `file`"),
        ("graphs = 3\n", "`graphs`: Expected `object`, got `int`"),
        ("[graphs]\na = 3\n", "`graphs.a`: Expected `object`, got `int`"),
        ("log = 3\n", "`log`: Expected `object`, got `int`"),
        ("[graphs]\n", "`graphs` names no graph"),
    ],
)
def test_an_invalid_value_is_refused_with_its_key(text: str, message: str) -> None:
    """The message has the key's full path and what is allowed."""
    error = refusal(text)
    assert message in error.message
    assert error.hint


@pytest.mark.parametrize(
    "setting",
    ["journal.segment_bytes", "journal.queue_bytes", "limits.max_frame_bytes", "limits.session_queue_bytes"],
)
def test_a_queue_of_size_zero_is_refused(setting: str) -> None:
    """P9: with a bound of zero every client would wait for ever."""
    section, key = setting.split(".")
    assert f"`{section}`: `{key}` must be at least" in refusal(f"[{section}]\n{key} = 0\n").message


@pytest.mark.parametrize("text", ["x = " + "9" * 5000, "x = " + "[" * 50_000, "x = " + "[" * 50_000 + "]" * 50_000])
def test_extreme_toml_is_a_configuration_error(text: str) -> None:
    """Numbers and nesting beyond the interpreter's limits."""
    assert "read configuration 'c.toml'" in refusal(text).message


@given(st.text(max_size=60))
def test_any_text_is_a_configuration_or_a_configerror(text: str) -> None:
    """No text makes the reader fail in another way."""
    with contextlib.suppress(ConfigError):
        parse(text, "c.toml")


# --- printing ---

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
paths = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="~$"), max_size=12)
graphs = st.builds(
    GraphConfig,
    max_in_flight=st.none() | st.integers(0, 1 << 62),
    rate_window=st.none() | st.integers(0, 1 << 70).map(Duration),
    deadline=st.none() | st.just(Duration(0)),
    adapter_provenance=names,
    retention=st.none()
    | st.builds(
        GraphRetentionConfig,
        max_age=st.none() | st.integers(0, 1 << 70).map(Duration),
        max_bytes=st.none() | st.integers(0, 1 << 50).map(Size),
        max_bundles=st.none() | st.integers(0, 1 << 40),
    ),
    engine=st.builds(ScriptedEngineConfig, file=paths)
    | st.sampled_from(["Completed", {"Failed": "RuntimeError"}]).map(lambda t: FixedEngineConfig(termination=t)),
)


@given(st.dictionaries(names, graphs, min_size=1, max_size=3), st.booleans())
def test_a_printed_configuration_reads_back(tables: dict[str, GraphConfig], comments: bool) -> None:
    """The file that ``config show`` prints means the same, whatever the names of the graphs."""
    config = msgspec.structs.replace(Config(), graphs=tables)
    assert parse(configuration.to_toml(config, comments=comments), "printed") == config


# --- paths in it ---

PATHS = [
    ("[socket]\npath = {}", "socket.path"),
    ("[control]\npath = {}", "control.path"),
    ("[state]\ndirectory = {}", "state.directory"),
    ("[metrics]\ntextfile = {}", "metrics.textfile"),
    ('[graphs.a.engine]\nkind = "scripted"\nfile = {}', "graphs.a.engine.file"),
    ('[graphs.a.engine]\nkind = "socket"\npath = {}', "graphs.a.engine.path"),
]


def value_of(config: Config, key: str) -> object:
    """Return the setting of that name."""
    value: object = config
    for name in key.split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return value


@pytest.mark.parametrize(("text", "key"), PATHS)
def test_a_tilde_in_a_path_is_the_home_directory(text: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be a directory called ``~`` below the current one."""
    monkeypatch.setenv("HOME", "/home/someone")
    assert value_of(parse(text.format('"~/x.prom"'), "c.toml"), key) == "/home/someone/x.prom"


@pytest.mark.parametrize("variable", ["$HOME", "${XDG_STATE_HOME}"])
@pytest.mark.parametrize(("text", "key"), PATHS)
def test_a_variable_in_a_path_is_refused(text: str, key: str, variable: str) -> None:
    """It is not expanded; the error names the setting, the variable and what to write."""
    error = refusal(text.format(f'"{variable}/x.prom"'))
    section, _, setting = key.rpartition(".")
    assert f"`{section}`: `{setting}` '{variable}/x.prom': `{variable}` is not expanded" in error.message
    assert "begin it with `~`" in error.message


def test_a_tilde_without_a_home_directory_is_refused() -> None:
    """The error names the user."""
    error = refusal('[state]\ndirectory = "~nobody-of-that-name/x"\n')
    assert "there is no home directory for `~nobody-of-that-name`" in error.message


def test_tildes_in_an_engines_command_are_expanded_as_a_shell_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may begin the program and arguments; variables are left to programs such as ``sh -c``."""
    monkeypatch.setenv("HOME", "/home/someone")
    command = '["~/bin/python", "~/engine.py", "--x=~/y", "~", "$HOME"]'
    config = parse(f'[graphs.a.engine]\nkind = "process"\ncommand = {command}\n', "c.toml")
    assert value_of(config, "graphs.a.engine.command") == (
        "/home/someone/bin/python", "/home/someone/engine.py", "--x=~/y", "~", "$HOME",
    )  # fmt: skip


def test_a_variable_in_an_engines_program_is_refused() -> None:
    """There is no shell that would expand it."""
    error = refusal('[graphs.a.engine]\nkind = "process"\ncommand = ["$HOME/engine"]\n')
    assert "`graphs.a.engine`: `command` '$HOME/engine': `$HOME` is not expanded" in error.message


def test_a_user_without_a_daemon_finds_that_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This is for clients only; one's own daemon comes first, and a configured socket before both."""
    system = tmp_path / "system"
    monkeypatch.setattr(places, "SYSTEM_RUNTIME", system)
    monkeypatch.setattr(places, "SYSTEM_STATE", system / "state")
    monkeypatch.setattr("platformdirs.user_runtime_path", lambda _: tmp_path / "run")
    own = configuration.load()
    assert configuration.load(client=True) == own
    (system / "state").mkdir(parents=True)
    (system / "capture.sock").touch()
    found = configuration.load(client=True)
    assert (found.socket.path, found.state.directory) == (f"{system}/capture.sock", f"{system}/state")
    assert found.control.path == f"{system}/control.sock"
    assert configuration.load() == own
    assert configuration.load(client=True, socket="/x.sock", state="/s").socket.path == "/x.sock"
    for path in (Path(own.socket.path), Path(own.state.directory) / "x"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert configuration.load(client=True) == own


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[ship.targets.archive]\nurl = "http://x"', "`ship.targets.archive`: `url` must begin with s3://"),
        (
            '[ship.targets.a]\nurl = "s3://b"\nverify = "no"',
            "`ship.targets.a.verify`: Invalid enum value 'no', expected one of",
        ),
        ('[ship.targets.a]\nurl = "s3://b"\nverfy = "read"', "there is no setting `ship.targets.a.verfy`"),
        ('[ship.targets.A]\nurl = "s3://b"', "`targets` names 'A': write up to 32 lower-case letters"),
        ('[retention]\nshipped_to = ["a"]', "`retention.shipped_to` names 'a', and there is no table [ship.targets.a]"),
        ('[ship]\ntextfile = "/x"', "`textfile` must end in .prom"),
    ],
)
def test_a_target_that_cannot_be_used_is_named(text: str, sentence: str) -> None:
    """The other target is right, and is not named."""
    with pytest.raises(ConfigError) as caught:
        parse('[ship.targets.right]\nurl = "s3://b"\n' + text, "t")
    assert sentence in caught.value.message


def test_a_context_store_that_no_manifest_holds_is_refused() -> None:
    """A manifest's size has a bound, so the store must be smaller."""
    assert "`limits`: `context_bytes` must be at most 16MiB" in refusal('[limits]\ncontext_bytes = "17MiB"').message
