"""The manual agrees with the code: each protocol field, setting, code, log line and metric is in it, and no others."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from tests.contract.documents import (
    MANUAL,
    Block,
    assert_rows,
    assert_same,
    at_line,
    blocks,
    environment,
    names_below,
    of_kind,
    place,
    quoted,
    rows_below,
    table_below,
)
from tests.daemons import COMMAND, Wire, event, running_daemon, short_directory
from tests.engine.counting import ADAPTER
from tests.shared import REPOSITORY

from ergo_capture import config as configuration
from ergo_capture import manual, telemetry
from ergo_capture.adapter import load_adapter
from ergo_capture.config import Config
from ergo_capture.config.graphs import EgressChannelConfig, EngineConfig, GraphConfig
from ergo_capture.config.shipping import TargetConfig
from ergo_capture.engine.spec import FORMS
from ergo_capture.kernel.effects import ActionEffect, Value
from ergo_capture.kernel.events import ExternalEvent, ExternalEventKind
from ergo_capture.kernel.outcomes import ErrKind, RunTermination
from ergo_capture.kernel.time import EventTime
from ergo_capture.protocol import capture, control
from ergo_capture.protocol.capture import BadLine, Code
from ergo_capture.protocol.engine import Ready, encode_begin, encode_end, encode_run, read_ran, read_ready
from ergo_capture.server.net.frame_reader import FrameReader
from ergo_capture.server.ops.reload import AT_ONCE
from ergo_capture.ship.metrics import exposition as shipping_metrics
from ergo_capture.ship.service import shippers_of

PROTOCOL = MANUAL / "protocol.md"
ENGINES = MANUAL / "engines.md"
#: The levels of the log, by the method that writes a line.
LEVELS = {name: name for name in ("debug", "info", "warning", "error", "critical")} | {"exception": "error"}
#: The type of each field that the daemon says, as the manual calls it.
TYPES = {bool: "boolean", int: "integer", str: "string", dict: "object", list: "array", type(None): "null"}


# --- the package ---


def test_topics_are_the_files_of_the_manual() -> None:
    """They are in reading order, each with its title."""
    assert set(manual.topics()) == {path.stem for path in MANUAL.glob("*.md")}
    assert next(iter(manual.topics())) == "terms"
    for name, title in manual.topics().items():
        assert manual.read(name).startswith(f"# {title}\n")


def test_a_topic_that_is_not_there_is_a_key_error() -> None:
    """A path is not a topic either."""
    for name in ("nothing", "", "../settings", "__init__"):
        with pytest.raises(KeyError):
            manual.read(name)


def test_each_term_is_defined_once_and_used() -> None:
    """It is used in another topic, by the word of the glossary."""
    rows = re.findall(r"^\| (?!term \|)([^|]+) \|", (MANUAL / "terms.md").read_text(encoding="utf-8"), re.MULTILINE)
    terms = [term.lower() for row in rows for term in row.split(", ")]
    assert len(set(terms)) == len(terms) > 50
    others = " ".join(" ".join(manual.read(name).split()) for name in manual.topics() if name != "terms").lower()
    assert [term for term in terms if not re.search(rf"\b{re.escape(term)}", others)] == []


# --- the protocol of clients ---


def test_the_client_frames_are_read_by_the_daemon() -> None:
    """Every example of a client is a frame without fault, and every kind of frame has one."""
    seen = set()
    for block in of_kind("json", "client"):
        for line in block.values:
            items = FrameReader(1 << 20, 10_000, 5).feed(line.encode() + b"\n")
            assert items
            assert not any(isinstance(item, BadLine) for item in items), line
            seen.add(json.loads(line)["type"])
    assert seen == {"hello", "open", "event", "events", "flush", "close", "ping", "end"}


@pytest.mark.parametrize("frame", [capture.Hello, capture.Open, capture.End])
def test_the_fields_of_a_client_frame_are_the_structs(frame: type[msgspec.Struct]) -> None:
    """The table has the defaults of the structs."""
    tag = str(frame.__struct_config__.tag)
    rows = {row[0].strip("`"): row[2].strip("`") for row in table_below(PROTOCOL, tag)}
    fields = {field.name: field for field in msgspec.structs.fields(frame)}
    assert rows.keys() == fields.keys()
    for name, default in rows.items():
        field = fields[name]
        if default:
            actual = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            assert json.loads(default) == actual
        else:
            assert field.required


def test_the_fields_of_a_loss_are_the_structs() -> None:
    """The example of a refusal is a loss too."""
    text = PROTOCOL.read_text(encoding="utf-8")
    rows = text.partition("| field of `lost` |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE)) == set(capture.Lost.__struct_fields__)
    (example,) = (
        line for line in text.splitlines() if line.startswith('{"type": "error", "code": "acknowledged_lost"')
    )
    (error,) = capture.read_answers(example.encode() + b"\n")
    assert isinstance(error, capture.Error)
    assert error.lost == capture.Lost(1000, 600, "e600")


def test_the_kinds_of_events_are_all_there() -> None:
    """They are in the table of an event."""
    (kinds,) = (row[3] for row in table_below(PROTOCOL, "An event") if row[0] == "`kind`")
    assert {kind.value for kind in ExternalEventKind} | {"Tick"} == set(re.findall(r"`(\w+)`", kinds)) - {"kind"}


async def test_the_daemons_frames_are_those_of_a_real_conversation() -> None:
    """Each frame has the fields of the example and of the table, with the types of the table."""
    frames: dict[str, dict[str, Any]] = {}
    async with running_daemon() as daemon:
        async with daemon.wire() as wire:
            await wire.say(
                {"type": "hello", "protocol": "ergo-capture.v1"}, {"type": "open", "decisions": True, "notices": True}
            )
            await wire.say(
                event("e1") | {"paylod": {}}, event("e1"), {"type": "flush"}, {"type": "ping"}, {"type": "close"}
            )
            frames |= {frame["type"]: frame for frame in await wire.rest()}
        async with daemon.wire() as wire:
            await _refused(wire)
            frames |= {frame["type"]: frame for frame in await wire.rest() if frame["type"] == "error"}
    frames |= await _frames_of_an_adapter()
    examples = {frame["type"]: frame for block in of_kind("json", "daemon") for frame in map(json.loads, block.values)}
    assert frames.keys() == examples.keys()
    for kind, frame in frames.items():
        assert set(frame) == set(examples[kind]), kind
        if kind == "pong":
            continue
        rows = {row[0].strip("`"): row[1] for row in table_below(PROTOCOL, kind)}
        assert set(frame) == {"type", *rows}, kind
        for name, said in rows.items():
            assert TYPES[type(frame[name])] in said, (kind, name)
    assert set(frames["decision"]["decision"]) <= _record_fields()
    assert set(examples["welcome"]["limits"]) == set(frames["welcome"]["limits"])


async def _frames_of_an_adapter() -> dict[str, dict[str, Any]]:
    """Return the frames that are sent only with an adapter: a payload is refused, and the store grows too large."""
    kept = ("refused", "left_over")
    with short_directory() as place:
        (place / "adapter.yaml").write_text(ADAPTER)
        text = f'[limits]\ncontext_bytes = "1KiB"\n[graphs.default]\nadapter = "{place}/adapter.yaml"\n'
        text += 'engine = { kind = "python", callable = "tests.engine.counting:add" }\n'
        async with running_daemon(text) as daemon, daemon.session() as wire:
            events = []
            for name, payload in (
                ("a", {"n": 101}),
                ("b", {"n": 1}),
                ("long.c", {"n": 1, "total": 1}),
                ("d", {"n": 1}),
            ):
                events.append(event(name, payload=payload)["event"] | {"semantic_kind": "add"})
            await wire.say({"type": "events", "events": events}, {"type": "close"})
            return {frame["type"]: frame for frame in await wire.rest() if frame["type"] in kept}


async def _refused(wire: Wire) -> None:
    await wire.say({"type": "hello", "protocol": "ergo-capture.v1"}, {"type": "open", "graph": "flight"})


def _record_fields() -> set[str]:
    from ergo_capture import EpisodeInvocationRecord

    text = PROTOCOL.read_text(encoding="utf-8").partition("| field of the record |")[2].partition("\n\n")[0]
    names = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert names == set(EpisodeInvocationRecord.__struct_fields__)
    return names


def test_every_code_is_explained() -> None:
    """No other code is explained."""
    assert_rows(PROTOCOL, "Codes", (code.value for code in Code))


def test_the_operators_requests_are_read_by_the_daemon() -> None:
    """Every example is a request, every request has one, and its answer is in the table."""
    requests = [json.loads(line) for block in of_kind("json", "operator") for line in block.values]
    for request in requests:
        control.read_request(json.dumps(request).encode())
    assert {request["command"] for request in requests} == set(control.COMMANDS)
    assert_rows(MANUAL / "operating.md", "The control protocol", control.COMMANDS)


# --- the protocol of engines ---


def test_every_kind_of_engine_is_there() -> None:
    """They are in the table of engines, in what ``replay --engine`` takes, and in the page on replaying."""
    kinds = {str(kind.__struct_config__.tag) for kind in get_args(EngineConfig)}
    rows = table_below(ENGINES, "Engines, and the protocol ergo-engine.v1")
    assert_same((re.findall(r'"(\w+)"', row[0])[0] for row in rows), kinds, "the first table of engines.md")
    forms = FORMS.split(", ")
    assert_same((form.partition(":")[0] for form in forms), kinds, "FORMS in engine/spec.py")
    text = (MANUAL / "replaying.md").read_text(encoding="utf-8")
    assert [form for form in forms if f"`{form}`" not in text] == []


def test_the_engines_messages_are_read_by_the_daemon() -> None:
    """Each example is `ready`, or `ran` with a result."""
    for block in of_kind("json", "engine"):
        for line in block.values:
            if json.loads(line)["type"] == "ready":
                read_ready(line.encode())
            else:
                assert read_ran(line.encode()).result is not None, line


def test_the_requests_to_an_engine_are_what_the_daemon_writes() -> None:
    """They are equal byte for byte, and each field is in the table."""
    for block in of_kind("json", "run"):
        for line in block.values:
            run = json.loads(line)
            payload = b"" if run["payload"] is None else json.dumps(run["payload"], separators=(",", ":")).encode()
            at = EventTime(**run["at"])
            happened = ExternalEvent.with_payload(run["event_id"], ExternalEventKind(run["kind"]), at, payload)
            deadline = None if run["deadline"] is None else EventTime(**run["deadline"])
            assert encode_run(run["id"], run["graph_id"], happened, deadline).decode() == line + "\n"
            assert names_below(ENGINES, "run") | {"type"} == set(run)


def test_an_engine_that_is_told_of_sessions_reads_what_the_daemon_writes() -> None:
    """They are equal byte for byte, and each field is in the table."""
    (block,) = of_kind("json", "session")
    begin, run, end = map(json.loads, block.values)
    of = (run["session"], run["part"])
    payload = json.dumps(run["payload"], separators=(",", ":")).encode()
    happened = ExternalEvent(run["event_id"], ExternalEventKind(run["kind"]), EventTime(7, 0), payload, "add")
    lines = [
        encode_begin(begin["graph_id"], *of),
        encode_run(run["id"], run["graph_id"], happened, None, *of),
        encode_end(*of),
    ]
    assert [line.decode() for line in lines] == [line + "\n" for line in block.values]
    rows = {row[0].strip("`"): row[1].split(", ") for row in table_below(ENGINES, "Sessions")}
    for name, message in (("begin", begin), ("end", end)):
        assert {field for field, places in rows.items() if name in places} | {"type"} == set(message)
    assert {field for field, places in rows.items() if "run" in places} == set(run) - names_below(ENGINES, "run") - {
        "type"
    }


def test_the_fields_of_an_engines_messages_are_the_ones_that_are_read() -> None:
    """The manual names every field that is read; a wrong value of a field of `ran` is refused."""
    assert_rows(ENGINES, "ready", Ready.__struct_fields__)
    assert_rows(ENGINES, "Effects", ActionEffect.__struct_fields__)
    for name in names_below(ENGINES, "ran") - {"id", "type", "termination"}:
        wrong = json.dumps({"id": 1, "termination": "Completed", name: 7}).encode()
        assert read_ran(wrong).result is None, name


def test_every_termination_is_there_and_says_whether_it_is_tried_again() -> None:
    """The table says the same as the supervisor."""
    rows = {row[0].strip("`"): row[1] for row in table_below(ENGINES, "Terminations")}
    found = {RunTermination.from_builtins(json.loads(text)): said == "yes" for text, said in rows.items()}
    wanted = [RunTermination.Completed, RunTermination.TimedOut, RunTermination.Aborted]
    wanted += [RunTermination.Failed(kind) for kind in ErrKind]
    assert found == {termination: termination.retryable for termination in wanted}


def test_every_kind_of_value_is_there() -> None:
    """Each example can be decoded."""
    rows = re.findall(r"^\| `(\{.*\})` \|", ENGINES.read_text(encoding="utf-8"), re.MULTILINE)
    values = [json.loads(text) for text in rows if "Failed" not in text and "kind =" not in text]
    assert {name for value in values for name in value} == set(Value.__struct_fields__)
    for value in values:
        msgspec.convert(value, type=Value)


async def test_every_figure_of_an_engine_is_there(tmp_path: Path) -> None:
    """The figures are those of an external engine in `status --json`."""
    async with running_daemon('[graphs.default]\nengine = { kind = "socket", path = "nowhere.sock" }\n') as daemon:
        (engine,) = (await daemon.ask("status"))["status"]["running"]["engines"]
    assert_rows(ENGINES, "Counters", engine["figures"])


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
@pytest.mark.parametrize("block", [block for block in of_kind("javascript") if block.name], ids=at_line)
def test_a_node_engine_replays_the_scenario(block: Block) -> None:
    """The engine in bash does the same."""
    with place(block.document) as directory:
        for arguments in (
            ["simulate", "scenario.json", "-o", "run.capture.json"],
            ["replay", "run.capture.json", "--engine", f"process:node {block.name}"],
        ):
            subprocess.run([*COMMAND, *arguments], cwd=directory, env=environment(directory), check=True, timeout=60)


# --- settings ---


def _settings() -> dict[str, str]:
    """Return every setting with its default, as the configuration prints it."""
    found: dict[str, str] = {}
    section = ""
    for line in configuration.to_toml(Config()).splitlines():
        if line.startswith(("[", "#[")):
            section = line.strip("#[]").replace("graphs.default", "graphs.NAME")
        elif line:
            key, _, value = line.removeprefix("#").partition(" =")
            found[f"{section}.{key}"] = value.strip()
    return {key: value for key, value in found.items() if not key.startswith("graphs.NAME.engine.")}


def test_every_setting_is_in_the_manual_with_its_default() -> None:
    """There are no others in the manual; settings of engines are in the tests below."""
    settings = _settings()
    found: dict[str, str] = {}
    for section in dict.fromkeys(key.rpartition(".")[0] for key in settings):
        for row in table_below(MANUAL / "configuration.md", f"[{section}]"):
            found[f"{section}.{row[0].strip('`')}"] = row[1].strip("`")
            assert row[2], row
    assert_same(found, settings, "configuration.md")
    assert found == settings


def test_the_settings_that_a_reload_puts_in_force_are_named() -> None:
    """Whole tables are in brackets, other settings are named."""
    paragraph = (
        (MANUAL / "configuration.md").read_text(encoding="utf-8").partition("A reload (")[2].partition("at once")[0]
    )
    named = {name.strip("[]") for name in re.findall(r"`(\[?[a-z._]+\]?)`", paragraph)}
    assert_same(named, map(".".join, AT_ONCE), "the paragraph on reloads in configuration.md")


def test_every_setting_of_a_target_is_in_the_manual_with_its_default() -> None:
    """Only its URL has no default."""
    rows = {
        row[0].strip("`"): row[1].strip("`") for row in table_below(MANUAL / "configuration.md", "[ship.targets.NAME]")
    }
    assert list(rows) == list(TargetConfig.__struct_fields__)
    lines = [f"{name} = {default}" for name, default in rows.items() if default]
    text = "\n".join(["[ship.targets.a]", 'url = "s3://b"', *lines])
    assert configuration.parse(text, "manual").ship.targets["a"] == TargetConfig(url="s3://b")
    assert len(lines) == len(rows) - 1


def test_every_setting_of_an_egress_channel_is_in_the_manual() -> None:
    """Each is required, and so has no default."""
    rows = {row[0].strip("`"): row[1] for row in table_below(MANUAL / "configuration.md", "[graphs.NAME.egress.NAME]")}
    assert rows == dict.fromkeys(EgressChannelConfig.__struct_fields__, "")
    assert all(field.required for field in msgspec.structs.fields(EgressChannelConfig))


@pytest.mark.parametrize("kind", get_args(EngineConfig))
def test_every_setting_of_an_engine_is_in_the_manual(kind: type[msgspec.Struct]) -> None:
    """Each is there with its default; those without one are required."""
    tag = str(kind.__struct_config__.tag)
    rows = {row[0].strip("`"): row[1].strip("`") for row in table_below(MANUAL / "configuration.md", f'kind = "{tag}"')}
    assert_same(rows, kind.__struct_fields__, f"the table below 'kind = \"{tag}\"' in configuration.md")
    for field in msgspec.structs.fields(kind):
        default = rows[field.name]
        assert field.required == (not default), field.name
        if default:
            table = ", ".join([f'kind = "{tag}"', f"{field.name} = {default}", *_required(kind)])
            text = f"[graphs.g]\nengine = {{ {table} }}"
            graph: GraphConfig = configuration.parse(text, "manual").graphs["g"]
            assert getattr(graph.engine, field.name) == field.default


def _required(kind: type[msgspec.Struct]) -> list[str]:
    """Return the settings of an engine that have no default, each with the example in its description."""
    return [
        f"{field.name} = {json.dumps(meta.examples[0])}"
        for field in msgspec.structs.fields(kind)
        if field.required
        for meta in field.type.__metadata__
        if isinstance(meta, msgspec.Meta) and meta.examples
    ]


# --- what the daemon says ---


def test_every_line_of_the_log_is_explained() -> None:
    """No other line is explained."""
    lines = {value for name, value in vars(telemetry).items() if name.isupper() and isinstance(value, str)}
    assert_same((name for row in rows_below(MANUAL / "log.md", "Lines") for name in quoted(row[0])), lines, "log.md")


def _log_calls() -> Iterator[tuple[str, ast.Call]]:
    """Yield every call that writes a line of the log, with its place."""
    for path in MANUAL.parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                logger = node.func.value
                if isinstance(logger, ast.Name) and logger.id == "log" and node.func.attr in LEVELS:
                    yield f"{path.name}:{node.lineno}", node


def test_every_line_of_the_log_has_its_level() -> None:
    """The lines of a row are compared together; a row with a line that no call names directly is left out."""
    levels: dict[str, set[str]] = {}
    for place_, call in _log_calls():
        assert not isinstance(call.args[0], ast.Constant), f"{place_}: the name of the line belongs into telemetry.py"
        assert isinstance(call.func, ast.Attribute)
        for node in ast.walk(call.args[0]):
            if isinstance(node, ast.Attribute):
                name = getattr(telemetry, node.attr)
                levels.setdefault(name, set()).add(LEVELS[call.func.attr])
    assert len(levels) > 50
    for row in rows_below(MANUAL / "log.md", "Lines"):
        names = quoted(row[0])
        if levels.keys() >= set(names):
            assert_same(
                row[1].split(", "), set().union(*(levels[name] for name in names)), f"the row of {names[0]} in log.md"
            )


def test_the_lines_that_are_never_left_out_are_named() -> None:
    """They are in the last section, except for the lines about the log itself."""
    text = (MANUAL / "log.md").read_text(encoding="utf-8").partition("never suppressed:")[2]
    named = re.findall(r"`(\w+\.\w+)`", text)
    of_the_log = {telemetry.LOG_SUPPRESSED, telemetry.LOG_DROPPED}
    assert_same(named, telemetry.NEVER_SUPPRESSED - of_the_log, "the last section of log.md")


async def test_every_metric_is_explained() -> None:
    """No other metric is explained."""
    async with running_daemon() as daemon:
        text: str = (await daemon.ask("metrics"))["text"]
    kinds = dict(re.findall(r"^# TYPE ergo_capture_(\w+) (\w+)$", text, re.MULTILINE))
    rows = rows_below(MANUAL / "metrics.md", "The metrics of the daemon")
    assert_same((name for row in rows for name in quoted(row[0])), kinds, "metrics.md")


async def test_every_alert_asks_for_a_metric_that_exists() -> None:
    """An alert on a misspelt name would never fire."""
    async with running_daemon() as daemon:
        text: str = (await daemon.ask("metrics"))["text"]
        targets = configuration.parse('[ship.targets.a]\nurl = "s3://b"', "test")
        text += shipping_metrics(daemon.state, shippers_of(targets, list)).decode()
    alerts = " ".join(row[0] + row[1] for row in table_below(MANUAL / "operating.md", "Alerts"))
    for name in re.findall(r"ergo_capture_\w+", alerts):
        assert re.search(rf"^{name}\b", text, re.MULTILINE), name


#: Series that make an alert fire after some minutes, in Prometheus's notation, by a word of the alert's rule.
FIRES = {
    "ergo_capture_ready": {"ergo_capture_ready{L}": "0x20"},
    "node_textfile_mtime_seconds": {'node_textfile_mtime_seconds{file="/x/ergo-capture.prom"}': "0x20"},
    "ergo_capture_oldest_undurable_seconds": {"ergo_capture_oldest_undurable_seconds{L}": "6x20"},
    "ergo_capture_disk_free_bytes": {"ergo_capture_disk_full{L}": "1x20"},
    "ergo_capture_journal_failed": {"ergo_capture_journal_failed{L}": "1x20"},
    "ergo_capture_undecided_events": {
        'ergo_capture_undecided_events{graph="g", L}': "3x20",
        "ergo_capture_decisions_total{L}": "7x20",
    },
    "ergo_capture_memory_limit_bytes": {
        'ergo_capture_memory_bytes{kind="ids", L}': "95x20",
        'ergo_capture_memory_limit_bytes{kind="ids", L}': "100x20",
    },
}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
def test_prometheus_reads_every_alert_and_fires_it(tmp_path: Path) -> None:
    """A rule whose two sides have different labels would never fire."""
    rules = [rule for row in table_below(MANUAL / "operating.md", "Alerts") if "ergo" in (rule := _rule(row[0]))]
    assert len(rules) > len(FIRES)
    groups = [{"alert": f"A{index}", "expr": rule, "labels": {"a": str(index)}} for index, rule in enumerate(rules)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "g", "rules": groups}]}))
    _promtool("check", "rules", tmp_path / "rules.yml")
    labels = 'instance="i", job="j", state_directory="/s"'
    tests: list[dict[str, Any]] = []
    for word, series in FIRES.items():
        (index,) = (index for index, rule in enumerate(rules) if word in rule)
        inputs = [{"series": name.replace("L}", f"{labels}}}"), "values": values} for name, values in series.items()]
        asked = {
            "expr": f'count(ALERTS{{alertname="A{index}", alertstate="firing"}})',
            "eval_time": "10m",
            "exp_samples": [{"labels": "{}", "value": 1}],
        }
        tests.append({"interval": "1m", "input_series": inputs, "promql_expr_test": [asked]})
    (tmp_path / "test.yml").write_text(json.dumps({"rule_files": ["rules.yml"], "tests": tests}))
    _promtool("test", "rules", tmp_path / "test.yml")


def _rule(cell: str) -> str:
    """Return a row's rule as one expression; in the manual, alternatives are apart."""
    return " or ".join(re.findall(r"`([^`]+)`", cell)).replace("\\|", "|")


