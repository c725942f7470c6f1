//! Sessions that an administrator has ended. The word to a gateway may be lost with its link, and the gateway then announces
//! the session as if nothing had been said.

use std::collections::VecDeque;

use gimbal_codec::{Attach, DeviceId};
use hashbrown::HashMap;

/// So many of the newest are remembered, about 4 MB; a gateway announces its sessions within seconds.
const ENDED_MAX: usize = 65_536;

/// The newest of them, by device.
#[derive(Default)]
pub(super) struct Ended {
    attaches: HashMap<DeviceId, Attach>,
    order: VecDeque<(DeviceId, Attach)>,
}

impl Ended {
    /// The device's session with this number was ended.
    pub(super) fn add(&mut self, device: DeviceId, attach: Attach) {
        self.attaches.insert(device, attach);
        self.order.push_back((device, attach));
        if self.order.len() > ENDED_MAX
            && let Some((device, attach)) = self.order.pop_front()
            && self.attaches.get(&device) == Some(&attach)
        {
            self.attaches.remove(&device);
        }
    }

    /// Whether a session that last had the number `was` is among them.
    pub(super) fn holds(&self, device: DeviceId, was: Attach) -> bool {
        self.attaches.get(&device).is_some_and(|ended| was <= *ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_remembered_and_no_later_session_is_among_them() {
        let mut ended = Ended::default();
        let device = DeviceId::new(7);
        ended.add(device, Attach::new(5));
        assert!(ended.holds(device, Attach::new(5)) && ended.holds(device, Attach::new(4)));
        assert!(!ended.holds(device, Attach::new(6)) && !ended.holds(DeviceId::new(8), Attach::new(5)));
        ended.add(device, Attach::new(9));
        (0..ENDED_MAX as u64 - 1).for_each(|other| ended.add(DeviceId::new(100 + other), Attach::new(1)));
        assert!(ended.holds(device, Attach::new(9)), "its older entry alone has gone");
        ended.add(DeviceId::new(1), Attach::new(1));
        assert!(!ended.holds(device, Attach::new(9)));
        assert_eq!((ended.attaches.len(), ended.order.len()), (ENDED_MAX, ENDED_MAX));
    }
}
