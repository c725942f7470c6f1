//! The promises.

use std::collections::BTreeMap;

use gimbal_codec::DeviceId;

use super::world::World;

/// Gapless mailboxes, nothing twice, nothing acknowledged lost; one online session for each device.
pub(crate) fn after_step(world: &World) {
    world.node.engine.routes().check();
    let page = world.node.engine.routes().page(None, 0, 1000);
    let mut devices: Vec<DeviceId> = page.sessions.iter().map(|info| info.device).collect();
    devices.sort_unstable();
    assert!(devices.windows(2).all(|pair| pair[0] != pair[1]), "one online session for each device");
    check_mailboxes(world);
}

/// Besides: all that was wanted is there.
pub(crate) fn at_the_end(world: &World) {
    after_step(world);
    assert!(world.clients.iter().all(|client| client.wanted.is_none()));
    assert!(world.clients.iter().any(|client| !client.acknowledged.is_empty()), "something was sent at all");
}

fn check_mailboxes(world: &World) {
    let mut places = BTreeMap::new();
    for user in &world.users {
        let (messages, latest) = world.node.messages(*user, 0);
        assert_eq!(messages.len() as u64, latest, "no gap in the mailbox of {user}");
        for (at, (seq, text)) in messages.into_iter().enumerate() {
            assert_eq!(seq, at as u64 + 1, "no gap in the mailbox of {user}");
            assert_eq!(places.insert(text.clone(), (*user, seq)), None, "{text} was stored twice");
        }
    }
    for acknowledged in world.clients.iter().flat_map(|client| &client.acknowledged) {
        let place = places.get(&acknowledged.wanted.text);
        let promised = (acknowledged.wanted.to, acknowledged.seq.get());
        assert_eq!(place, Some(&promised), "{} was acknowledged", acknowledged.wanted.text);
    }
}
