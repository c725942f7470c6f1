"""The client over QUIC, by aioquic, which shares no code with the server; driven by hand over a blocking socket."""

import select
import socket
import time

from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from gimbal_client import Client, Closed
from server import CERTIFICATES

ALPN = "gimbal-quic"


def configuration(**settings):
    """A client's that trusts the server of the tests."""
    settings = {"alpn_protocols": [ALPN], "idle_timeout": 600.0, **settings}
    made = QuicConfiguration(is_client=True, server_name="localhost", **settings)
    made.load_verify_locations(cafile=str(CERTIFICATES / "one.pem"))
    return made


class Stream:
    """One connection and its one stream, as far as a client uses a socket."""

    def __init__(self, address, timeout, settings=None, on_ticket=None):
        self._address, self._timeout = address, timeout
        self.connection = QuicConnection(
            configuration=settings or configuration(), session_ticket_handler=on_ticket
        )
        self.events = []  # all that have come
        self.terminated = None
        self._received, self._is_ended = b"", False
        self.rebind()
        self.connection.connect(address, now=time.monotonic())
        self.flush()
        self.handshake = self.until(events.HandshakeCompleted)
        self.stream = self.connection.get_next_available_stream_id()

    def rebind(self):
        """From here on the client is at another address."""
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))

    def flush(self):
        for datagram, address in self.connection.datagrams_to_send(now=time.monotonic()):
            self.socket.sendto(datagram, address)

    def pump(self, timeout):
        """Waits for datagrams or a timer of the connection, at most so long."""
        now = time.monotonic()
        timer = self.connection.get_timer()
        if timer is not None:
            timeout = min(timeout, max(0.0, timer - now))
        if select.select([self.socket], [], [], timeout)[0]:
            data, address = self.socket.recvfrom(65536)
            self.connection.receive_datagram(data, address, now=time.monotonic())
        elif timer is not None and time.monotonic() >= timer:
            self.connection.handle_timer(now=time.monotonic())
        while (event := self.connection.next_event()) is not None:
            self.take(event)
        self.flush()

    def take(self, event):
        self.events.append(event)
        if isinstance(event, events.StreamDataReceived):
            self._received += event.data
            self._is_ended |= event.end_stream
        elif isinstance(event, events.ConnectionTerminated):
            self.terminated = event

    def until(self, kind):
        """The first event of a kind, old or new; raises when the connection ends, or in vain."""
        end = time.monotonic() + self._timeout
        while time.monotonic() < end:
            for event in self.events:
                if isinstance(event, kind):
                    return event
            if self.terminated:
                raise Closed(self.terminated.error_code, self.terminated.reason_phrase)
            self.pump(max(0.0, end - time.monotonic()))
        raise TimeoutError(f"no {kind.__name__}")

    def sendall(self, data, stream=None):
        self.connection.send_stream_data(self.stream if stream is None else stream, data)
        self.flush()

    def recv(self, count):
        """As of a socket; b"" at the end of the stream."""
        end = time.monotonic() + self._timeout
        while not self._received and not self._is_ended:
            if self.terminated:
                raise Closed(self.terminated.error_code, self.terminated.reason_phrase)
            if time.monotonic() >= end:
                raise TimeoutError("nothing to read")
            self.pump(max(0.0, end - time.monotonic()))
        taken, self._received = self._received[:count], self._received[count:]
        return taken

    def close(self):
        self.connection.close()
        self.flush()
        self.socket.close()


class Quic(Client):
    """Frames on the first stream."""

    def _open(self, address, timeout):
        self._buffer = b""
        self._socket = self.wire = Stream(address, timeout)
