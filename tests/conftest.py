"""What holds for every test.

Owns: the profile of hypothesis.
Not here: any test.
"""

from __future__ import annotations

from hypothesis import settings

# Why no deadline: how long one example takes says how busy the machine is.
settings.register_profile("ergo-capture", deadline=None)
settings.load_profile("ergo-capture")
