//! A stream whose first bytes must come in time.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// Of the preface of HTTP/2 (RFC 9113, 3.4). No request over HTTP/1.1 is shorter.
const FIRST_BYTES: usize = 24;

/// Until [`FIRST_BYTES`] have come the reader has a deadline; past it reading fails with `TimedOut`. What comes later is
/// the protocol's to bound: keep-alive pings over HTTP/2, the deadline of each head over HTTP/1.
pub(crate) struct Guarded<I> {
    inner: I,
    missing: usize,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<I> Guarded<I> {
    pub(crate) fn new(inner: I, within: Duration) -> Self {
        Self { inner, missing: FIRST_BYTES, deadline: Some(Box::pin(sleep(within))) }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Guarded<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buffer);
        self.missing = self.missing.saturating_sub(buffer.filled().len() - before);
        if self.missing == 0 {
            self.deadline = None;
        }
        if let Some(deadline) = &mut self.deadline
            && read.is_pending()
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no request in time")));
        }
        read
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Guarded<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_says_nothing_ends_and_one_that_has_begun_may_rest() {
        let (mut theirs, ours) = tokio::io::duplex(64);
        let mut ours = Guarded::new(ours, Duration::from_secs(5));
        theirs.write_all(&[0; FIRST_BYTES - 1]).await.unwrap();
        let mut first = [0; FIRST_BYTES - 1];
        ours.read_exact(&mut first).await.unwrap();
        assert_eq!(ours.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);

        let (mut theirs, ours) = tokio::io::duplex(64);
        let mut ours = Guarded::new(ours, Duration::from_secs(5));
        theirs.write_all(&[7; FIRST_BYTES]).await.unwrap();
        ours.read_exact(&mut [0; FIRST_BYTES]).await.unwrap();
        let rest = tokio::time::timeout(Duration::from_secs(3600), ours.read_u8()).await;
        assert!(rest.is_err(), "only the test's own patience ends it");
    }
}
