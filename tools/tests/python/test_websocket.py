"""WebSocket, tried by two libraries that share no code with the server."""

import itertools
import unittest

import websockets.exceptions
import websockets.sync.client
from gimbal_client import Client, Closed, sign_in_by_phone, wire
from server import Server
from websocket_clients import Websockets, Wsproto

_phones = itertools.count(16_000_000_000)


def setUpModule():
    global server
    server = Server()


def tearDownModule():
    server.stop()


def new_device(phone=None):
    return sign_in_by_phone(server.grpc, phone or str(next(_phones)))


def contents(messages):
    return [bytes(message.content) for message in messages]


class WebSocket(unittest.TestCase):
    def test_one_user_sees_the_same_over_every_library_and_tcp(self):
        alice, phone = new_device(), str(next(_phones))
        kinds = [(Client, server.tcp), (Websockets, server.websocket), (Wsproto, server.websocket)]
        listeners = [kind(address, new_device(phone)) for kind, address in kinds]
        bob = listeners[0].device.user_id
        sent = [b"%d" % number + b"x" * number * 700 for number in range(40)]
        with Websockets(server.websocket, alice) as sender:
            for number, content in enumerate(sent):
                sender.send(bob, content, client_message_id=number + 1)
        for listener in listeners:
            with listener:
                got = listener.receive(len(sent))
                self.assertEqual(contents(got), sent)
                self.assertEqual([message.seq for message in got], list(range(1, len(sent) + 1)))

    def test_fragments_with_pings_between_them_are_one_packet(self):
        with Wsproto(server.websocket, new_device()) as client:
            self.assertEqual(client.subprotocol, "gimbal")
            self.assertEqual(client.heartbeat(b"\x00any\xff" * 1000), b"\x00any\xff" * 1000)
            self.assertEqual(client.pongs[-2:], [b"part 0", b"part 1"])

    def test_no_compression_is_agreed_on_and_a_ping_comes_back(self):
        with Websockets(server.websocket, new_device()) as client:
            self.assertEqual((client.socket.subprotocol, client.socket.protocol.extensions), ("gimbal", []))
            self.assertTrue(client.socket.ping(b"are you there").wait(timeout=20))

    def test_a_takeover_is_told_in_the_close_frame(self):
        for kind in (Websockets, Wsproto):
            device = new_device()
            with kind(server.websocket, device) as older, kind(server.websocket, device) as newer:
                with self.assertRaises(Closed) as closed:
                    older.receive()
                self.assertEqual(closed.exception.code, 4201)
                self.assertEqual(newer.heartbeat(b"mine"), b"mine")

    def test_the_close_frame_follows_the_close_packet(self):
        url = "ws://%s:%d/ws" % server.websocket
        with websockets.sync.client.connect(url) as socket:
            socket.send(b"\xff\xff")
            packet = wire.Packet.FromString(socket.recv(timeout=20))
            self.assertEqual((packet.command, wire.Close.FromString(packet.content).code), (wire.CLOSE, 4303))
            with self.assertRaises(websockets.exceptions.ConnectionClosed) as closed:
                socket.recv(timeout=20)
            self.assertEqual((closed.exception.rcvd.code, closed.exception.rcvd.reason), (4303, "bad_packet"))

    def test_a_client_that_closes_is_answered_and_gone(self):
        url = "ws://%s:%d/ws" % server.websocket
        with websockets.sync.client.connect(url) as socket:
            socket.close(3001, "done")
            self.assertEqual(socket.protocol.close_rcvd.code, 3001)

    def test_a_text_message_is_a_packet_as_in_gim(self):
        url = "ws://%s:%d/ws" % server.websocket
        with websockets.sync.client.connect(url) as socket:
            socket.send(wire.Packet(command=wire.HEARTBEAT).SerializeToString().decode())
            packet = wire.Packet.FromString(socket.recv(timeout=20))
            self.assertEqual((packet.command, wire.Reply.FromString(packet.content).code), (wire.HEARTBEAT, 10000))

    def test_a_page_from_elsewhere_is_refused(self):
        url = "ws://%s:%d/ws" % server.websocket
        with self.assertRaises(websockets.exceptions.InvalidStatus) as refused:
            websockets.sync.client.connect(url, origin="https://else.example")
        self.assertEqual(refused.exception.response.status_code, 403)
        with websockets.sync.client.connect(url, origin="http://127.0.0.1:3000") as socket:
            socket.ping().wait(timeout=20)
