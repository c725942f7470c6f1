//! Between the link's types and its protobuf form.

/// A link item that this side does not understand: the stream is closed.
#[derive(Debug, thiserror::Error)]
pub enum LinkDecodeError {
    /// A required part is absent.
    #[error("link item lacks {0}")]
    Missing(&'static str),
}
