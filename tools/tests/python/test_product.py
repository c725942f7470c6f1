"""A whole small product through gRPC and sockets: people, friends, a group of 200, rooms, a second device that comes later; and
exactly the expected state, before and after a restart."""

import unittest

import grpc
from gimbal_client import Client, api, services, sign_in_by_phone
from server import Server

BACKEND = [("authorization", "Bearer dev")]
GROUP = 200
TALK = 1000


class Product:
    """Stubs on one channel, and who calls."""

    def __init__(self, server):
        self.channel = grpc.insecure_channel(server.grpc)
        for name in ("Accounts", "Friends", "Groups", "Messages", "Rooms", "Presence", "Events"):
            setattr(self, name.lower(), getattr(services, name + "Stub")(self.channel))

    @staticmethod
    def by(device):
        return [("user_id", str(device.user_id)), ("device_id", str(device.device_id)), ("token", device.token)]

    @staticmethod
    def of(user_id):
        return BACKEND + [("user_id", str(user_id))]

    def register(self, user_id=0, push_token=""):
        request = api.RegisterDeviceRequest(user_id=user_id, device=api.Device(push_token=push_token))
        return self.accounts.RegisterDevice(request, metadata=BACKEND, timeout=20)

    def mailbox(self, device):
        """All of a mailbox, page by page; its seqs have no gap."""
        found, after = [], 0
        while True:
            page = self.messages.Sync(api.SyncRequest(after=after, limit=500), metadata=self.by(device), timeout=20)
            found.extend(page.messages)
            if [message.seq for message in page.messages] != list(range(after + 1, after + 1 + len(page.messages))):
                raise AssertionError("a gap")
            after += len(page.messages)
            if not page.has_more:
                return found

    def members(self, device, group_id):
        found, token = [], ""
        while True:
            request = api.ListMembersRequest(group_id=group_id, page_token=token)
            page = self.groups.ListMembers(request, metadata=self.by(device), timeout=20)
            found.extend(page.members)
            token = page.next_page_token
            if not token:
                return found


def reason(call, *arguments, **named):
    try:
        call(*arguments, timeout=20, **named)
    except grpc.RpcError as error:
        return dict(error.trailing_metadata()).get("gimbal-reason")


class SmallProduct(unittest.TestCase):
    def setUp(self):
        self.server = Server()
        self.addCleanup(self.server.stop)
        self.product = Product(self.server)
        self.addCleanup(lambda: self.product.channel.close())

    def test_a_small_product_works_and_survives_a_restart(self):
        product = self.product
        ada, ben = (sign_in_by_phone(self.server.grpc, phone) for phone in ("+491", "+492"))
        for device, name in ((ada, "Ada"), (ben, "Ben")):
            product.accounts.UpdateUser(api.UpdateUserRequest(nickname=name), metadata=product.by(device))

        # Friends.
        found = product.accounts.SearchUsers(api.SearchUsersRequest(query="be"), metadata=product.by(ada)).users
        self.assertEqual([user.user_id for user in found], [ben.user_id])
        product.friends.Add(api.AddFriendRequest(user_id=ben.user_id, description="hi"), metadata=product.by(ada))
        product.friends.Agree(api.AgreeFriendRequest(user_id=ada.user_id), metadata=product.by(ben))

        # A group of 200, of which Ben is an admin.
        crowd = [product.register() for _ in range(GROUP - 2)]
        names = [ben.user_id] + [person.user_id for person in crowd]
        made = product.groups.Create(api.CreateGroupRequest(name="all", user_ids=names), metadata=product.by(ada))
        group = made.group_id
        self.assertEqual({member.reason for member in made.members}, {""})
        role = api.SetRoleRequest(group_id=group, user_id=ben.user_id, role=api.GROUP_ROLE_ADMIN)
        product.groups.SetRole(role, metadata=product.by(ada))
        for number, sender in enumerate((ada, ben, crowd[0]), 1):
            send = api.SendRequest(client_message_id=1, to_group=group, command=TALK, content=b"to all %d" % number)
            product.messages.Send(send, metadata=product.by(sender))
        last = crowd[-1]
        product.groups.RemoveMembers(api.RemoveMembersRequest(group_id=group, user_ids=[last.user_id]), metadata=product.by(ben))
        send = api.SendRequest(client_message_id=2, to_group=group, command=TALK, content=b"without one")
        product.messages.Send(send, metadata=product.by(ada))
        late = api.SendRequest(client_message_id=1, to_group=group, command=TALK, content=b"late")
        self.assertIsNotNone(reason(product.messages.Send, late, metadata=product.by(last)))

        # A room, and one to one, live.
        with Client(self.server.tcp, ben, cursor=product_latest(product, ben)) as live:
            live.join(7)
            product.rooms.Publish(api.PublishRequest(room_id=7, command=TALK, content=b"in the room"), metadata=BACKEND)
            self.assertEqual(live.receive()[0].content, b"in the room")
            product.messages.Send(
                api.SendRequest(client_message_id=3, to_user=ben.user_id, command=TALK, content=b"for you"), metadata=product.by(ada)
            )
            message = live.receive()[0]
            self.assertEqual((message.content, message.from_user), (b"for you", ada.user_id))
            live.ack(message.seq)

        before = self.state(ada, ben, crowd, group)
        self.check(before, ada, ben, crowd)
        self.product.channel.close()
        self.server.restart()
        self.product = Product(self.server)
        self.assertEqual(self.state(ada, ben, crowd, group), before)

        # A second device that comes now finds all of it.
        tablet = self.product.register(ben.user_id)
        self.assertEqual(self.product.mailbox(tablet), self.product.mailbox(ben))

    def state(self, ada, ben, crowd, group):
        """Everything that the product holds, as its users see it."""
        product = self.product
        boxes = [[(m.command, m.content, m.from_user) for m in product.mailbox(who)] for who in (ada, ben, *crowd)]
        members = [(m.user_id, m.role) for m in product.members(ada, group)]
        friends = product.friends.List(api.ListFriendsRequest(), metadata=product.by(ben)).friends
        acked = product.messages.Ack(api.AckRequest(seq=1), metadata=product.by(ben)).seq
        return boxes, members, [friend.user.user_id for friend in friends], acked

    def check(self, state, ada, ben, crowd):
        boxes, members, friends, acked = state
        self.assertEqual((len(members), friends), (GROUP - 1, [ada.user_id]))
        self.assertEqual(dict(members)[ada.user_id], api.GROUP_ROLE_OWNER)
        self.assertEqual(dict(members)[ben.user_id], api.GROUP_ROLE_ADMIN)
        talk = [[content for command, content, _ in box if command == TALK] for box in boxes]
        to_all = [b"to all 1", b"to all 2", b"to all 3"]
        self.assertEqual(talk[1], to_all + [b"without one", b"for you"])
        for box in talk[2:-1]:
            self.assertEqual(box, to_all + [b"without one"], "each member, each message once, in one order")
        self.assertEqual(talk[-1], to_all, "who was removed gets no more")
        self.assertEqual(acked, len(boxes[1]))
        notices = [command for command, _, _ in boxes[1] if command != TALK]
        self.assertEqual(notices[0], 110)
        self.assertEqual(set(notices[1:]), {121, 122, 125})
        self.assertEqual(boxes[0][0][0], 111)


def product_latest(product, device):
    return len(product.mailbox(device))


if __name__ == "__main__":
    unittest.main()
