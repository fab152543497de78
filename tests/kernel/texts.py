"""A bundle's text, variants of it, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ergo_capture import decode_bundle, encode_bundle
from ergo_capture.bundle.reader.opening import BundleFormatError
from ergo_capture.bundle.reader.stream import open_bundle

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
#: The beginnings of objects whose unknown fields are ignored.
OPEN_STRUCTS = ['"config":{', '"events":[{', '"decisions":[{', '"effects":[{', '"effect":{', '"writes":[{']


def bent(old: str, new: str, place: int = 0) -> str:
    """Return the text with one occurrence of ``old`` replaced."""
    parts = TEXT.split(old)
    assert len(parts) > place + 1
    return old.join(parts[: place + 1]) + new + old.join(parts[place + 1 :])


def records(path: Path) -> tuple[list[Any], list[Any]]:
    """Return the events and decisions that a stream over the file gives."""
    with open_bundle(path) as stream:
        return list(stream.events()), list(stream.decisions())


def read(text: str, place: Path) -> str | None:
    """Return the bundle written back, or None if it is refused; both readers have to agree."""
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
