"""Starts the release binary with a data directory of its own."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[3]
CERTIFICATES = ROOT / "gateway/tests/certificates"
BINARY = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "gimbal"


def free_port(kind=socket.SOCK_STREAM):
    with socket.socket(type=kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """`gimbal serve --dev` on free loopback ports; `tcp`, `websocket`, `tls`, `websocket_tls`, `quic`, `grpc` and `http` are their addresses.

    `settings` is TOML for the end of the configuration, `tls_settings` for the end of `[gateway.tls]`, `quic_settings` for that of
    `[gateway.quic]`; `{folder}` in `settings` is the
    server's folder, into which `files` are written."""

    def __init__(self, settings="", files=(), tls_settings="", quic_settings=""):
        self._folder = tempfile.TemporaryDirectory(prefix="gimbal-python-")
        self.tcp = ("127.0.0.1", free_port())
        self.grpc = f"127.0.0.1:{free_port()}"
        self.http = f"127.0.0.1:{free_port()}"
        folder = pathlib.Path(self._folder.name)
        config = folder / "gimbal.toml"
        self.websocket = ("127.0.0.1", free_port())
        self.tls = ("127.0.0.1", free_port())
        self.websocket_tls = ("127.0.0.1", free_port())
        self.quic = ("127.0.0.1", free_port(socket.SOCK_DGRAM))
        for name in ("pem", "key"):
            shutil.copy(CERTIFICATES / f"one.{name}", folder / f"tls.{name}")
        addresses = {
            "tcp": "%s:%d" % self.tcp,
            "websocket": "%s:%d" % self.websocket,
            "tls": "%s:%d" % self.tls,
            "websocket_tls": "%s:%d" % self.websocket_tls,
            "quic": "%s:%d" % self.quic,
            "folder": folder,
            "tls_settings": tls_settings,
            "quic_settings": quic_settings,
        }
        for name, text in dict(files).items():
            (folder / name).write_text(text)
        text = CONFIG.format(**addresses, grpc=self.grpc, http=self.http)
        config.write_text(text + settings.replace("{folder}", str(folder)))
        self._log = open(folder / "log", "w+")
        self._folder_path = folder
        self._command = [BINARY, "serve", "--dev", "--config", config, "--data", folder / "data"]
        self.start()

    def start(self):
        """Starts it, again after `stop` on the same data and ports."""
        self._process = subprocess.Popen(self._command, stdout=self._log, stderr=subprocess.STDOUT)
        self._wait_until_ready()

    def restart(self):
        """Stops it in order, and starts it on the same data and ports."""
        self.stop()
        self.start()

    def show_certificate(self, name):
        """Puts another certificate in place."""
        for suffix in ("key", "pem"):
            shutil.copy(CERTIFICATES / f"{name}.{suffix}", self._folder_path / f"tls.{suffix}")

    def metric(self, series):
        """One line of the metrics page, as `name{label="value"}`; 0 when there is none."""
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=20) as page:
            for line in page.read().decode().splitlines():
                if line.startswith(series + " "):
                    return float(line.split(" ")[1])
        return 0.0

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

[gateway.tls]
certificate = "{folder}/tls.pem"
key = "{folder}/tls.key"
listen = "{tls}"
websocket_listen = "{websocket_tls}"
{tls_settings}

[gateway.quic]
listen = "{quic}"
{quic_settings}

[control]
grpc_listen = "{grpc}"
http_listen = "{http}"
"""
