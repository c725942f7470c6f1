//! The body of an answer: what its call holds is held until it is read, and a panic in it ends it alone.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tonic::{Status, body::Body};

use super::seats::Seat;
use crate::{front::Reading, metrics::Metrics};

/// A body with what it keeps.
pub(super) struct Answer {
    /// `None` once it has panicked.
    pub(super) body: Option<Body>,
    pub(super) place: Option<Seat>,
    /// `None` for streams, which last as long as both ends want.
    pub(super) _reading: Option<Reading>,
    pub(super) metrics: Arc<Metrics>,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        match catch_unwind(AssertUnwindSafe(|| Pin::new(body).poll_frame(cx))) {
            Ok(polled) => polled,
            Err(_) => {
                self.body = None;
                self.place = None;
                self.metrics.call_panics.inc();
                tracing::error!("an answer panicked");
                Poll::Ready(Some(Err(Status::internal("internal error"))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(hyper::body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(hyper::body::Body::size_hint).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Panics;

    impl hyper::body::Body for Panics {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            panic!("on purpose")
        }
    }

    #[tokio::test]
    async fn a_panic_in_an_answer_ends_it_and_is_counted() {
        let metrics = Arc::new(Metrics::new());
        let places = Arc::new(super::super::seats::Seats::default());
        let mut answer = Answer {
            body: Some(Body::new(Panics)),
            place: places.take(1),
            _reading: None,
            metrics: Arc::clone(&metrics),
        };
        let mut next = async || {
            std::future::poll_fn(|cx| hyper::body::Body::poll_frame(Pin::new(&mut answer), cx)).await
        };
        assert_eq!(next().await.unwrap().unwrap_err().code(), tonic::Code::Internal);
        assert!(next().await.is_none());
        assert_eq!((metrics.call_panics.get(), places.take(1).is_some()), (1, true));
    }
}
