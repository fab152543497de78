"""A headless Chromium for tests of pages, spoken to over a pipe.

The DevTools protocol: JSON messages, each ended by a zero byte, on the descriptors 3 and 4 of the browser. Nothing
but Chromium is needed for that, neither a driver nor a port.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

CHROMIUM: Final = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
#: Longest wait for anything, in seconds.
PATIENCE: Final = 60.0
_LAUNCH: Final = """
import os, sys
os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4)
os.set_inheritable(3, True); os.set_inheritable(4, True)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """A browser with a profile of its own; a context manager."""

    def __init__(self) -> None:
        self._profile = tempfile.mkdtemp(prefix="ec-browser-")
        read, self._to = os.pipe()
        self._from, write = os.pipe()
        # Move them above 4: moving one to 3 or 4 would close the other if it had that number.
        inner = [os.dup(fd) for fd in (read, write)]
        while min(inner) <= 4:
            inner = [os.dup(fd) for fd in inner]
        arguments = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
            "--no-first-run", "--remote-debugging-pipe", f"--user-data-dir={self._profile}", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, *map(str, inner), *arguments],
            pass_fds=inner,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (read, write, *inner):
            os.close(fd)
        self._numbers = itertools.count(1)
        self._rest = b""
        #: Events that the browser sent, in order.
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._to)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._from)
        shutil.rmtree(self._profile, ignore_errors=True)

    def say(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(method)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _next(self, awaited: str) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0, until - time.monotonic()))
            assert ready, f"no answer to {awaited}"
            block = os.read(self._from, 1 << 16)
            assert block, f"the browser went away at {awaited}"
            self._rest += block
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    def open(self, path: Path, fragment: str = "", *, width: int = 1200, height: int = 900) -> Page:
        """Open a page in a tab of its own; return once it is drawn."""
        target = self.say("Target.createTarget", url="about:blank")["targetId"]
        session = self.say("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, target, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.say(f"{domain}.enable")
        page.say("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        page.say("Page.navigate", url=f"{path.as_uri()}{fragment}")
        page.wait("document.body && (document.body.dataset.ready || document.body.dataset.error)")
        return page


class Page:
    """A tab of the browser."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self._browser, self._target, self._session = browser, target, session

    def say(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command to the tab."""
        return self._browser.say(method, self._session, **params)

    def value(self, expression: str) -> Any:
        """Evaluate an expression in the page; fail if it throws an exception."""
        answer = self.say("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Evaluate an expression repeatedly until it is true, and return its value."""
        until = time.monotonic() + PATIENCE
        while not (found := self.value(expression)):
            assert time.monotonic() < until, f"never true: {expression}"
            self.value("new Promise((done) => setTimeout(done, 20))")
        return found

    def texts(self, selector: str) -> list[str]:
        """Return the text of each element that matches."""
        found: list[str] = self.value(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")
        return found

    def click(self, selector: str) -> None:
        """Click on the element, wherever it is."""
        self.value(f"document.querySelector({json.dumps(selector)}).click()")

    def drag(self, selector: str, begin: float, end: float) -> None:
        """Drag the mouse across an element, from one part of its width to another."""
        left, top, width, height = self._box(selector)
        steps = [begin, begin, (begin + end) / 2, end, end]
        kinds = ["mouseMoved", "mousePressed", "mouseMoved", "mouseMoved", "mouseReleased"]
        for kind, part in zip(kinds, steps, strict=True):
            pressed = {"button": "left", "clickCount": 1} if kind != "mouseMoved" else {}
            self.say(
                "Input.dispatchMouseEvent", type=kind, x=left + width * part, y=top + height / 2,
                buttons=0 if (kind, part) == ("mouseMoved", begin) or kind == "mouseReleased" else 1, **pressed,
            )  # fmt: skip

    def hover(self, selector: str, part: float) -> None:
        """Point at an element, at a part of its width."""
        left, top, width, height = self._box(selector)
        self.say("Input.dispatchMouseEvent", type="mouseMoved", x=left + width * part, y=top + height / 2)

    def _box(self, selector: str) -> tuple[float, float, float, float]:
        """Scroll an element into view, and return its left, top, width and height."""
        box = self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
        )
        left, top, width, height = box
        return left, top, width, height

    def complaints(self) -> list[Any]:
        """Return the messages of the console and the page, and the requests; they need not be errors."""
        own = [event for event in self._browser.events if event.get("sessionId") == self._session]
        said = [
            e["params"]
            for e in own
            if e["method"] in {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}
        ]
        asked = [e["params"]["request"]["url"] for e in own if e["method"] == "Network.requestWillBeSent"]
        error = self.value("document.body.dataset.error || ''")
        return [*said, *asked[1:], *([error] if error else [])]

    def close(self) -> None:
        """Close the tab."""
        self._browser.say("Target.closeTarget", targetId=self._target)
