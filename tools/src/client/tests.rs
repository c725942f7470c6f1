//! The client against a scripted server: what is written here is what a real server may say.

use std::time::Duration;

use gimbal_codec::{
    ClientMessageId, CloseReason, Command, Decoder, DeviceId, MessageId, Packet, RoomId, Seq, UserId,
    body::{self, Behind, Close, Page, Reply, ReplyWith, SendResult, SignInResult},
    code, frame,
    limits::FRAME_BYTES_MAX,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::{Client, ClientError, Event, Item, Mailbox, Options};

/// A packet, owned.
struct Got {
    request_id: String,
    command: i32,
    content: Vec<u8>,
}

/// The server's end of one connection.
struct Script {
    stream: TcpStream,
    decoder: Decoder,
    got: std::collections::VecDeque<Got>,
}

impl Script {
    async fn next(&mut self) -> Got {
        while self.got.is_empty() {
            let mut chunk = [0; 4096];
            let bytes = self.stream.read(&mut chunk).await.unwrap();
            assert!(bytes > 0, "the client left");
            let mut feed = self.decoder.feed(&chunk[..bytes]);
            while let Some(body) = feed.next_frame(FRAME_BYTES_MAX).unwrap() {
                let packet = Packet::decode(body).unwrap();
                self.got.push_back(Got {
                    request_id: packet.request_id.to_owned(),
                    command: packet.command,
                    content: packet.content.to_vec(),
                });
            }
        }
        self.got.pop_front().expect("checked above")
    }

    async fn expect(&mut self, command: Command) -> Got {
        let got = self.next().await;
        assert_eq!(got.command, command.number());
        got
    }

    async fn say<B: gimbal_codec::Body + ?Sized>(&mut self, command: Command, request_id: &str, content: &B) {
        self.stream.write_all(&frame(command, request_id, 0, content)).await.unwrap();
    }

    async fn sign_in(&mut self, latest: u64) -> Option<Seq> {
        let got = self.expect(Command::SignIn).await;
        let cursor = body::SignIn::decode(&got.content).unwrap().cursor;
        let result = SignInResult { latest: Seq::new(latest), idle_ms: 600_000, ..SignInResult::default() };
        self.say(Command::SignIn, &got.request_id, &ReplyWith(&result)).await;
        cursor
    }

    async fn message(&mut self, seq: u64) {
        self.say(Command::Message, "", &message(seq)).await;
    }

    /// Answers a sync with messages from after what was asked up to `end`.
    async fn page(&mut self, end: u64, latest: u64) {
        let got = self.expect(Command::Sync).await;
        let after = body::Sync::decode(&got.content).unwrap().after.get();
        let messages: Vec<body::Message<'_>> = (after + 1..=end).map(message).collect();
        let page = Page {
            messages: messages.iter().copied(),
            latest: Seq::new(latest),
            has_more: end < latest,
            trimmed_to: Seq::new(0),
        };
        self.say(Command::Sync, &got.request_id, &ReplyWith(&page)).await;
    }

    async fn behind(&mut self, latest: u64) {
        self.say(Command::Behind, "", &Behind { latest: Seq::new(latest) }).await;
    }
}

fn message(seq: u64) -> body::Message<'static> {
    body::Message { seq: Seq::new(seq), id: MessageId::new(seq), content: b"text", ..Default::default() }
}

/// Listens and runs `script` on the first connection.
async fn server<F>(script: impl FnOnce(Script) -> F + Send + 'static) -> (Options, JoinHandle<()>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        script(Script { stream, decoder: Decoder::new(), got: Default::default() }).await;
    });
    (Options::new(address, UserId::new(1), DeviceId::new(2), "token"), task)
}

async fn seqs(mailbox: &mut Mailbox, count: usize) -> Vec<u64> {
    let mut seqs = Vec::new();
    while seqs.len() < count {
        match mailbox.next().await.unwrap() {
            Item::Message(message) => seqs.push(message.seq.get()),
            other => panic!("unexpected {other:?}"),
        }
    }
    seqs
}

#[tokio::test]
async fn sends_are_pipelined_and_answers_find_their_sender_in_any_order() {
    let (options, server) = server(async |mut script: Script| {
        script.sign_in(0).await;
        let first = script.expect(Command::Send).await;
        let second = script.expect(Command::Send).await;
        for (got, seq) in [(second, 2), (first, 1)] {
            let result = SendResult { seq: Seq::new(seq), ..SendResult::default() };
            script.say(Command::Send, &got.request_id, &ReplyWith(&result)).await;
        }
    })
    .await;
    let (client, _events, _) = Client::connect(options).await.unwrap();
    let first = client.begin_send(UserId::new(9), ClientMessageId::new(1), 0, b"a").await.unwrap();
    let second = client.begin_send(UserId::new(9), ClientMessageId::new(2), 0, b"b").await.unwrap();
    assert_eq!(first.wait().await.unwrap().seq, Seq::new(1));
    assert_eq!(second.wait().await.unwrap().seq, Seq::new(2));
    server.await.unwrap();
}

