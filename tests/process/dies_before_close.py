"""``ergo-capture`` as a daemon that kills itself where a session that is decided would be closed: ``serve ...``."""

from __future__ import annotations

import os
import signal
from typing import Any

from ergo_capture.__main__ import main
from ergo_capture.server.session.parts import Parts


async def die(*_: Any, **__: Any) -> None:
    """End this process."""
    os.kill(os.getpid(), signal.SIGKILL)


Parts.finish = die  # type: ignore[method-assign, assignment]
main()
