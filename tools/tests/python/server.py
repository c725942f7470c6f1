"""Starts the release binary with a data directory of its own."""

import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[3]
BINARY = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "gimbal"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """`gimbal serve --dev` on free loopback ports; `tcp`, `websocket`, `grpc` and `http` are their addresses."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="gimbal-python-")
        self.tcp = ("127.0.0.1", free_port())
        self.grpc = f"127.0.0.1:{free_port()}"
        self.http = f"127.0.0.1:{free_port()}"
        folder = pathlib.Path(self._folder.name)
        config = folder / "gimbal.toml"
        self.websocket = ("127.0.0.1", free_port())
        addresses = {"tcp": "%s:%d" % self.tcp, "websocket": "%s:%d" % self.websocket}
        config.write_text(CONFIG.format(**addresses, grpc=self.grpc, http=self.http))
        self._log = open(folder / "log", "w+")
        command = [BINARY, "serve", "--dev", "--config", config, "--data", folder / "data"]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)
        self._wait_until_ready()

    def _wait_until_ready(self):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"http://{self.http}/readyz", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
            time.sleep(0.02)
        self.stop()
        raise RuntimeError("the server did not become ready:\n" + self.log())

    def log(self):
        self._log.flush()
        return pathlib.Path(self._log.name).read_text()

    def stop(self):
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


CONFIG = """
[gateway]
shards = 2
pin = false
listen = "{tcp}"

[gateway.websocket]
listen = "{websocket}"

[control]
grpc_listen = "{grpc}"
http_listen = "{http}"
"""
