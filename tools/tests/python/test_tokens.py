"""Tokens made by PyJWT over OpenSSL, which shares no code with the server that checks them."""

import base64
import hashlib
import hmac
import json
import time
import unittest

import grpc
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gimbal_client import Client, Closed, Device, Refused, api, services
from server import Server

PHONE = 1 << 40  # the first id that a client may choose
SECRET = b"a secret of the issuer, thirty-two bytes and more"
KEYS = {
    "HS256": SECRET,
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
SETTINGS = """
[control.auth.jwt]
algorithms = ["HS256", "RS256", "ES256", "EdDSA"]
jwks_file = "{folder}/jwks.json"
audience = "gimbal"
issuer = "https://accounts.example"
leeway = "1s"
user_claim_is = "mapped"
"""


def jwks():
    secret = base64.urlsafe_b64encode(SECRET).rstrip(b"=").decode()
    keys = [{"kty": "oct", "k": secret, "alg": "HS256", "kid": "HS256"}]
    for name in ("RS256", "ES256", "EdDSA"):
        key = json.loads(jwt.get_algorithm_by_name(name).to_jwk(KEYS[name].public_key()))
        keys.append({**key, "alg": name, "kid": name, "use": "sig"})
    return json.dumps({"keys": keys})


def setUpModule():
    global server
    server = Server(SETTINGS, {"jwks.json": jwks()})


def tearDownModule():
    server.stop()


def token(name, algorithm="EdDSA", key=None, **changes):
    now = int(time.time())
    claims = {"sub": name, "aud": "gimbal", "iss": "https://accounts.example", "iat": now - 60, "exp": now + 3600}
    return jwt.encode({**claims, **changes}, key or KEYS[algorithm], algorithm=algorithm, headers={"kid": algorithm})


def device(number, *args, **kwargs):
    """A client that knows no id of its user."""
    return Device(0, PHONE + number, token(*args, **kwargs))


class Tokens(unittest.TestCase):
    def refused(self, device):
        with self.assertRaises(Refused) as refused:
            Client(server.tcp, device)
        self.assertEqual(refused.exception.code, 10000)

    def test_every_algorithm_opens_and_a_name_is_one_user_also_after_a_restart(self):
        users = set()
        for number, algorithm in enumerate(KEYS):
            with Client(server.tcp, device(number, "anna", algorithm)) as client:
                users.add(client.user_id)
        self.assertEqual(len(users), 1)
        with Client(server.tcp, device(10, "ben")) as ben:
            ben.send(*users, b"hello", client_message_id=1)
        server.restart()
        with Client(server.tcp, device(0, "anna")) as anna:
            self.assertEqual({anna.user_id}, users)
            self.assertEqual(bytes(anna.receive()[0].content), b"hello")

    def test_tokens_that_are_not_meant_for_us_or_not_now_are_refused(self):
        now = int(time.time())
        other = ed25519.Ed25519PrivateKey.generate()
        for changes in (
            {"aud": "other"},
            {"iss": "other"},
            {"exp": now - 10},
            {"nbf": now + 600},
            {"iat": now + 600},
            {"sub": ""},
            {"key": other},
        ):
            with self.subTest(**changes):
                self.refused(device(20, **{"name": "carl", **changes}))
        good = token("carl", "RS256")
        pem = KEYS["RS256"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        header, payload, _ = good.split(".")
        header = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"RS256"}').rstrip(b"=").decode()
        mac = hmac.new(pem, f"{header}.{payload}".encode(), hashlib.sha256).digest()
        confused = f"{header}.{payload}." + base64.urlsafe_b64encode(mac).rstrip(b"=").decode()
        self.refused(Device(0, PHONE + 20, confused))
        self.refused(Device(0, PHONE + 20, jwt.encode({"sub": "carl", "aud": "gimbal"}, None, algorithm="none")))
        with Client(server.tcp, Device(0, PHONE + 20, good)):
            pass

    def test_a_device_that_the_token_names_is_the_one(self):
        with Client(server.tcp, Device(0, 0, token("dora", device="777"))) as client:
            self.assertEqual(client.device_id, 777)
        self.refused(Device(0, 778, token("dora", device="777")))
        self.refused(Device(0, 777, token("emil")))

    def test_a_revocation_closes_and_a_token_that_was_replayed_is_refused(self):
        old = device(30, "frida")
        with Client(server.tcp, old) as client:
            with grpc.insecure_channel(server.grpc) as channel:
                request = api.RevokeTokensRequest(user_id=client.user_id)
                reply = services.AccountsStub(channel).RevokeTokens(
                    request, metadata=[("authorization", "Bearer dev")], timeout=20
                )
            with self.assertRaises(Closed) as closed:
                client.receive()
            self.assertEqual(closed.exception.code, 4202)
        self.refused(old)
        with Client(server.tcp, device(30, "frida", iat=reply.before_ms // 1000 + 1)):
            pass

    def test_a_session_is_closed_when_its_token_is_over(self):
        brief, client = self.sign_in_briefly()
        with client, self.assertRaises(Closed) as closed:
            client.receive()
        self.assertEqual(closed.exception.code, 4204)
        self.refused(brief)

    def sign_in_briefly(self):
        """With the shortest life that lasts for a sign-in on this machine."""
        for seconds in (3, 6, 12, 24, 48):
            brief = device(40, "gerd", exp=int(time.time()) + seconds)
            try:
                return brief, Client(server.tcp, brief, timeout=100)
            except Refused:
                pass
        raise AssertionError("no sign-in within 48 s")
