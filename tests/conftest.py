"""Settings and fixtures for every test."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import Phase, settings
from tests.seaweed import Seaweed, seaweed

# No deadline: the time that one example takes depends on how busy the machine is.
settings.register_profile("ergo-capture", deadline=None)
settings.load_profile("ergo-capture")
# For tests/mutants.py: only whether a test fails, quickly and every time the same.
settings.register_profile(
    "mutants",
    database=None,
    deadline=None,
    derandomize=True,
    max_examples=25,
    phases=[Phase.explicit, Phase.generate],
)

# A shell that starts the tests in the background makes them ignore SIGINT, and the commands they start too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def restored_log() -> Iterator[None]:
    """Restore the log's configuration, which commands and reloads in this process change."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def s3() -> Iterator[Seaweed]:
    """Return an S3 server that all tests of the session share; each takes a prefix of its own."""
    with seaweed() as server:
        yield server
