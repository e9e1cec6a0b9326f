"""A real headless Chromium, driven over a pipe: enough of its protocol to open, ask and look.

``python -m tests.report.browser report.html`` writes pictures of a page beside it, for desks and for phones,
light and dark.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

#: The first of these that is installed.
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_SECONDS = 60
#: Becomes the browser, with two pipes where it looks for them.
_CONNECT = """import os, sys
read, write, *command = sys.argv[1:]
os.dup2(int(read), 3), os.dup2(int(write), 4)
os.execv(command[0], command)"""
_READY = """new Promise((done, fail) => {
  const wait = () => {
    if (document.documentElement?.dataset.ready === "true")
      requestAnimationFrame(() => setTimeout(() => done(performance.now())));
    else if (performance.now() > 30000) fail(new Error("never ready"));
    else setTimeout(wait, 5);
  };
  wait();
})"""


class Browser:
    """One page. ``complaints``: what it wrote to its console, and errors; ``requests``: all addresses."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._rest = b""
        self._number = 0
        self._session = ""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._event(answer.get("method", ""), answer.get("params", {}))

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], _SECONDS)
            more = os.read(self._read, 1 << 20) if ready else b""
            if not more:
                raise RuntimeError("the browser went away, or does not answer")
            self._rest += more
        first, _, self._rest = self._rest.partition(b"\0")
        return json.loads(first)

    def _event(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(" ".join(str(a.get("value", a)) for a in params["args"]))
        elif method == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def size(self, width: int, height: int, dark: bool = False) -> None:
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self._call("Emulation.setDeviceMetricsOverride", **screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, path: Path) -> float:
        """Load a file and wait until its scripts have run and it was painted; the milliseconds that took."""
        self._call("Page.navigate", url=path.resolve().as_uri())
        return self.run(_READY)

    def run(self, script: str) -> Any:
        """The value of an expression, or of the promise that it is."""
        answer = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description"))
        return answer["result"].get("value")

    def frame(self) -> None:
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def shot(self, path: Path) -> None:
        """The page, from top to bottom, as a PNG."""
        data = self._call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A fresh Chromium, ended with the block."""
    assert CHROMIUM is not None
    (read, our_write), (our_read, write) = os.pipe(), os.pipe()
    # It reads from descriptor 3 and writes to 4; until it starts, the pipes must be somewhere else.
    its_read, its_write = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (read, write))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                *(sys.executable, "-ISc", _CONNECT, str(its_read), str(its_write)),
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--hide-scrollbars",
                f"--user-data-dir={profile}",
                "--remote-debugging-pipe",
            ],
            pass_fds=(its_read, its_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield Browser(our_write, our_read)
        finally:
            process.kill()
            process.wait()
            for fd in (read, write, its_read, its_write, our_read, our_write):
                os.close(fd)


def main(argv: Sequence[str]) -> None:
    with browser() as page:
        for file in map(Path, argv):
            for device, width in (("desk", 1280), ("phone", 390)):
                for theme in ("light", "dark"):
                    page.size(width, 900, theme == "dark")
                    page.open(file)
                    page.frame()
                    page.shot(file.with_suffix(f".{device}-{theme}.png"))


if __name__ == "__main__":
    main(sys.argv[1:])
