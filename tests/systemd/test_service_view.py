"""The access of the installed unit, compared with a configuration; and engines that compile at run time."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from ergo_capture import config as configuration
from ergo_capture.cli.support.service_view import ServiceView, service_warnings, ship_warnings, view_of
from ergo_capture.engine import compilers
from ergo_capture.engine.compilers import compiler_of, compiler_problem

#: The properties of the shipped unit that ``systemctl show`` prints.
SHIPPED = {
    "ProtectHome": "yes",
    "ProtectSystem": "strict",
    "PrivateTmp": "yes",
    "ReadWritePaths": "/run/ergo-capture",
    "StateDirectory": "ergo-capture",
    "NoExecPaths": "/",
    "ExecPaths": "/usr /bin /lib /lib64 /opt",
    "MemoryDenyWriteExecute": "yes",
}


def warnings(text: str, **shown: str) -> list[str]:
    """Return the warnings about a configuration under the shipped unit with a drop-in."""
    loaded = configuration.parse(text, "test")
    return [sentence for sentence, _ in service_warnings(loaded, view_of(SHIPPED | shown))]


def process(*words: str) -> str:
    """Return a configuration with a process engine."""
    return f'[graphs.g]\nengine = {{ kind = "process", command = {list(words)!r} }}\n'


def test_a_unit_that_restricts_nothing_is_no_reason_to_warn() -> None:
    """It is an operator's own service."""
    assert view_of({}) == ServiceView((), None, None, may_compile=True)
    text = '[metrics]\ntextfile = "/srv/x.prom"\n' + process("/home/me/engine")
    assert list(service_warnings(configuration.parse(text, "test"), view_of({}))) == []


def test_a_directory_that_the_unit_may_not_write_to_is_warned_of() -> None:
    """With the drop-in there is no warning."""
    text = '[metrics]\ntextfile = "/srv/metrics/x.prom"\n[state]\ndirectory = "/srv/state"\n'
    assert warnings(text) == [
        "state.directory: the service ergo-capture.service may not write to '/srv/state'",
        "metrics.textfile: the service ergo-capture.service may not write to '/srv/metrics'",
    ]
    assert warnings(text, ReadWritePaths="-/srv/metrics /srv/state") == []
    assert warnings('[metrics]\ntextfile = "/var/lib/ergo-capture/x.prom"\n') == []


def test_a_directory_that_the_shipper_may_not_write_to_is_warned_of() -> None:
    """The directories are those of a target, of the metrics, and of the bundles in another state directory."""
    text = (
        '[state]\ndirectory = "/srv/state"\n[ship]\ntextfile = "/srv/metrics/s.prom"\n'
        '[ship.targets.archive]\nurl = "file:///backup"\n[ship.targets.far]\nurl = "s3://bundles"\n'
    )
    loaded = configuration.parse(text, "test")
    shown = SHIPPED | {"StateDirectory": "ergo-capture/bundles"}
    assert [sentence for sentence, _ in ship_warnings(loaded, view_of(shown))] == [
        "state.directory: the service ergo-capture-ship.service may not write to '/srv/state/bundles'",
        "ship.textfile: the service ergo-capture-ship.service may not write to '/srv/metrics'",
        "ship.targets.archive.url: the service ergo-capture-ship.service may not write to '/backup'",
    ]
    allowed = shown | {"ReadWritePaths": "/srv /backup"}
    assert list(ship_warnings(loaded, view_of(allowed))) == []


def test_hidden_files_are_warned_of(tmp_path: Path) -> None:
    """They are programs, scripts, sockets, adapters; with ProtectHome=read-only and BindPaths= they are visible."""
    hidden = "the service ergo-capture.service cannot see"
    script = tmp_path / "engine.py"
    script.touch()
    assert warnings(process("/usr/bin/python3", str(script))) == [f"graph 'g': {hidden} '{script}'"]
    assert warnings('[graphs.g]\nengine = { kind = "socket", path = "/root/e.sock" }\n') == [
        f"graph 'g': {hidden} '/root/e.sock'"
    ]
    scripted = '[graphs.g]\nengine = { kind = "scripted", file = "/home/me/o.json" }\n'
    assert warnings(scripted) == [f"graph 'g': {hidden} '/home/me/o.json'"]
    assert warnings(scripted, ProtectHome="read-only") == []
    adapted = '[graphs.g]\nadapter = "/home/me/adapter.yaml"\n'
    assert warnings(adapted) == [f"graph 'g': {hidden} '/home/me/adapter.yaml'"]


def test_a_program_that_the_unit_may_not_execute_is_warned_of() -> None:
    """The unit sees it, but may not start it."""
    (warned,) = warnings(process("/srv/engine"))
    assert warned == "graph 'g': the service ergo-capture.service may not execute '/srv/engine'"
    assert warnings(process("/srv/engine"), ExecPaths="/usr /srv") == []


def test_an_egress_channel_is_looked_at_as_an_engine_is() -> None:
    """It is a child of the daemon too."""
    channel = '[graphs.g.egress.a]\ncommand = ["{}"]\nroutes = {{}}\n'
    assert warnings(channel.format("/srv/send")) == [
        "graph 'g': the service ergo-capture.service may not execute '/srv/send'"
    ]
    assert "cannot see '/home/me/send'" in warnings(channel.format("/home/me/send"))[0]


@pytest.mark.parametrize(
    ("command", "program"),
    [
        (["/usr/bin/node", "engine.js"], "node"),
        (["node18"], "node18"),
        (["/usr/bin/env", "-S", "java", "-jar", "x.jar"], "java"),
        (["{script}"], "node"),
        (["{link}"], "luajit"),
        (["node", "--jitless", "engine.js"], ""),
        (["/usr/bin/python3", "node.py"], ""),
        (["/bin/nodemon-like"], ""),
    ],
)
def test_engines_that_compile_at_run_time_are_recognized(command: list[str], program: str, tmp_path: Path) -> None:
    """They are recognized by name, behind ``env``, as a script's interpreter, and behind a link."""
    script, link = tmp_path / "engine", tmp_path / "runner"
    script.write_text("#!/usr/bin/env node\n")
    script.chmod(0o755)
    target = tmp_path / "luajit"
    target.write_text("")
    target.chmod(0o755)
    link.symlink_to(target)
    assert compiler_of([word.format(script=script, link=link) for word in command]) == program


def test_an_engine_that_compiles_is_warned_of() -> None:
    """The warning is given only under MemoryDenyWriteExecute=."""
    assert "compiles at run time" in warnings(process("node", "/opt/engine.js"))[0]
    assert warnings(process("node", "/opt/engine.js"), MemoryDenyWriteExecute="no") == []


def test_the_cause_is_said_where_memory_may_not_be_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not said otherwise, nor for other engines."""
    assert compilers.may_compile()
    assert compiler_problem(["node"]) == ""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert "MemoryDenyWriteExecute=no" in compiler_problem(["node"])
    assert 'kind = "socket"' in compiler_problem(["node"])
    assert compiler_problem(["/usr/bin/python3"]) == ""
