"""What is read as a bundle, where serde's derived readers are not as one would guess.

Each text is read whole and as a stream, which have to agree; each answer was the reference's.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.kernel.texts import OPEN_STRUCTS, TEXT, TIME, bent, read, records

from ergo_capture import decode_bundle
from ergo_capture.bundle.reader.opening import BundleFormatError


def test_the_text_itself_is_a_bundle(tmp_path: Path) -> None:
    """Else the rest would prove nothing."""
    assert read(TEXT, tmp_path) == TEXT


@pytest.mark.parametrize("place", range(TEXT.count(TIME)))
@pytest.mark.parametrize("extra", ['"x":null', '"":[1,2]', '"nanos ":0'])
def test_a_time_has_no_field_but_its_own(tmp_path: Path, place: int, extra: str) -> None:
    """It is no derived struct, and refuses what those ignore."""
    assert read(bent(TIME, f'{{"secs":1,{extra},"nanos":0}}', place), tmp_path) is None


@pytest.mark.parametrize("struct", OPEN_STRUCTS)
def test_the_name_of_a_field_that_is_ignored_is_text_all_the_same(tmp_path: Path, struct: str) -> None:
    """A lone surrogate in it is refused; in what the field holds it is not even looked at."""
    assert read(bent(struct, struct + r'"\ud800":0,'), tmp_path) is None
    assert read(bent(struct, struct + r'"x":{"\ud800":"\udc00"},'), tmp_path) == TEXT


@pytest.mark.parametrize(
    "termination",
    [
        '{"Failed":"SemanticError","Failed":"SemanticError"}',
        '{"Failed":{"SemanticError":null,"SemanticError":null}}',
        '{"Completed":null,"Completed":null}',
        '{"Completed":[]}',
        '{"Failed":{"SemanticError":[]}}',
        '{"Failed":["SemanticError"]}',
        '{"Failed":null}',
        '"Failed"',
        "{}",
    ],
)
def test_a_termination_is_one_variant_written_once(tmp_path: Path, termination: str) -> None:
    """Also where the second time says the same."""
    assert read(bent('{"Failed":"SemanticError"}', termination), tmp_path) is None


def test_a_kind_of_failure_may_be_an_object_holding_null(tmp_path: Path) -> None:
    """As any variant without content."""
    assert read(bent('"SemanticError"', '{"SemanticError":null}'), tmp_path) == TEXT


@pytest.mark.parametrize("struct", OPEN_STRUCTS)
@pytest.mark.parametrize(
    "value",
    [
        "[" * 3000 + "]" * 3000,
        '{"a":[' * 3000 + '"[{"' + "]}" * 3000,
        "9" * 5000,
        "-" + "9" * 5000,
        "[1e999,-1e999,-0]",
        '{"a":1,"a":2}',
        r'"\ud800"',
    ],
    ids=["arrays", "objects", "digits", "negative digits", "numbers", "repeated", "surrogate"],
)
def test_a_field_that_is_ignored_may_hold_whatever_is_json(tmp_path: Path, struct: str, value: str) -> None:
    """However deep, however large: it is skipped, and no limit counts there."""
    assert read(bent(struct, f'{struct}"x":{value},'), tmp_path) == TEXT


@pytest.mark.parametrize(
    "value",
    [
        "[" * 3000 + "]" * 2999,
        "[" * 3000 + "1," + "]" * 3000,
        "[" * 3000 + "}" + "]" * 2999,
        "[" * 3000 + "01" + "]" * 3000,
    ],
    ids=["no end", "comma", "bracket", "zero"],
)
def test_a_field_that_is_ignored_has_to_be_json(tmp_path: Path, value: str) -> None:
    """Down to the deepest level."""
    text = bent('"config":{', f'"config":{{"x":{value},')
    path = tmp_path / "b.capture.json"
    path.write_text(text)
    with pytest.raises(BundleFormatError):
        decode_bundle(text.encode())
    with pytest.raises(BundleFormatError):
        records(path)


@pytest.mark.parametrize("old", ['"g"', TIME, '"Command"', '"Invoke"', '"SemanticError"', "[]", '{"Number":1.0}'])
def test_depth_does_not_make_a_value_of_the_wrong_type_right(tmp_path: Path, old: str) -> None:
    """What is too deep is not looked at further, and is still an array."""
    assert read(bent(old, "[" * 3000 + "]" * 3000), tmp_path) is None


@pytest.mark.parametrize(
    "old", ["null", TIME, '"Command"', '"Invoke"', '{"Failed":"SemanticError"}', "[]", "1.0", "0,"]
)
@pytest.mark.parametrize("new", [r'"\ud800"', r'{"\udfff":null}', r'"a\udcffb"'])
def test_half_a_surrogate_pair_is_refused_in_words_that_are_text(tmp_path: Path, old: str, new: str) -> None:
    """Whatever should stand there, and the complaint can be printed."""
    text = bent(old, new + "," * (old == "0,"))
    assert read(text, tmp_path) is None
    with pytest.raises(BundleFormatError) as raised:
        decode_bundle(text.encode())
    assert str(raised.value).isprintable()
    assert str(raised.value).encode()
