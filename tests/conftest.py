"""What holds for every test."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings

# Why no deadline: how long one example takes says how busy the machine is.
settings.register_profile("ergo-capture", deadline=None)
settings.load_profile("ergo-capture")

# Why: a shell that starts the tests in the background has them ignore it, and so would every command of theirs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Whatever a command that a test runs in this process does to the log: others look for its lines where they were."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)
