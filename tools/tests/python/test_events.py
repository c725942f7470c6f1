"""The example consumer turns messages to offline users into calls of a webhook, through failures and a restart."""

import http.server
import json
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
import unittest

import grpc
from gimbal_client import ROOT, Client, api, services, sign_in_by_phone
from server import Server

WAIT = 60


class Hook(http.server.BaseHTTPRequestHandler):
    """Fails the first call for each message, and takes the second."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers["Idempotency-Key"]
        failed = key not in self.server.failed
        self.server.failed.add(key)
        self.send_response(503 if failed else 204)
        self.end_headers()
        if not failed:
            self.server.taken.put((key, body))

    def log_message(self, *arguments):
        pass


class Consumer(unittest.TestCase):
    def setUp(self):
        self.server = Server()
        self.addCleanup(self.server.stop)
        self.hook = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
        self.hook.failed, self.hook.taken = set(), queue.Queue()
        threading.Thread(target=self.hook.serve_forever, daemon=True).start()
        self.addCleanup(self.hook.server_close)
        self.addCleanup(self.hook.shutdown)
        folder = tempfile.TemporaryDirectory(prefix="gimbal-consumer-")
        self.addCleanup(folder.cleanup)
        self.cursor = pathlib.Path(folder.name) / "cursor"

    def consume(self):
        """Starts the example."""
        url = "http://127.0.0.1:%d/push" % self.hook.server_address[1]
        command = [sys.executable, ROOT / "tools/examples/offline_webhook.py", "--grpc", self.server.grpc]
        consumer = subprocess.Popen([*command, "--webhook", url, "--cursor-file", self.cursor], stderr=subprocess.DEVNULL)

        def end():
            consumer.kill()
            consumer.wait()

        self.addCleanup(end)
        return end

    def register(self, user_id):
        device = api.Device(push_token="apns-1")
        with grpc.insecure_channel(self.server.grpc) as channel:
            request = api.RegisterDeviceRequest(user_id=user_id, device=device)
            services.AccountsStub(channel).RegisterDevice(request, metadata=[("authorization", "Bearer dev")], timeout=20)

    def test_each_message_to_an_offline_user_is_told_with_its_push_tokens(self):
        anna, ben = (sign_in_by_phone(self.server.grpc, phone) for phone in ("1", "2"))
        self.register(ben.user_id)
        sender = Client(self.server.tcp, anna)
        end = self.consume()
        sender.send(ben.user_id, b"one", 1)
        _, told = self.hook.taken.get(timeout=WAIT)
        self.assertEqual((told["user_id"], told["from_user_id"], told["seq"]), (ben.user_id, anna.user_id, 1))
        self.assertEqual([device["push_token"] for device in told["devices"]], ["apns-1"])

        end()
        sender.send(ben.user_id, b"two", 2)
        reader = Client(self.server.tcp, ben, cursor=2)
        sender.send(ben.user_id, b"three, which ben reads", 3)
        reader.close()
        sender.close()
        self.server.restart()
        self.consume()
        _, told = self.hook.taken.get(timeout=WAIT)
        if told["seq"] == 1:
            # It was ended before it had kept the cursor.
            _, told = self.hook.taken.get(timeout=WAIT)
        self.assertEqual(told["seq"], 2)
        sender = Client(self.server.tcp, anna)
        sender.send(ben.user_id, b"four", 4)
        _, told = self.hook.taken.get(timeout=WAIT)
        self.assertEqual(told["seq"], 4, "the third was read")
        sender.close()


if __name__ == "__main__":
    unittest.main()