#[tokio::test]
async fn a_refused_sign_in_is_told_with_its_code() {
    let (options, server) = server(async |mut script: Script| {
        let got = script.expect(Command::SignIn).await;
        script.say(Command::SignIn, &got.request_id, &Reply::new(code::NOT_SIGNED_IN, "no")).await;
        script.say(Command::Close, "", &Close::new(CloseReason::SignInFailed, 0)).await;
    })
    .await;
    let refused = Client::connect(options).await.err();
    assert_eq!(refused, Some(ClientError::Refused { code: code::NOT_SIGNED_IN, message: "no".into() }));
    server.await.unwrap();
}

#[tokio::test]
async fn a_close_ends_open_requests_and_events_with_its_reason() {
    let (options, server) = server(async |mut script: Script| {
        script.sign_in(0).await;
        script.expect(Command::Join).await;
        script.say(Command::Close, "", &Close::new(CloseReason::Draining, 1500)).await;
    })
    .await;
    let (client, mut events, _) = Client::connect(options).await.unwrap();
    let error = client.join(&[RoomId::new(1)]).await.unwrap_err();
    let ClientError::Closed(closed) = error else { panic!("{error}") };
    assert_eq!(
        (closed.close_reason(), closed.retry_after),
        (Some(CloseReason::Draining), Duration::from_millis(1500))
    );
    assert_eq!(events.next().await, Some(Event::Closed(closed)));
    assert_eq!(events.next().await, None);
    assert!(client.heartbeat().await.is_err());
    server.await.unwrap();
}

#[tokio::test]
async fn bytes_that_are_no_frame_end_the_connection() {
    let (options, server) = server(async |mut script: Script| {
        script.sign_in(0).await;
        script.stream.write_all(&[0xff; 16]).await.unwrap();
        let _ = script.stream.read(&mut [0; 16]).await;
    })
    .await;
    let (client, mut events, _) = Client::connect(options).await.unwrap();
    assert!(matches!(events.next().await, Some(Event::Closed(closed)) if closed.code.is_none()));
    drop(client);
    server.await.unwrap();
}

#[tokio::test]
async fn a_mailbox_that_is_behind_asks_for_pages_and_then_takes_live_messages() {
    let (mut options, server) = server(async |mut script: Script| {
        assert_eq!(script.sign_in(5).await, Some(Seq::new(1)));
        script.behind(5).await;
        script.page(3, 5).await;
        script.behind(5).await;
        script.page(5, 5).await;
        script.message(6).await;
        let _ = script.stream.read(&mut [0; 16]).await;
    })
    .await;
    options.cursor = Some(Seq::new(1));
    let (mut mailbox, _) = Mailbox::connect(options).await.unwrap();
    assert_eq!(seqs(&mut mailbox, 5).await, [2, 3, 4, 5, 6]);
    assert_eq!(mailbox.cursor(), Seq::new(6));
    drop(mailbox);
    server.await.unwrap();
}

#[tokio::test]
async fn a_page_that_the_server_dropped_is_asked_for_again() {
    let (options, server) = server(async |mut script: Script| {
        script.sign_in(2).await;
        script.behind(2).await;
        script.expect(Command::Sync).await; // and never answered
        script.behind(2).await;
        script.page(2, 2).await;
        let _ = script.stream.read(&mut [0; 16]).await;
    })
    .await;
    let (mut mailbox, _) = Mailbox::connect(options).await.unwrap();
    assert_eq!(seqs(&mut mailbox, 2).await, [1, 2]);
    drop(mailbox);
    server.await.unwrap();
}

#[tokio::test]
async fn what_came_live_before_its_page_is_given_once() {
    let (options, server) = server(async |mut script: Script| {
        script.sign_in(0).await;
        script.message(1).await;
        script.behind(3).await;
        script.page(3, 3).await;
        script.message(3).await;
        script.message(4).await;
        let _ = script.stream.read(&mut [0; 16]).await;
    })
    .await;
    let (mut mailbox, _) = Mailbox::connect(options).await.unwrap();
    assert_eq!(seqs(&mut mailbox, 4).await, [1, 2, 3, 4]);
    drop(mailbox);
    server.await.unwrap();
}

#[tokio::test]
async fn a_gap_is_an_error_of_the_server() {
    let (options, server) = server(async |mut script: Script| {
        script.sign_in(0).await;
        script.message(2).await;
        let _ = script.stream.read(&mut [0; 16]).await;
    })
    .await;
    let (mut mailbox, _) = Mailbox::connect(options).await.unwrap();
    assert_eq!(mailbox.next().await, Err(ClientError::Gap { expected: Seq::new(1), got: Seq::new(2) }));
    drop(mailbox);
    server.await.unwrap();
}

#[tokio::test]
async fn a_server_that_has_less_than_the_cursor_sets_it_back() {
    let (mut options, server) = server(async |mut script: Script| {
        script.sign_in(3).await;
        script.message(4).await;
        let _ = script.stream.read(&mut [0; 16]).await;
    })
    .await;
    options.cursor = Some(Seq::new(50));
    let (mut mailbox, _) = Mailbox::connect(options).await.unwrap();
    assert_eq!(seqs(&mut mailbox, 1).await, [4]);
    drop(mailbox);
    server.await.unwrap();
}
