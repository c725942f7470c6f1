"""What a person tries first, tried by a client that shares no code with the server."""

import itertools
import unittest

from gimbal_client import Client, Closed, Device, Refused, sign_in_by_phone
from server import Server

_phones = itertools.count(15_000_000_000)


def setUpModule():
    global server
    server = Server()


def tearDownModule():
    server.stop()


def new_device(phone=None):
    return sign_in_by_phone(server.grpc, phone or str(next(_phones)))


def contents(messages):
    return [bytes(message.content) for message in messages]


class Messages(unittest.TestCase):
    def test_a_message_crosses_with_its_seq(self):
        alice, bob = new_device(), new_device()
        with Client(server.tcp, bob) as listener, Client(server.tcp, alice) as sender:
            result = sender.send(bob.user_id, b"hello", client_message_id=1)
            (message,) = listener.receive()
        self.assertEqual((message.seq, bytes(message.content)), (1, b"hello"))
        self.assertEqual((message.from_user, message.from_device), (alice.user_id, alice.device_id))
        self.assertEqual((result.seq, result.message_id, result.duplicate), (1, message.message_id, False))
        self.assertEqual(message.created_at, message.created_at_ms // 1000)

    def test_ten_sends_to_an_absent_listener_are_read_once_in_order(self):
        alice, bob = new_device(), new_device()
        with Client(server.tcp, bob) as listener:
            cursor = listener.cursor
        with Client(server.tcp, alice) as sender:
            for number in range(10):
                sender.send(bob.user_id, b"%d" % number, client_message_id=number + 1)
            with Client(server.tcp, bob, cursor=cursor) as listener:
                got = listener.receive(10)
                self.assertEqual(contents(got), [b"%d" % number for number in range(10)])
                self.assertEqual([message.seq for message in got], list(range(1, 11)))
                sender.send(bob.user_id, b"live", client_message_id=11)
                self.assertEqual(contents(listener.receive()), [b"live"])
                listener.heartbeat()
                self.assertFalse(listener.messages)

    def test_two_devices_both_get_all_and_acknowledge_for_themselves(self):
        alice, phone = new_device(), str(next(_phones))
        first, second = new_device(phone), new_device(phone)
        self.assertEqual(first.user_id, second.user_id)
        self.assertNotEqual(first.device_id, second.device_id)
        with Client(server.tcp, first) as one, Client(server.tcp, second) as two, Client(server.tcp, alice) as sender:
            for number in range(5):
                sender.send(first.user_id, b"%d" % number, client_message_id=number + 1)
            self.assertEqual(contents(one.receive(5)), contents(two.receive(5)))
            self.assertEqual(one.ack(4), 4)
            self.assertEqual(one.ack(2), 4, "an ack never moves back")
            self.assertEqual(two.ack(1), 1, "the other device's state is its own")

    def test_the_same_client_message_id_is_one_message_and_one_answer(self):
        alice, bob = new_device(), new_device()
        with Client(server.tcp, bob) as listener, Client(server.tcp, alice) as sender:
            answers = [sender.send(bob.user_id, b"once", client_message_id=7) for _ in range(3)]
            self.assertEqual({(a.message_id, a.seq, a.created_at_ms) for a in answers}, {(answers[0].message_id, 1, answers[0].created_at_ms)})
            self.assertEqual([answer.duplicate for answer in answers], [False, True, True])
            self.assertEqual(contents(listener.receive()), [b"once"])
            listener.heartbeat()
            self.assertFalse(listener.messages)

    def test_a_heartbeat_comes_back_as_it_was(self):
        with Client(server.tcp, new_device()) as client:
            self.assertEqual(client.heartbeat(b"\x00any\xff"), b"\x00any\xff")

    def test_a_wrong_token_is_answered_and_closed(self):
        device = new_device()
        with self.assertRaises(Refused) as refused:
            Client(server.tcp, Device(device.user_id, device.device_id, "0" * 64))
        self.assertEqual(refused.exception.code, 10000)

    def test_a_newer_sign_in_takes_over(self):
        device = new_device()
        with Client(server.tcp, device) as older, Client(server.tcp, device) as newer:
            with self.assertRaises(Closed) as closed:
                older.receive()
            self.assertEqual(closed.exception.code, 4201)
            self.assertEqual(newer.heartbeat(b"mine"), b"mine")
