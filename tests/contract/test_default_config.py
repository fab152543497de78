"""The default configuration file says what the code does."""

from __future__ import annotations

import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from ergo_capture import config as configuration
from ergo_capture.config import Config

FILE = Path(__file__).parents[2] / "config" / "ergo-capture.toml"


@pytest.fixture
def text() -> str:
    """The file's text."""
    return FILE.read_text(encoding="utf-8")


def test_the_default_file_is_what_config_default_prints(text: str) -> None:
    """The file in the repository is the output of ``ergo-capture config default``, byte for byte."""
    assert text == configuration.to_toml(Config(), comments=True)


def test_the_default_file_changes_nothing(text: str) -> None:
    """A daemon that reads the file runs as one without any."""
    assert configuration.parse(text, "default") == Config()


def test_the_default_file_names_every_setting(text: str) -> None:
    """Each setting stands in its section once, as a value or, where it has none, behind a comment sign."""
    section, found = "", []
    for line in text.splitlines():
        if header := re.fullmatch(r"\[(.+)\]", line):
            section = header[1].replace("graphs.default", "graphs.NAME")
        elif setting := re.match(r"(?:# )?([a-z_]+) =", line):
            found.append(f"{section}.{setting[1]}")
    assert found == configuration.known_keys()


def test_the_default_file_explains_every_setting_and_section(text: str) -> None:
    """Above each setting and section stands a sentence."""
    lines = text.splitlines()
    for above, line in pairwise(lines):
        if re.match(r"\[|(?:# )?[a-z_]+ =", line):
            assert re.fullmatch(r"# .*[.)]", above), line


def test_the_default_file_names_no_place_of_one_machine(text: str) -> None:
    """Paths in the file are those of the documentation, not of whoever wrote it."""
    values = [value for table in tomllib.loads(text).values() for value in table.values() if isinstance(value, str)]
    assert [value for value in values if value.startswith("/")] == []
