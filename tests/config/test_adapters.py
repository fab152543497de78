"""Graphs with an adapter in the configuration."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.adapter.cases import flight
from tests.daemons import configured, running_daemon

from ergo_capture import config as configuration
from ergo_capture.cli import app
from ergo_capture.config import Config, ConfigError
from ergo_capture.errors import ExitCode
from ergo_capture.server.factories import graphs_of
from ergo_capture.server.ops.reload import Reloader

ADAPTER = flight("flights-acc-2000")[0]["adapter_yaml"]
GRAPH = '[graphs.flights]\nadapter = "adapter.yaml"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a configuration with an adapter beside it."""
    (tmp_path / "adapter.yaml").write_text(ADAPTER)
    path = tmp_path / "config.toml"
    path.write_text(GRAPH)
    return path


def check(file: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Return the exit code of ``config check``, and what it says on both outputs."""
    code = app.run(["config", "check", str(file)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_path_of_an_adapter_begins_at_the_configuration(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory in which the daemon is started does not matter."""
    monkeypatch.chdir("/")
    assert configuration.load(file).graphs["flights"].adapter == str(file.parent / "adapter.yaml")


def test_check_says_what_the_adapter_is_and_that_episodes_run_one_after_the_other(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its provenance is the reference's."""
    code, out, err = check(file, capsys)
    assert code == 0
    assert out.splitlines()[0] == (
        "graph 'flights': adapter:flights_adapter@1.0.0;sha256:"
        f"{graphs_of(configuration.load(file))['flights'].adapter_provenance[-64:]}; "
        "effects write late_ratio, total: pipeline 1"
    )
    assert "pipeline" not in err


def test_check_warns_of_a_pipeline_that_counts_as_one(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If effects write nothing, there is no warning."""
    file.write_text(GRAPH + 'engine = { kind = "python", callable = "tests.engine.scripts:obey", pipeline = 8 }\n')
    assert "pipeline = 8 counts as 1" in check(file, capsys)[2]
    (file.parent / "adapter.yaml").write_text(ADAPTER.replace("writable: true", "writable: false"))
    code, out, err = check(file, capsys)
    assert (code, err) == (0, "")
    assert "effects write nothing" in out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("type: object", "type: objekt"), "manifest_rule: adapter manifest validation failed: "),
        (("id: flights", "id: Flights"), "(ADP-1); at $.id, line 2 column 5 of "),
        (("version: 1.0.0", "version: [1"), "manifest_unreadable: parse adapter manifest "),
        (("kind: adapter\n", ""), "manifest_shape: "),
    ],
)
def test_a_bad_adapter_is_found_by_check(
    file: Path, change: tuple[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message has a code, the place in the YAML, and what to do."""
    (file.parent / "adapter.yaml").write_text(ADAPTER.replace(*change))
    code, _, err = check(file, capsys)
    assert code == ExitCode.CONFIG
    assert "configure graph 'flights': " in err
    assert said in err
    assert " line " in err
    assert "column " in err
    assert "Try: " in err


def test_a_hint_on_an_empty_adapter_says_that_it_is_empty(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message of the reference, `invalid type: null`, does not."""
    (file.parent / "adapter.yaml").write_text("# to be written\n")
    code, _, err = check(file, capsys)
    assert code == ExitCode.CONFIG
    assert "Try: write the manifest: the file holds nothing" in err


def test_an_adapter_that_is_not_there_is_found_by_check(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is not UTF-8 is found too."""
    path = file.parent / "adapter.yaml"
    path.unlink()
    code, _, err = check(file, capsys)
    assert (code, f"read adapter '{path}': No such file or directory" in err) == (ExitCode.CONFIG, True)
    path.write_bytes(b"\xff")
    assert "it is not UTF-8" in check(file, capsys)[2]


def test_an_adapter_that_is_another_one_than_stated_is_found_by_check(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message says both."""
    file.write_text(GRAPH + 'adapter_provenance = "adapter:other@1"\n')
    code, _, err = check(file, capsys)
    assert code == ExitCode.CONFIG
    assert "adapter_provenance is 'adapter:other@1', and the adapter" in err
    assert "adapter:flights_adapter@1.0.0;sha256:" in err


def test_a_missing_extra_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback is printed."""
    monkeypatch.setitem(sys.modules, "jsonschema_rs", None)
    code, _, err = check(file, capsys)
    assert code == ExitCode.CONFIG
    assert "pip install 'ergo-capture[adapter]'" in err


async def test_a_bad_adapter_changes_nothing_at_a_reload_and_a_changed_one_is_named(tmp_path: Path) -> None:
    """Its path stays the same."""
    adapter = tmp_path / "adapter.yaml"
    adapter.write_text(ADAPTER)
    text = f'[graphs.default]\nadapter = "{adapter}"\n'
    async with running_daemon(text) as daemon:

        def reread() -> Config:
            return configured(daemon.state, daemon.socket, text)

        daemon.service.reloader = Reloader(daemon.service.components, reread)
        before = daemon.service.registry.graphs["default"]
        adapter.write_text(ADAPTER.replace("type: object", "type: objekt"))
        with pytest.raises(ConfigError, match="ADP-8"):
            await daemon.service.reloader.reload()
        assert daemon.service.registry.graphs["default"] is before
        adapter.write_text(ADAPTER.replace("version: 1.0.0", "version: 1.0.1"))
        assert (await daemon.ask("reload"))["applied"] == ["graphs.default.adapter"]
        now = daemon.service.registry.graphs["default"]
        assert now.adapter_provenance.startswith("adapter:flights_adapter@1.0.1;")
