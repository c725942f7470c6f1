"""TLS on both transports, tried by OpenSSL, which shares no code with the server."""

import itertools
import socket
import ssl
import time
import unittest

from gimbal_client import Client, Closed, sign_in_by_phone
from quic_client import Quic
from server import Server
from websocket_clients import Tls, Websockets, WebsocketsTls, trusting

_phones = itertools.count(17_000_000_000)
PATIENCE = 60


def setUpModule():
    global server
    server = Server(tls_settings="handshakes_max = 16")


def tearDownModule():
    server.stop()


def new_device(phone=None):
    return sign_in_by_phone(server.grpc, phone or str(next(_phones)))


def contents(messages):
    return [bytes(message.content) for message in messages]


def until(done):
    """Looks again and again; false when patience ends first."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if done():
            return True
        time.sleep(0.05)
    return False


def connect(context, port):
    plain = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    return context.wrap_socket(plain, server_hostname="localhost")


class TlsTest(unittest.TestCase):
    def test_one_user_sees_one_order_over_every_transport_through_a_restart(self):
        alice, phone = new_device(), str(next(_phones))
        kinds = [
            (Client, server.tcp),
            (Websockets, server.websocket),
            (Tls, server.tls),
            (WebsocketsTls, server.websocket_tls),
            (Quic, server.quic),
        ]
        devices = [new_device(phone) for _ in kinds]
        user = devices[0].user_id
        sent = [b"%d" % number + b"x" * number * 1500 for number in range(40)]
        seen = [[] for _ in kinds]
        clients = [kind(address, device) for (kind, address), device in zip(kinds, devices)]
        with Tls(server.tls, alice) as sender:
            for number, content in enumerate(sent[:20]):
                sender.send(user, content, client_message_id=number + 1)
        for client, got in zip(clients, seen):
            got.extend(client.receive(20))
        server.stop()
        for client in clients:
            with self.assertRaises(Closed) as closed:
                client.receive()
            self.assertEqual(closed.exception.code, 4100)
            client.close()
        server.start()
        clients = [kind(address, device, cursor=20) for (kind, address), device in zip(kinds, devices)]
        with WebsocketsTls(server.websocket_tls, alice) as sender:
            for number, content in enumerate(sent[20:]):
                sender.send(user, content, client_message_id=number + 21)
        for client, got in zip(clients, seen):
            with client:
                got.extend(client.receive(20))
            self.assertEqual(contents(got), sent)
            self.assertEqual([message.seq for message in got], list(range(1, 41)))

    def test_both_versions_speak_and_name_the_protocol(self):
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            for port, protocol in ((server.tls[1], "gimbal"), (server.websocket_tls[1], "http/1.1")):
                context = trusting()
                context.minimum_version = context.maximum_version = version
                context.set_alpn_protocols([protocol])
                with connect(context, port) as client:
                    self.assertEqual(client.selected_alpn_protocol(), protocol)
                    self.assertEqual(client.version(), version.name.replace("_", "."))

    def test_a_session_is_resumed_by_its_ticket(self):
        before = trusting()
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            before.minimum_version = before.maximum_version = version
            Tls.context = before
            try:
                # The answer to the sign-in comes behind the ticket.
                with Tls(server.tls, new_device()) as client:
                    session = client._socket.session
            finally:
                Tls.context = None
            plain = socket.create_connection(server.tls, timeout=PATIENCE)
            with before.wrap_socket(plain, server_hostname="localhost", session=session) as again:
                self.assertTrue(again.session_reused, version)

    def test_what_is_no_tls_is_refused_and_counted(self):
        series = 'gimbal_gateway_dropped_total{what="tls_failed"}'
        before = server.metric(series)
        for port in (server.tls[1], server.websocket_tls[1]):
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
                client.sendall(b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n")
                self.assertEqual(client.recv(1), b"\x15", "an alert")
                while client.recv(4096):
                    pass
        self.assertTrue(until(lambda: server.metric(series) >= before + 2))

    def test_handshakes_are_bounded_and_sessions_go_on_meanwhile(self):
        series = 'gimbal_gateway_dropped_total{what="tls_handshake_over_limit"}'
        before = server.metric(series)
        with Tls(server.tls, new_device()) as honest:
            idle = [socket.create_connection(server.tls, timeout=PATIENCE) for _ in range(60)]
            self.assertTrue(until(lambda: server.metric(series) >= before + 20))
            self.assertEqual(honest.heartbeat(b"still here"), b"still here")
            for client in idle:
                client.close()
        self.assertTrue(until(lambda: server.metric("gimbal_gateway_tls_handshakes_under_way") == 0))
        with Tls(server.tls, new_device()) as client:
            client.heartbeat()

    def test_another_certificate_is_shown_once_it_is_in_place(self):
        def trusts(name):
            try:
                with connect(trusting(name), server.tls[1]):
                    return True
            except ssl.SSLCertVerificationError:
                return False

        self.assertTrue(trusts("one"))
        with Tls(server.tls, new_device()) as older:
            server.show_certificate("two")
            self.assertTrue(until(lambda: trusts("two")))
            self.assertFalse(trusts("one"))
            older.heartbeat()
        server.show_certificate("one")
        self.assertTrue(until(lambda: trusts("one")))

    def test_a_record_may_arrive_byte_by_byte(self):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = trusting()
        with socket.create_connection(server.tls, timeout=PATIENCE) as plain:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
            while True:
                try:
                    tls.do_handshake()
                    done = True
                except ssl.SSLWantReadError:
                    done = False
                for byte in outgoing.read():
                    plain.sendall(bytes([byte]))
                if done:
                    break
                incoming.write(plain.recv(65536))
            self.assertEqual(tls.version(), "TLSv1.3")
