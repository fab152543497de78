"""The README and the manual are true: their commands, snippets, configurations, JSON and names are tested."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract.documents import (
    MANUAL,
    README,
    Block,
    assert_same,
    at_line,
    blocks,
    documents,
    names_below,
    of_kind,
    parses,
    place,
    quick_start_daemon,
    run_commands,
    run_snippet,
)
from tests.daemons import short_directory
from tests.shared import REPOSITORY

from ergo_capture import config as configuration
from ergo_capture import telemetry
from ergo_capture.cli.commands import COMMANDS

ENGINE = REPOSITORY / "tests" / "engine" / "example_engine.py"
KINDS = {"bash", "console", "ini", "javascript", "json", "python", "text", "toml"}
CONSOLES = [path for path in documents() if any(block.commands for block in blocks(path) if block.kind == "console")]


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    """A block of another kind would be shown and never tried; a text block shows no command."""
    for path in documents():
        for block in blocks(path):
            assert block.kind in KINDS, at_line(block)
            assert block.kind != "text" or "$ " not in block.text, at_line(block)
    assert {block.kind for path in documents() for block in blocks(path)} == KINDS


@pytest.mark.parametrize("document", CONSOLES, ids=at_line)
def test_the_commands_do_what_is_shown(document: Path) -> None:
    """A document's commands run in one shell, in order; those of the manual beside the daemon of the quick start."""
    with place(document) as directory:
        if document == README:
            run_commands(document, directory)
        else:
            with quick_start_daemon(directory):
                run_commands(document, directory)


@pytest.mark.parametrize("block", [block for block in of_kind("python") if not block.name], ids=at_line)
def test_a_python_snippet_runs(block: Block) -> None:
    """It runs as written, and its bundles verify."""
    run_snippet(block, sys.executable)


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
@pytest.mark.parametrize("block", [block for block in of_kind("javascript") if not block.name], ids=at_line)
def test_a_node_snippet_runs(block: Block) -> None:
    """It runs as written."""
    run_snippet(block, "node")


@pytest.mark.parametrize("block", of_kind("toml"), ids=at_line)
def test_a_configuration_is_one_that_the_daemon_takes(block: Block) -> None:
    """Every setting shown exists and may have the value shown."""
    configuration.parse(block.text, block.document.name)


@pytest.mark.parametrize("block", of_kind("ini"), ids=at_line)
def test_a_drop_in_sets_something_of_a_service(block: Block) -> None:
    """It has a section and settings."""
    parser = configparser.ConfigParser()
    parser.read_string(block.text)
    assert parser.sections() == ["Service"]
    assert parser["Service"]


@pytest.mark.parametrize("block", of_kind("json"), ids=at_line)
def test_json_is_json(block: Block) -> None:
    """There is one value a line, or one in a file."""
    assert block.values
    for text in block.values:
        assert parses(text), text


@pytest.mark.parametrize("document", documents(), ids=at_line)
def test_settings_that_are_named_exist(document: Path) -> None:
    """A name such as `session.linger` is that of a setting or of a line of the log."""
    known = set(configuration.known_keys())
    sections = {key.partition(".")[0] for key in known} - {"graphs"}
    # The last section of `contributing` names modules.
    text = document.read_text(encoding="utf-8").partition("\n### Import paths of ")[0]
    named = {name for name in re.findall(r"`([a-z]+\.[a-z_]+)`", text) if name.partition(".")[0] in sections}
    files = {name for name in named if name.endswith((".sock", ".toml"))}
    assert named - known - set(_log_lines()) - files == set()


@pytest.mark.parametrize("document", documents(), ids=at_line)
def test_links_and_topics_that_are_named_exist(document: Path) -> None:
    """`ergo-capture help TOPIC` names a topic, and a link leads to a file."""
    from ergo_capture import manual

    text = document.read_text(encoding="utf-8")
    assert set(re.findall(r"`ergo-capture help ([a-z]+)`", text)) <= set(manual.topics())
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (document.parent / link).is_file(), link


def test_the_readme_links_every_topic() -> None:
    """A reader need not guess which topics there are."""
    from ergo_capture import manual

    linked = re.findall(r"\[([a-z]+)\]\(daemon/ergo_capture/manual/\1\.md\)", README.read_text(encoding="utf-8"))
    assert sorted(set(linked)) == sorted(manual.topics())


def test_the_readme_lists_every_command() -> None:
    """The rows of its table are the commands there are."""
    listed = {name.partition(" ")[0] for name in names_below(README, "Commands")}
    assert_same(listed | {"help"}, COMMANDS, "the table below 'Commands' in README.md")


def test_the_manual_names_every_command() -> None:
    """One of its pages has it as `NAME` or `ergo-capture NAME`; the changelog does not count."""
    pages = [path.read_text(encoding="utf-8").partition("\n## Changes\n")[0] for path in MANUAL.glob("*.md")]
    named = {name for name in COMMANDS if re.search(rf"(`|ergo-capture ){name}\b", "\n".join(pages))}
    assert_same(named, COMMANDS, "the manual")


def test_the_readmes_engine_is_the_one_that_the_tests_run() -> None:
    """Its text is the same, but for the docstring of the file."""
    (engine,) = (block for block in blocks(README) if block.name == "engine.py")
    docstring, _, code = ENGINE.read_text(encoding="utf-8").partition("\n\n")
    assert docstring.startswith('"""')
    assert engine.text == code


def test_the_readme_states_twelve_promises() -> None:
    """P1 to P12, each with tests that name it."""
    text = README.read_text(encoding="utf-8")
    assert re.findall(r"^\| (P\d+) \|", text, re.MULTILINE) == [f"P{number}" for number in range(1, 13)]
    sources = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests").rglob("*.py"))
    for number in range(1, 13):
        assert re.search(rf"\bP{number}\b", sources.replace('f"P{number}"', "")), number


def test_the_readme_is_short() -> None:
    """Longer explanations belong in the manual."""
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 170


def _log_lines() -> Iterator[str]:
    return (value for name, value in vars(telemetry).items() if name.isupper() and isinstance(value, str))


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_the_setup_commands_work_from_a_fresh_clone() -> None:
    """Both run as written, in a clone that has only committed files; the tests are included."""
    setups = [block for block in blocks(README) if block.is_setup]
    assert len(setups) >= 2
    with short_directory() as directory:
        clone = directory / "ergo-capture"
        subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], check=True)
        plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        for block in setups:
            done = subprocess.run(
                ["bash", "-ec", block.text], cwd=clone, env=plain, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
            shutil.rmtree(clone / ".venv")
