"""A headless Chromium, driven over its DevTools protocol."""

import contextlib
import itertools
import json
import subprocess
import tempfile
import threading
import time
import urllib.request
from base64 import b64decode
from pathlib import Path

import websockets.sync.client

# Long, for slow machines: nothing here is timed.
PATIENCE_S = 30


class Chromium:
    def __init__(self, program):
        # Its helpers may still write there when it has ended.
        self._folder = tempfile.TemporaryDirectory(prefix="gimbal-chromium-", ignore_cleanup_errors=True)
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--remote-debugging-port=0", f"--user-data-dir={self._folder.name}", "--window-size=1100,720"]
        self._process = subprocess.Popen([program, *flags, "about:blank"], stderr=subprocess.DEVNULL)
        port_file = Path(self._folder.name, "DevToolsActivePort")
        until(lambda: port_file.exists() and len(port_file.read_text().split()) > 1, "Chromium's port")
        self._windows = []
        self._port = port_file.read_text().split()[0]

    def window(self, url):
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}/json/new?{url}", method="PUT")
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            self._windows.append(Window(json.load(answer)["webSocketDebuggerUrl"]))
        return self._windows[-1]

    def stop(self):
        for window in self._windows:
            window.close()
        self._process.terminate()
        self._process.wait(PATIENCE_S)
        self._folder.cleanup()


class Window:
    """One tab: it has a session storage of its own and shares the local storage with the others."""

    def __init__(self, url):
        self._stack = contextlib.ExitStack()
        self._socket = self._stack.enter_context(websockets.sync.client.connect(url, max_size=None))
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self.errors = []
        self._call("Runtime.enable")
        self._call("Page.enable")

    def close(self):
        self._stack.close()

    def _call(self, method, **parameters):
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=PATIENCE_S))
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(answer["params"]["exceptionDetails"])
            if answer.get("id") == number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return answer["result"]

    def run(self, script):
        result = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise AssertionError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def text(self, selector):
        return self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def sees(self, selector, words):
        until(lambda: words in self.text(selector), lambda: f"{words!r} in {selector}: {self.text(selector)!r}")

    def is_visible(self, selector):
        return self.run(f"!!document.querySelector({json.dumps(selector)})?.checkVisibility()")

    def click(self, selector):
        """At its middle, as a mouse would: what covers it gets the click."""
        box = self.run(f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})()")
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def type(self, selector, words):
        self.click(selector)
        self._call("Input.insertText", text=words)

    def reload(self):
        self._call("Page.reload")
        until(lambda: self.run("document.readyState") == "complete", "the page")

    def screenshot(self, path):
        self._call("Page.bringToFront")
        Path(path).write_bytes(b64decode(self._call("Page.captureScreenshot", format="png")["data"]))


def until(holds, what):
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            if holds():
                return
        except (AssertionError, ConnectionError):
            pass
        if time.monotonic() > end:
            raise AssertionError(f"waited in vain for {what() if callable(what) else what}")
        time.sleep(0.05)
