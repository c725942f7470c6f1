"""A client in Python, written from docs/protocol.md: sockets, protobuf and gRPC, and no code of the server."""

import collections
import itertools
import pathlib
import socket
import sys
import tempfile

import grpc
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[3]
# The longest frame a server sends (docs/protocol.md, "Limits").
FRAME_BYTES_MAX = 128 * 1024

_generated = tempfile.TemporaryDirectory(prefix="gimbal-protos-")


def _compile():
    """Generates Python code from the two published protos into a temporary folder."""
    wire, api = ROOT / "codec/proto", ROOT / "control/rpc/proto"
    out = _generated.name
    arguments = ["", f"-I{wire}", f"-I{api}", f"--python_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(arguments + [str(wire / "wire.proto"), str(api / "gimbal.proto")]) != 0:
        raise RuntimeError("the protos do not compile")
    sys.path.insert(0, out)


_compile()
import gimbal_pb2 as api  # noqa: E402
import gimbal_pb2_grpc as services  # noqa: E402
import wire_pb2 as wire  # noqa: E402


class Closed(Exception):
    """The server ended the connection; `code` is 0 when it did so without a close frame."""

    def __init__(self, code, reason=""):
        super().__init__(f"closed: {code} {reason}")
        self.code = code


class Refused(Exception):
    """A reply with a code other than 0."""

    def __init__(self, reply):
        super().__init__(f"refused: {reply.code} {reply.message}")
        self.code = reply.code


Device = collections.namedtuple("Device", "user_id device_id token")


def sign_in_by_phone(grpc_address, phone, user=None):
    """Makes a new device of the user with that phone number. In development any code is right."""
    with grpc.insecure_channel(grpc_address) as channel:
        request = api.SignInRequest(phone_number=phone, code="0000", device=api.Device(kind=api.DEVICE_KIND_WEB, brand="python"))
        reply = services.AccountsStub(channel).SignIn(request, timeout=20)
    if user is not None and reply.user_id != user:
        raise AssertionError(f"{phone} is user {reply.user_id}, not {user}")
    return Device(reply.user_id, reply.device_id, reply.token)


class Client:
    """One connection of one device. Blocking; every wait ends after `timeout` seconds."""

    def __init__(self, address, device, cursor=0, timeout=20.0):
        self.device = device
        self.cursor = cursor
        self.messages = collections.deque()  # pushed and synced, in order, not yet taken
        self.behind = False  # messages wait for a sync
        self._requests = itertools.count(1)
        self._open(address, timeout)
        body = wire.SignIn(user_id=device.user_id, device_id=device.device_id, token=device.token, cursor=cursor)
        result = wire.SignInResult.FromString(self._call(wire.SIGN_IN, body))
        self.latest = result.latest
        self.user_id = result.user_id or device.user_id
        self.device_id = result.device_id or device.device_id

    def _open(self, address, timeout):
        self._buffer = b""
        self._socket = socket.create_connection(address, timeout=timeout)

    def close(self):
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # Frames

    def _write(self, command, body, request_id=""):
        self._write_packet(wire.Packet(request_id=request_id, command=command, content=body).SerializeToString())

    def _write_packet(self, packet):
        prefix, length = bytearray(), len(packet)
        while length >= 0x80:
            prefix.append(length & 0x7F | 0x80)
            length >>= 7
        prefix.append(length)
        self._socket.sendall(bytes(prefix) + packet)

    def _take(self, count):
        while len(self._buffer) < count:
            chunk = self._socket.recv(65536)
            if not chunk:
                raise Closed(0, "end of stream")
            self._buffer += chunk
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _read(self):
        """The next packet."""
        length = 0
        for shift in itertools.count(0, 7):
            byte = self._take(1)[0]
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        if not 0 < length <= FRAME_BYTES_MAX:
            raise AssertionError(f"a frame of {length} bytes")
        return wire.Packet.FromString(self._take(length))

    def _pushed(self, packet):
        """Handles what comes without having been asked for."""
        if packet.command == wire.MESSAGE:
            message = wire.Message.FromString(packet.content)
            if message.seq:
                self._advance(message.seq)
            self.messages.append(message)
        elif packet.command == wire.BEHIND:
            self.behind = True
        elif packet.command == wire.CLOSE:
            close = wire.Close.FromString(packet.content)
            raise Closed(close.code, close.reason)

    def _advance(self, seq):
        if seq != self.cursor + 1:
            raise AssertionError(f"seq {seq} after {self.cursor}: the server broke its promise")
        self.cursor = seq

    def _call(self, command, body):
        """Sends a request and returns the data of its reply; what is pushed meanwhile is kept."""
        request_id = str(next(self._requests))
        self._write(command, body.SerializeToString(), request_id)
        while True:
            packet = self._read()
            if packet.request_id != request_id:
                self._pushed(packet)
                continue
            reply = wire.Reply.FromString(packet.content)
            if reply.code:
                raise Refused(reply)
            return reply.data

    # Calls

    def _sync(self):
        """Pulls one page; when that leaves us short the server says so again."""
        page = wire.SyncPage.FromString(self._call(wire.SYNC, wire.Sync(after=self.cursor)))
        for message in page.messages:
            self._advance(message.seq)
            self.messages.append(message)
        self.behind = False

    def send(self, to, content, client_message_id, command=1):
        body = wire.Send(client_message_id=client_message_id, to_user=to, command=command, content=content)
        return wire.SendResult.FromString(self._call(wire.SEND, body))

    def join(self, *room_ids):
        self._call(wire.JOIN, wire.Rooms(room_ids=room_ids))

    def ack(self, seq):
        return wire.Ack.FromString(self._call(wire.ACK, wire.Ack(seq=seq))).seq

    def heartbeat(self, content=b""):
        """The echo; what the server sent before it has arrived then."""
        request_id = f"heartbeat-{next(self._requests)}"
        self._write(wire.HEARTBEAT, content, request_id)
        while (packet := self._read()).request_id != request_id:
            self._pushed(packet)
        return packet.content

    def receive(self, count=1):
        """Waits for `count` messages."""
        while len(self.messages) < count:
            if self.behind:
                self._sync()
            else:
                self._pushed(self._read())
        return [self.messages.popleft() for _ in range(count)]
