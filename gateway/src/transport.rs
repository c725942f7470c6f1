//! What carries frames. Only here and in `ring` is known what that is.

pub(crate) mod tcp;
