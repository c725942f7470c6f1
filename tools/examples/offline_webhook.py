"""Calls a webhook for each message that came while its user was offline, so that a push provider can be asked to wake a device.

    python offline_webhook.py --grpc 127.0.0.1:8010 --key-file backend.key --webhook http://127.0.0.1:9000/push --cursor-file cursor

It keeps the cursor of the last event whose call was answered with 2xx, and begins there again: each message is told at least once,
in order. A call that fails is repeated, with the pauses of `PAUSES`, until it is answered; one that is refused with 4xx is given
up, and said so. Needs grpcio and grpcio-tools.
"""

import argparse
import itertools
import json
import os
import pathlib
import sys
import tempfile
import time
import urllib.error
import urllib.request

import grpc
from grpc_tools import protoc

PROTOS = pathlib.Path(__file__).resolve().parents[2] / "control/rpc/proto"
# Seconds between two attempts; the last one again and again.
PAUSES = [0.2, 1, 5, 30]


def contract():
    """The messages and stubs of gimbal.proto."""
    out = tempfile.mkdtemp(prefix="gimbal-example-")
    arguments = ["", f"-I{PROTOS}", f"--python_out={out}", f"--grpc_python_out={out}", str(PROTOS / "gimbal.proto")]
    if protoc.main(arguments) != 0:
        raise RuntimeError("gimbal.proto does not compile")
    sys.path.insert(0, out)
    import gimbal_pb2
    import gimbal_pb2_grpc

    return gimbal_pb2, gimbal_pb2_grpc


def pauses():
    return itertools.chain(PAUSES, itertools.repeat(PAUSES[-1]))


def call(webhook, event):
    """Posts the event until it is answered. The key lets the receiver do it once, though it may be told twice."""
    body = {
        "user_id": event.user_id,
        "from_user_id": event.other_user_id,
        "message_id": event.message_id,
        "seq": event.seq,
        "command": event.command,
        "devices": [{"device_id": device.id, "push_token": device.push_token} for device in event.devices],
    }
    headers = {"Content-Type": "application/json", "Idempotency-Key": event.cursor}
    for pause in pauses():
        request = urllib.request.Request(webhook, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=10):
                return
        except urllib.error.HTTPError as error:
            if 400 <= error.code < 500 and error.code != 429:
                print(f"given up: {event.cursor}: {error}", file=sys.stderr, flush=True)
                return
            reason = error
        except OSError as error:
            reason = error
        print(f"again in {pause} s: {event.cursor}: {reason}", file=sys.stderr, flush=True)
        time.sleep(pause)


def keep(path, cursor):
    """Replaces the file, so that it holds one cursor or the other."""
    beside = path.with_suffix(".new")
    with open(beside, "w") as file:
        file.write(cursor)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grpc", default="127.0.0.1:8010")
    parser.add_argument("--key-file", type=pathlib.Path, help="absent: the key of --dev")
    parser.add_argument("--webhook", required=True)
    parser.add_argument("--cursor-file", type=pathlib.Path, required=True)
    options = parser.parse_args()
    key = options.key_file.read_text().splitlines()[0] if options.key_file else "dev"
    api, rpc = contract()
    with grpc.insecure_channel(options.grpc) as channel:
        events, waits = rpc.EventsStub(channel), pauses()
        while True:
            cursor = options.cursor_file.read_text() if options.cursor_file.exists() else ""
            request = api.TailRequest(cursor=cursor, kinds=[api.EVENT_KIND_OFFLINE_MESSAGE])
            try:
                for event in events.Tail(request, metadata=[("authorization", f"Bearer {key}")]):
                    if event.kind == api.EVENT_KIND_OFFLINE_MESSAGE and event.devices:
                        call(options.webhook, event)
                    keep(options.cursor_file, event.cursor)
                    waits = pauses()
            except grpc.RpcError as error:
                if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                    sys.exit(f"refused: {error.details()}")
                if error.code() == grpc.StatusCode.FAILED_PRECONDITION:
                    # Too late: what was after the cursor is not kept any more.
                    print("events were lost: beginning with the oldest that is kept", file=sys.stderr, flush=True)
                    options.cursor_file.unlink()
            time.sleep(next(waits))


if __name__ == "__main__":
    main()
