"""What is read as a bundle, where serde's derived readers are not as one would guess.

Owns: the leniencies and refusals of ``kernel/serde.py`` that the conformance data does not show.
Not here: what it does show (``test_conformance.py``); how a stream cuts a text (``tests/capture``).

Each text is read whole and as a stream, which have to agree; each answer was the reference's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ergo_capture import decode_bundle, encode_bundle
from ergo_capture.capture.bundle import BundleFormatError
from ergo_capture.capture.stream import open_bundle

TIME = '{"secs":1,"nanos":0}'
TEXT = (
    '{"capture_version":"v3","graph_id":"g","config":{"max_in_flight":null,"max_per_window":null,'
    f'"rate_window":{TIME},"deadline":{TIME},"max_retries":0}},'
    f'"events":[{{"event_id":"e","event_time":{TIME},"kind":"Command","payload":[],'
    '"payload_hash":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}],'
    f'"decisions":[{{"event_id":"e","decision":"Invoke","schedule_at":{TIME},"episode_id":0,"deadline":{TIME},'
    '"termination":{"Failed":"SemanticError"},"retry_count":0,"effects":[{"effect":{"kind":"k","writes":'
    '[{"key":"k","value":{"Number":1.0}}]},"effect_hash":"h"}]}],'
    '"adapter_provenance":"none","runtime_provenance":"r"}'
)
#: Where an object of a struct that ignores what it does not know begins.
OPEN_STRUCTS = ['"config":{', '"events":[{', '"decisions":[{', '"effects":[{', '"effect":{', '"writes":[{']


def bent(old: str, new: str, place: int = 0) -> str:
    """The text with one occurrence of something replaced."""
    parts = TEXT.split(old)
    assert len(parts) > place + 1
    return old.join(parts[: place + 1]) + new + old.join(parts[place + 1 :])


def records(path: Path) -> tuple[list[Any], list[Any]]:
    """The events and decisions that a stream over the file gives."""
    with open_bundle(path) as stream:
        return list(stream.events()), list(stream.decisions())


def read(text: str, place: Path) -> str | None:
    """What is written back of a bundle, or None where it is refused; the two readers have to agree."""
    path = place / "b.capture.json"
    path.write_text(text)
    try:
        bundle = decode_bundle(text.encode())
    except BundleFormatError as error:
        with pytest.raises(BundleFormatError) as raised:
            records(path)
        assert raised.value.message.replace(f" '{path}'", "", 1) == error.message
        return None
    assert records(path) == (bundle.events, bundle.decisions)
    return encode_bundle(bundle).decode().rstrip("\n")


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
