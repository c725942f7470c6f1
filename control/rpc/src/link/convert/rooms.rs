//! Answers to what members do in rooms.

use gimbal_codec::{Attach, SessionKey};

use super::{LinkDecodeError, required_tag};
use crate::link::{Down, Refusal, RoomPlace, Tag};
use crate::link_v1 as pb;

pub(super) fn publish_done(
    to: (SessionKey, Attach),
    tag: Tag,
    result: Result<RoomPlace, Refusal>,
) -> pb::PublishDone {
    let mut item = pb::PublishDone {
        session: to.0.to_u64(),
        attach: to.1.get(),
        tag: Some(tag.into()),
        ..pb::PublishDone::default()
    };
    match result {
        Ok(RoomPlace { epoch, seq, created_at_ms }) => {
            (item.room_epoch, item.room_seq, item.created_at_ms) = (epoch, seq, created_at_ms);
        }
        Err(refusal) => item.refusal = Some(refusal.into()),
    }
    item
}

pub(super) fn publish_done_from(item: pb::PublishDone) -> Result<Down, LinkDecodeError> {
    let result = match item.refusal {
        Some(refusal) => Err(refusal.into()),
        None => {
            Ok(RoomPlace { epoch: item.room_epoch, seq: item.room_seq, created_at_ms: item.created_at_ms })
        }
    };
    let to = (SessionKey::from_u64(item.session), Attach::new(item.attach));
    Ok(Down::PublishDone { to, tag: required_tag(item.tag)?, result })
}
