"""A headless Chromium, driven through the DevTools protocol over two pipes: no driver, no extra package.

The protocol: https://chromedevtools.github.io/devtools-protocol/. With `--remote-debugging-pipe`, messages
are JSON that ends with a zero byte, written to descriptor 3 and read from descriptor 4 of the browser.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless=new",
    "--no-sandbox",  # containers run as root
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE localhost",  # only the test's own server can be reached
    "--remote-debugging-pipe",
)
# Puts the two pipes where the browser looks for them, and becomes the browser.
_LAUNCHER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find_chromium() -> str | None:
    """Returns the path of a Chromium, or None: `$QTOOL_CHROMIUM`, or one of the usual names."""
    names = (os.environ.get("QTOOL_CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if name and (path := shutil.which(name))), None)


class BrowserError(AssertionError):
    """The page threw an exception, or something did not happen in time."""


class Page:
    """One page. Requests and console messages of it and of its workers are recorded."""

    def __init__(self, send: Callable[[bytes], None], receive: Callable[[float], bytes | None]) -> None:
        self._send = send
        self._receive = receive
        self._number = 0
        self._session: str | None = None
        self.requests: list[str] = []
        self.console: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        # Workers are held until their network is watched, too.
        self._call("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=True, flatten=True)
        for domain in ("Page", "Runtime", "Network"):
            self._call(f"{domain}.enable")

    def open(self, url: str) -> None:
        """Goes to a page and waits until its modules have run."""
        self._call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression; promises are awaited.

        Raises:
            BrowserError: it threw.
        """
        answer = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression}: {answer['exceptionDetails']['exception'].get('description')}")
        return answer["result"].get("value")

    def wait_for(self, condition: str, timeout: float = 60) -> None:
        """Waits until a JavaScript expression is truthy.

        Raises:
            BrowserError: it is not, for so many seconds.
        """
        end = time.monotonic() + timeout
        while not self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > end:
                seen = self.evaluate("document.body.innerText")
                raise BrowserError(f"not within {timeout} s: {condition}\n{seen}\n{self.console}")
            self._pump(0.02)

    def click(self, selector: str) -> None:
        """Clicks an element that the user can see."""
        visible = f"document.querySelector({selector!r})?.checkVisibility()"
        assert self.evaluate(visible), f"{selector} is not to be seen"
        self.evaluate(f"document.querySelector({selector!r}).click()")

    def fill(self, selector: str, text: str) -> None:
        """Types into a field."""
        self.evaluate(f"document.querySelector({selector!r}).focus()")
        self.evaluate(f"document.querySelector({selector!r}).value = ''")
        self._call("Input.insertText", text=text)

    def text(self, selector: str) -> str:
        """Returns what an element shows."""
        return str(self.evaluate(f"document.querySelector({selector!r})?.innerText ?? ''"))

    def emulate(self, *, width: int, height: int, dark: bool = False, scale: float = 1) -> None:
        """Sets the size of the window, and the color scheme that the user prefers."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def accessibility_tree(self) -> list[dict[str, str]]:
        """Returns role and name of everything that assistive technology sees."""
        nodes = self._call("Accessibility.getFullAXTree")["nodes"]
        return [
            {"role": node["role"]["value"], "name": node.get("name", {}).get("value", "")}
            for node in nodes
            if not node["ignored"]
        ]

    def screenshot(self, path: Path) -> None:
        """Writes what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _call(self, method: str, *, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns its result; events that come before are recorded."""
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session or self._session:
            message["sessionId"] = session or self._session
        self._send(json.dumps(message).encode() + b"\0")
        end = time.monotonic() + 90
        while time.monotonic() < end:
            answer = self._pump(1.0)
            if answer and answer.get("id") == number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])
        raise BrowserError(f"{method}: the browser does not answer")

    def _pump(self, timeout: float) -> dict[str, Any] | None:
        """Takes one message, if one comes in time."""
        raw = self._receive(timeout)
        if raw is None:
            return None
        message: dict[str, Any] = json.loads(raw)
        self._record(message.get("method", ""), message.get("params", {}))
        return message

    def _record(self, method: str, event: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])
        elif method == "Runtime.consoleAPICalled":
            self.console.append(" ".join(str(part.get("value", "")) for part in event["args"]))
        elif method == "Runtime.exceptionThrown":
            self.console.append(str(event["exceptionDetails"]))
        elif method == "Target.attachedToTarget" and event["targetInfo"]["type"] == "worker":
            for command in ("Network.enable", "Runtime.enable", "Runtime.runIfWaitingForDebugger"):
                self._number += 1
                message = {"id": self._number, "method": command, "sessionId": event["sessionId"]}
                self._send(json.dumps(message).encode() + b"\0")


@contextmanager
def open_browser(chromium: str, *flags: str) -> Iterator[Page]:
    """Starts a browser with a profile of its own, and gives its page; ends it with all its processes."""
    to_browser, from_us = os.pipe()
    from_browser, to_us = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", _LAUNCHER, str(to_browser), str(to_us)),
                *(chromium, *FLAGS, *flags, f"--user-data-dir={profile}"),
            ],
            pass_fds=(to_browser, to_us),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(to_us)
        try:
            yield Page(lambda message: _write(from_us, message), _Reader(from_browser).message)
        finally:
            os.close(from_us)  # the browser ends when its pipe does
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(from_browser)


def _write(descriptor: int, message: bytes) -> None:
    while message:
        message = message[os.write(descriptor, message) :]


class _Reader:
    """Cuts what comes through a pipe into messages."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._held = b""

    def message(self, timeout: float) -> bytes | None:
        """Returns the next message, or None if it does not come in time."""
        while b"\0" not in self._held:
            if not select.select([self._descriptor], [], [], timeout)[0]:
                return None
            piece = os.read(self._descriptor, 1 << 20)
            if not piece:
                raise BrowserError("the browser has ended")
            self._held += piece
        message, _, self._held = self._held.partition(b"\0")
        return message
