"""What holds for every test.

Owns: the profile of hypothesis; that Ctrl-C reaches the commands that tests run.
Not here: any test.
"""

from __future__ import annotations

import signal

from hypothesis import settings

# Why no deadline: how long one example takes says how busy the machine is.
settings.register_profile("ergo-capture", deadline=None)
settings.load_profile("ergo-capture")

# Why: a shell that starts the tests in the background has them ignore it, and so would every command of theirs.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
