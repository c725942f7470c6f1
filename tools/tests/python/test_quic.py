"""QUIC, tried by aioquic, which shares no code with the server. Every client has to show its address first (Retry)."""

import itertools
import socket
import time
import unittest

from aioquic.quic import events

from gimbal_client import Client, Closed, sign_in_by_phone
from quic_client import ALPN, Quic, Stream, configuration
from server import Server

_phones = itertools.count(18_000_000_000)
PATIENCE = 60


def setUpModule():
    global server
    server = Server(quic_settings="retry_from = 0")


def tearDownModule():
    server.stop()


def new_device(phone=None):
    return sign_in_by_phone(server.grpc, phone or str(next(_phones)))


def counted(what):
    return server.metric('gimbal_gateway_dropped_total{what="%s"}' % what)


def until(done):
    """Looks again and again; false when patience ends first."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if done():
            return True
        time.sleep(0.05)
    return False


class QuicTest(unittest.TestCase):
    def test_messages_go_both_ways_and_the_protocol_is_agreed_on(self):
        alice, bob = new_device(), new_device()
        retries = server.metric("gimbal_gateway_quic_retries_total")
        with Quic(server.quic, alice) as sender, Quic(server.quic, bob) as receiver:
            self.assertEqual(sender.wire.handshake.alpn_protocol, ALPN)
            sent = [b"%d" % number + b"y" * number * 1400 for number in range(40)]
            for number, content in enumerate(sent):
                self.assertEqual(sender.send(bob.user_id, content, number + 1).seq, number + 1)
            self.assertEqual([bytes(message.content) for message in receiver.receive(40)], sent)
            self.assertEqual(receiver.ack(40), 40)
        self.assertGreaterEqual(server.metric("gimbal_gateway_quic_retries_total"), retries + 2)

    def test_a_client_that_moves_keeps_its_session(self):
        alice, bob = new_device(), new_device()
        sign_ins = server.metric("gimbal_gateway_sign_ins_total")
        with Client(server.tcp, alice) as sender, Quic(server.quic, bob) as receiver:
            for move in range(5):
                receiver.wire.rebind()
                for number in range(10):
                    sender.send(bob.user_id, b"x" * 3000, move * 10 + number + 1)
                receiver.heartbeat(b"here I am")
                receiver.receive(10)
            self.assertEqual(receiver.cursor, 50)
        self.assertEqual(server.metric("gimbal_gateway_sign_ins_total"), sign_ins + 2)
        self.assertGreaterEqual(server.metric("gimbal_gateway_quic_address_changes_total"), 5)

    def test_the_older_session_of_a_device_ends_whichever_way_it_came(self):
        device = new_device()
        first = Quic(server.quic, device)
        with Client(server.tcp, device) as second:
            with self.assertRaises(Closed) as closed:
                first.receive()
            self.assertEqual(closed.exception.code, 4201)
            # The frame comes first, then the connection ends with the same code.
            end = first.wire.until(events.ConnectionTerminated)
            self.assertEqual((end.error_code, end.reason_phrase), (4201, "takeover"))
            second.heartbeat()

    def test_a_ticket_resumes_the_session_of_tls_and_allows_no_early_data(self):
        tickets = []
        with_ticket = Stream(server.quic, PATIENCE, on_ticket=tickets.append)
        self.assertTrue(until(lambda: with_ticket.pump(0.05) or tickets))
        self.assertIn(tickets[0].max_early_data_size, (None, 0))
        with_ticket.close()
        again = Stream(server.quic, PATIENCE, settings=configuration(session_ticket=tickets[0]))
        self.assertTrue(again.handshake.session_resumed)
        self.assertFalse(again.handshake.early_data_accepted)
        again.close()

    def test_another_protocol_fails_in_the_handshake(self):
        before = counted("quic_handshake_failed")
        with self.assertRaises(Closed) as closed:
            Stream(server.quic, PATIENCE, settings=configuration(alpn_protocols=["h3"]))
        self.assertEqual(closed.exception.code, 0x100 + 120)
        self.assertTrue(until(lambda: counted("quic_handshake_failed") > before))

    def test_a_stream_too_many_ends_the_connection(self):
        before = counted("quic_violation")
        with Quic(server.quic, new_device()) as client:
            # Takes more than it was granted.
            client.wire.connection._remote_max_streams_bidi = 8
            client.wire.sendall(b"x", stream=client.wire.stream + 4)
            end = client.wire.until(events.ConnectionTerminated)
            self.assertEqual(end.error_code, 4, "STREAM_LIMIT_ERROR")
        self.assertTrue(until(lambda: counted("quic_violation") > before))

    def test_bytes_beyond_the_window_end_the_connection(self):
        before = counted("quic_violation")
        client = Stream(server.quic, PATIENCE)
        client.connection._remote_max_data = 1 << 30
        stream = client.connection._get_or_create_stream_for_send(client.stream)
        stream.max_stream_data_remote = 1 << 30
        # A gap at the front, so that nothing can be read: the window alone bounds what is kept.
        stream.sender._buffer_start = stream.sender._buffer_stop = 70_000
        client.sendall(b"z" * 2000)
        self.assertEqual(client.until(events.ConnectionTerminated).error_code, 3, "FLOW_CONTROL_ERROR")
        self.assertTrue(until(lambda: counted("quic_violation") > before))

    def test_what_is_no_frame_is_closed_with_its_code(self):
        for data, code in ((b"\x00", 4302), (b"\xff" * 6, 4301), (b"\x81\x08", 4300), (b"\x03\xff\xff\xff", 4303)):
            client = Stream(server.quic, PATIENCE)
            client.sendall(data)
            end = client.until(events.ConnectionTerminated)
            self.assertEqual(end.error_code, code, data)
            client.close()

    def test_garbage_is_counted_and_harms_nobody(self):
        before = counted("quic_datagram_ignored")
        with Quic(server.quic, new_device()) as honest:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                for size in range(1, 200):
                    stranger.sendto(bytes((size * 7 + at * 13) % 64 for at in range(size)), server.quic)
            self.assertTrue(until(lambda: counted("quic_datagram_ignored") > before))
            self.assertEqual(honest.heartbeat(b"still here"), b"still here")
