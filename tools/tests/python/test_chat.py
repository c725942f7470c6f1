"""The chat page of `gimbal serve --dev`, clicked through in a headless Chromium where there is one.

Screenshots go to the folder in GIMBAL_SCREENSHOTS, if it is set.
"""

import itertools
import os
import shutil
import unittest
import urllib.request

from chromium import Chromium, until
from server import Server

_phones = itertools.count(17_000_000_000)
PROGRAM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


@unittest.skipUnless(PROGRAM, "no Chromium on this machine")
class Chat(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()
        cls.addClassCleanup(cls.server.stop)
        cls.chromium = Chromium(PROGRAM)
        cls.addClassCleanup(cls.chromium.stop)

    def window(self):
        window = self.chromium.window(f"http://{self.server.http}/chat/")
        until(lambda: window.run("document.querySelector('#sign-in button')?.disabled === false"), "the page's scripts")
        return window

    def signed_in(self, phone=None):
        window = self.window()
        window.type("#phone", str(phone or next(_phones)))
        window.click("#sign-in button")
        window.sees("#state", "online")
        return window, window.text("#me").split()[1]

    def talk(self, window, user):
        window.type("#open-user", user)
        window.click("#open button")
        window.sees("#title", f"User {user}")

    def say(self, window, words):
        window.type("#text", words)
        window.click("#write button")

    def shot(self, window, name):
        if folder := os.environ.get("GIMBAL_SCREENSHOTS"):
            window.screenshot(os.path.join(folder, name + ".png"))

    def test_two_windows_talk_through_a_restart_and_a_reload(self):
        (alice, alice_id), (bob, bob_id) = self.signed_in(), self.signed_in()
        self.assertNotEqual(alice_id, bob_id)
        self.talk(alice, bob_id)
        self.say(alice, "hello <b>bob</b>")
        alice.sees("#messages", "stored as 1")
        bob.sees("#talks", f"User {alice_id}")
        self.assertEqual(bob.text("#talks b"), "1")
        bob.click("#talks button")
        bob.sees("#messages", "hello <b>bob</b>")
        bob.type("#text", "h")
        alice.sees("#typing", f"{bob_id} is typing")
        self.shot(alice, "typing")
        bob.type("#text", "i alice")
        bob.click("#write button")
        alice.sees("#messages", "hi alice")
        self.server.restart()
        self.say(alice, "still there?")
        bob.sees("#messages", "still there?")
        alice.sees("#messages", "stored as 2")
        bob.reload()
        bob.sees("#state", "online")
        bob.click("#talks button")
        for words in ["hello <b>bob</b>", "hi alice", "still there?"]:
            bob.sees("#messages", words)
        self.assertEqual(bob.run("document.querySelectorAll('#messages li').length"), 3)
        self.shot(bob, "talk")
        self.assertEqual(alice.errors + bob.errors, [])

    def test_what_came_while_the_window_was_closed_is_there_afterwards(self):
        phone = next(_phones)
        bob, bob_id = self.signed_in(phone)
        bob.run("location.href = 'about:blank'")
        alice, alice_id = self.signed_in()
        self.talk(alice, bob_id)
        for number in range(3):
            self.say(alice, f"missed {number}")
        alice.sees("#messages", "stored as 3")
        bob, again = self.signed_in(phone)
        self.assertEqual(again, bob_id)
        bob.sees("#talks", f"User {alice_id}")
        bob.click("#talks button")
        until(lambda: bob.run("document.querySelectorAll('#messages li').length") == 3, "three messages")

    def test_members_of_a_room_hear_each_other(self):
        (alice, alice_id), (bob, _) = self.signed_in(), self.signed_in()
        for window in (alice, bob):
            window.type("#enter-room", "7")
            window.click("#enter button")
            window.sees("#title", "Room 7")
        # Until bob's join has arrived nobody hears him or us.
        until(lambda: self.said(alice, bob, "anybody here?"), "the room")
        bob.sees("#messages", alice_id)
        self.shot(bob, "room")

    def said(self, window, listener, words):
        self.say(window, words)
        return words in listener.text("#messages")

    def test_what_is_refused_is_told(self):
        alice, _ = self.signed_in()
        self.talk(alice, "18446744073709551615")
        self.say(alice, "nobody hears this")
        alice.sees("#messages", "refused")
        self.shot(alice, "refused")
        door = self.window()
        door.type("#phone", "000000000000000000000000000000001")
        door.click("#sign-in button")
        self.assertTrue(door.is_visible("#door"))

    def test_a_second_window_of_the_same_device_takes_over(self):
        phone = next(_phones)
        first, _ = self.signed_in(phone)
        self.signed_in(phone)
        first.sees("#state", "signed in elsewhere")

    def test_the_page_brings_its_own_rules_and_ports(self):
        with urllib.request.urlopen(f"http://{self.server.http}/chat/") as answer:
            self.assertIn("default-src 'self'", answer.headers["content-security-policy"])
            self.assertEqual(answer.headers.get_content_type(), "text/html")
