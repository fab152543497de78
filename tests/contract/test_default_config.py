"""``config/ergo-capture.toml`` agrees with the code."""

from __future__ import annotations

import re
import tomllib
from itertools import pairwise
from typing import get_args

import pytest
from tests.shared import REPOSITORY

from ergo_capture import config as configuration
from ergo_capture.config import Config
from ergo_capture.config.graphs import EngineConfig

#: A setting, also one that is commented out.
SETTING = re.compile(r"#?([a-z_]+) =")


@pytest.fixture
def text() -> str:
    """Return the file's text."""
    return (REPOSITORY / "config" / "ergo-capture.toml").read_text(encoding="utf-8")


def test_the_file_is_what_config_default_prints(text: str) -> None:
    """Byte for byte."""
    again = "after a change of settings.py: `ergo-capture config default > config/ergo-capture.toml`"
    assert text == configuration.to_toml(Config(), comments=True), again


def test_a_daemon_with_the_file_runs_as_one_without(text: str) -> None:
    """Every value in it is the default."""
    assert configuration.parse(text, "default") == Config()


def test_the_file_has_every_setting_of_every_kind_of_engine(text: str) -> None:
    """Each stands once in its table; what is not in force is commented out."""
    table, found = "", []
    for line in text.splitlines():
        if header := re.fullmatch(r"#?\[(.+)\]", line):
            table = (
                header[1].replace("graphs.default", "graphs.NAME").replace("ship.targets.archive", "ship.targets.NAME")
            )
        elif setting := SETTING.match(line):
            found.append(f"{table}.{setting[1]}")
    assert found == configuration.known_keys()


def test_every_line_that_is_commented_out_is_valid_once_it_is_not(text: str) -> None:
    """Optional settings have an example, and every kind of engine a table with its defaults."""
    before, *kinds = re.split(r"^#?\[graphs\.default\.engine\]$", text, flags=re.MULTILINE)
    assert len(kinds) == len(get_args(EngineConfig))
    for kind in kinds:
        whole = f"{before}\n[graphs.default.engine]{kind}"
        (graph,) = configuration.parse(re.sub(r"^#(?! )", "", whole, flags=re.MULTILINE), "uncommented").graphs.values()
        assert graph.max_in_flight == 1
        assert graph.retention is not None
        assert graph.egress["NAME"].routes


def test_a_sentence_stands_above_every_setting_and_table(text: str) -> None:
    """Each with a full stop."""
    for above, line in pairwise(text.splitlines()):
        if re.match(r"#?\[", line) or SETTING.match(line):
            assert re.fullmatch(r"# .*[.)]", above), line


def test_the_file_names_no_path_of_one_machine(text: str) -> None:
    """Its paths are empty: the defaults depend on the user."""
    values = [value for table in tomllib.loads(text).values() for value in table.values() if isinstance(value, str)]
    assert [value for value in values if value.startswith("/")] == []
