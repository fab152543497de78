"""Egress channels in the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.adapter.cases import rows

from ergo_capture import config as configuration
from ergo_capture.adapter.egress import parse_egress_config
from ergo_capture.cli import app
from ergo_capture.config import Config, ConfigError
from ergo_capture.server.factories import graphs_of

ROWS = {row["name"]: row for row in rows("egress")}
#: Accepts set_context and send_one.
ADAPTER: str = ROWS["ok-three-intents"]["adapter_yaml"]
CHANNEL = '[graphs.g.egress.a]\ncommand = ["true"]\nroutes = { send_one = {} }\n'


def load(place: Path, text: str, adapter: str = ADAPTER) -> Config:
    """Return a configuration whose graph has the adapter."""
    (place / "adapter.yaml").write_text(adapter)
    path = place / "config.toml"
    path.write_text(text)
    return configuration.load(path)


def refusal(place: Path, text: str) -> ConfigError:
    """Return why a configuration is refused."""
    with pytest.raises(ConfigError) as caught:
        graphs_of(load(place, text))
    assert caught.value.exit_code == 78
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "ok-three-intents",
            (
                '[graphs.g]\nadapter = "adapter.yaml"\ndefault_ack_timeout = "2s"\n'
                '[graphs.g.egress.a]\ncommand = ["./egress-a"]\nroutes = { send_one = {} }\n'
            ),
        ),
        (
            "provenance-route-timeout-equals-default",
            (
                '[graphs.g]\nadapter = "adapter.yaml"\ndefault_ack_timeout = "2000ms"\n'
                '[graphs.g.egress.a]\ncommand = ["./egress-a"]\nroutes = { send_one = { ack_timeout = "2s" } }\n'
            ),
        ),
        (
            "ok-two-kinds-two-channels",
            (
                '[graphs.g]\nadapter = "adapter.yaml"\ndefault_ack_timeout = "2s"\n'
                '[graphs.g.egress.b]\ncommand = ["./egress-b"]\nroutes = { beta = { ack_timeout = "500ms" } }\n'
                '[graphs.g.egress.a]\ncommand = ["./egress-a"]\nroutes = { alpha = {} }\n'
            ),
        ),
    ],
)
def test_the_same_settings_have_the_reference_provenance(tmp_path: Path, name: str, text: str) -> None:
    """The order of the tables does not matter."""
    row = ROWS[name]
    egress = graphs_of(load(tmp_path, text, row["adapter_yaml"]))["g"].egress
    assert egress == parse_egress_config(row["egress_toml"])
    assert egress is not None
    assert egress.provenance() == row["egress_provenance"]


GRAPH = '[graphs.g]\nadapter = "adapter.yaml"\n'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[graphs.g]\n" + CHANNEL, "graph 'g': it has egress channels and no adapter"),
        (GRAPH + CHANNEL.replace("send_one", "other"), "egress route kind 'other' is not accepted by adapter"),
        (GRAPH + CHANNEL.replace("send_one", "set_context"), "claimed by both handler and egress"),
        (GRAPH + CHANNEL + CHANNEL.replace("egress.a", "egress.b"), "'send_one' go to the egress channels 'a' and 'b'"),
        (GRAPH + 'default_ack_timeout = "1us"\n' + CHANNEL, "the ack time-out 1us is not in whole milliseconds"),
        (GRAPH + CHANNEL.replace("{}", '{ ack_timeout = "0s" }'), "the ack time-out 0s is not in whole milliseconds"),
        (GRAPH + CHANNEL.replace('"true"', '" "'), "`graphs.g.egress.a`: `command` names no program"),
        (GRAPH + CHANNEL.replace('["true"]', "[]"), "`graphs.g.egress.a.command`: Expected `array` of length >= 1"),
        (GRAPH + CHANNEL.replace("routes", "route"), "there is no setting `graphs.g.egress.a.route`"),
    ],
)
def test_channels_that_cannot_work_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    """The error names the graph, and says what to write."""
    assert complaint in refusal(tmp_path, text).message


def test_a_similar_setting_is_suggested(tmp_path: Path) -> None:
    """Other settings have such suggestions too."""
    assert refusal(tmp_path, GRAPH + CHANNEL.replace("routes", "route")).hint == "did you mean `routes`?"


def test_check_warns_of_what_is_missing_for_intents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A program may be missing, or a channel for a kind that the adapter accepts."""
    load(tmp_path, GRAPH + CHANNEL.replace("true", "/nowhere/channel").replace("send_one = {}", ""))
    assert app.run(["config", "check", str(tmp_path / "config.toml")]) == 0
    err = capsys.readouterr().err
    assert "there is no program '/nowhere/channel' to run as its egress channel 'a'" in err
    assert "no egress channel takes intents of kind send_one, which its adapter accepts" in err


def test_check_says_that_episodes_run_one_after_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Intents are sent in the order of the decisions."""
    adapter = ADAPTER.replace("writable: true", "writable: false")
    engine = 'engine = { kind = "python", callable = "builtins:print", pipeline = 2 }\n'
    load(tmp_path, GRAPH + engine + CHANNEL, adapter)
    assert app.run(["config", "check", str(tmp_path / "config.toml")]) == 0
    assert "intents are sent in order, so its episodes run one after the other: pipeline = 2" in capsys.readouterr().err


def test_a_session_that_is_decided_elsewhere_has_no_channels(tmp_path: Path) -> None:
    """The run elsewhere sends its intents itself."""
    graph = graphs_of(load(tmp_path, GRAPH + CHANNEL))["g"]
    assert graph.egress is not None
    assert graph.without_engine().egress is None
