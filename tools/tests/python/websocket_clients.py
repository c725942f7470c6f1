"""The client over WebSocket and TLS, by libraries that share no code with the server or with each other."""

import socket
import ssl

import websockets.exceptions
import websockets.sync.client
import wsproto
import wsproto.events as events

from gimbal_client import Client, Closed, wire
from server import CERTIFICATES


class Websockets(Client):
    """By `websockets`, which offers compression as browsers do."""

    def _open(self, address, timeout):
        self._timeout = timeout
        url = "ws://%s:%d/ws" % address
        self.socket = websockets.sync.client.connect(url, subprotocols=["gimbal"], open_timeout=timeout)

    def close(self):
        self.socket.close()

    def _write_packet(self, packet):
        self.socket.send(packet)

    def _read(self):
        try:
            message = self.socket.recv(timeout=self._timeout)
        except websockets.exceptions.ConnectionClosed as closed:
            raise Closed(closed.rcvd.code if closed.rcvd else 0, closed.rcvd.reason if closed.rcvd else "") from closed
        if not isinstance(message, bytes):
            raise AssertionError("a text message from the server")
        return wire.Packet.FromString(message)


class WebsocketsTls(Websockets):
    """The same in TLS."""

    def _open(self, address, timeout):
        self._timeout = timeout
        url = "wss://localhost:%d/ws" % address[1]
        self.socket = websockets.sync.client.connect(url, ssl=trusting(), open_timeout=timeout)


class Tls(Client):
    """Frames in TLS, by OpenSSL."""

    context = None  # of its own, when several connections are to share one

    def _open(self, address, timeout):
        super()._open(address, timeout)
        context = self.context or trusting()
        self._socket = context.wrap_socket(self._socket, server_hostname="localhost")


def trusting(name="one"):
    """A client's side of TLS that trusts one certificate."""
    context = ssl.create_default_context(cafile=CERTIFICATES / f"{name}.pem")
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


class Wsproto(Client):
    """By `wsproto`; every message leaves in `parts` fragments with a ping between them."""

    parts = 3

    def _open(self, address, timeout):
        self.pongs = []
        self._packets = []
        self._message = b""
        self._socket = socket.create_connection(address, timeout=timeout)
        self._connection = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        self._send(events.Request(host="%s:%d" % address, target="/ws", subprotocols=["gimbal"]))
        self._is_open = False
        while not self._is_open:
            self._receive()

    def close(self):
        self._socket.close()

    def _send(self, event):
        self._socket.sendall(self._connection.send(event))

    def _write_packet(self, packet):
        size = max(1, -(-len(packet) // self.parts))
        chunks = [packet[at : at + size] for at in range(0, len(packet), size)]
        for number, chunk in enumerate(chunks):
            self._send(events.BytesMessage(data=chunk, message_finished=number + 1 == len(chunks)))
            if number + 1 < len(chunks):
                self._send(events.Ping(payload=b"part %d" % number))

    def _read(self):
        while not self._packets:
            self._receive()
        return wire.Packet.FromString(self._packets.pop(0))

    def _receive(self):
        chunk = self._socket.recv(65536)
        self._connection.receive_data(chunk or None)
        for event in self._connection.events():
            if isinstance(event, events.AcceptConnection):
                self._is_open = True
                self.subprotocol = event.subprotocol
            elif isinstance(event, events.RejectConnection):
                raise AssertionError(f"rejected with {event.status_code}")
            elif isinstance(event, events.BytesMessage):
                self._message += event.data
                if event.message_finished:
                    self._packets.append(self._message)
                    self._message = b""
            elif isinstance(event, events.Pong):
                self.pongs.append(bytes(event.payload))
            elif isinstance(event, events.CloseConnection):
                raise Closed(event.code, event.reason)
            else:
                raise AssertionError(f"unexpected {event}")