def _promtool(*words: str | Path) -> None:
    ran = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


# --- the code ---


def _names_in(path: Path) -> set[str]:
    """Return the names that a file defines: functions, classes, and methods as ``Class.method``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = set()
    for node in tree.body:
        if isinstance(node, kinds):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, kinds)}
    return names


WALK = re.findall(r"`([\w/]+\.py): ([\w.]+)`", (MANUAL / "events.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("path", "name"), sorted(set(WALK)), ids=str)
def test_the_walk_of_an_event_names_what_is_there(path: str, name: str) -> None:
    """Each file and function of the walk exists."""
    file = MANUAL.parent / path
    assert file.is_file(), path
    assert name in _names_in(file), name


def test_every_row_of_the_walk_names_a_function() -> None:
    """A step without a function could not be looked up."""
    rows = [line for line in (MANUAL / "events.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    steps = [row for row in rows if not row.startswith("| step")]
    assert steps
    for row in steps:
        assert re.search(r"`[\w/]+\.py: [\w.]+`", row), row


@pytest.mark.parametrize(
    "block",
    [block for page in MANUAL.glob("*.md") for block in blocks(page) if block.name.endswith(".yaml")],
    ids=at_line,
)
def test_every_adapter_is_one(block: Block) -> None:
    """The whole manifest is accepted, as by `config check`."""
    assert load_adapter(block.text).provenance.startswith("adapter:")


def test_the_tower_of_the_manual_is_that_of_the_code() -> None:
    """It has every package, and the parts of the server."""
    packages = {path.parent.name for path in MANUAL.parent.glob("*/__init__.py")}
    assert_rows(MANUAL / "contributing.md", "The tower", packages)
    (server,) = (row[1] for row in table_below(MANUAL / "contributing.md", "The tower") if row[0] == "`server`")
    parts = {path.parent.name for path in (MANUAL.parent / "server").glob("*/__init__.py")}
    assert set(re.findall(r"`(\w+)` \(", server)) == parts
    for path in re.findall(r"`(\w+/[\w/]+\.(?:py|toml))`", (MANUAL / "contributing.md").read_text(encoding="utf-8")):
        top = REPOSITORY if path.startswith(("tests/", "config/ergo")) else MANUAL.parent
        assert "NAME" in path or (top / path).is_file(), path


def test_the_changelog_sends_nobody_to_a_module_that_is_not_there() -> None:
    """Each new import path is a module or package; names without a dot are modules in the path after them."""
    rows = table_below(MANUAL / "contributing.md", "Import paths of 0.1.0 and where they are now")
    named = {name for row in rows for name in re.findall(r"`(\w+(?:\.\w+)+)`", row[1]) if "NAME" not in name}
    assert named
    for name in named:
        place = MANUAL.parent / name.replace(".", "/")
        assert place.is_dir() or place.with_suffix(".py").is_file(), name
