// One device's session over WebSocket, by the rules of docs/protocol.md: a cursor without holes, sends that are retried under
// the same id until they are answered, and a way back after every kind of close.

import {
  Behind, Close, COMMAND, decode, encode, Message, Packet, Reply, Rooms, Send, SendResult, SignIn, SignInResult, Signal, Sync,
  SyncPage,
} from "./wire.js";

const ANSWER_MS = 10_000;
const BACKOFF_MS = 1_000, BACKOFF_MAX_MS = 30_000;
const PAGE = 200;
const RETRY_CODES = new Set([2, 11003, 11004, 11009]);
const EMPTY = new Uint8Array();

/**
 * `store` keeps what must outlive the page: `cursor`, `outbox` (what has no answer yet) and `lastId`, and takes messages with
 * `take(message)`. `on` is told: `state(text, isOnline)`, `message(message)`, `room(message)`, `signal(signal)`, `sent(id, result)`,
 * `refused(id, words)`.
 */
export class Session {
  constructor(url, account, store, on) {
    Object.assign(this, { url, account, store, on });
    this.rooms = new Set();
    this.asked = new Map();
    this.requests = 0;
    this.backoffMs = BACKOFF_MS;
    this.connect();
  }

  end() {
    this.isOver = true;
    clearTimeout(this.timer);
    clearInterval(this.beat);
    this.socket?.close(1000);
  }

  connect() {
    this.on.state("connecting", false);
    this.isOnline = false;
    this.closeSaid = null;
    const socket = new WebSocket(this.url, "gimbal");
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      const { userId, deviceId, token } = this.account;
      this.ask(COMMAND.SIGN_IN, encode(SignIn, { userId, deviceId, token, cursor: this.store.cursor }), (reply) => this.signedIn(reply));
    };
    socket.onmessage = (event) => {
      try {
        this.take(decode(Packet, new Uint8Array(event.data)));
      } catch (error) {
        console.error("a packet that is none", error);
        socket.close(4000, "bad packet");
      }
    };
    socket.onclose = (event) => this.closed(event);
    this.socket = socket;
  }

  ask(command, content, answered) {
    const requestId = String(++this.requests);
    if (answered) this.asked.set(requestId, answered);
    this.put({ requestId, command, content });
  }

  put(packet) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(encode(Packet, packet));
  }

  signedIn(reply) {
    if (reply.code !== 0) return; // a close with its code follows
    const result = decode(SignInResult, reply.data);
    this.isOnline = true;
    this.backoffMs = BACKOFF_MS;
    // A server restored from an older copy knows fewer messages than we do.
    this.store.cursor = Math.min(this.store.cursor, result.latest);
    this.on.state("online", true);
    clearInterval(this.beat);
    this.beat = setInterval(() => this.put({ requestId: "beat", command: COMMAND.HEARTBEAT }), Math.min(result.idleMs / 3, 60_000));
    if (this.rooms.size) this.ask(COMMAND.JOIN, encode(Rooms, { roomIds: [...this.rooms] }), null);
    for (const waiting of this.store.outbox) this.try(waiting);
  }

  take(packet) {
    switch (packet.command) {
      case COMMAND.MESSAGE: return this.message(decode(Message, packet.content));
      case COMMAND.BEHIND: decode(Behind, packet.content); return this.sync();
      case COMMAND.CLOSE: this.closeSaid = decode(Close, packet.content); return;
      case COMMAND.HEARTBEAT: return;
    }
    const answered = this.asked.get(packet.requestId);
    if (answered) {
      this.asked.delete(packet.requestId);
      answered(decode(Reply, packet.content));
    } else if (packet.command === COMMAND.SIGNAL && !packet.requestId) {
      this.on.signal(decode(Signal, packet.content));
    }
  }

  message(message) {
    if (message.seq === 0) return this.on.room(message);
    if (message.seq <= this.store.cursor) return;
    if (message.seq > this.store.cursor + 1) return this.sync();
    this.store.take(message);
    this.store.cursor = message.seq;
    this.on.message(message);
  }

  sync() {
    this.ask(COMMAND.SYNC, encode(Sync, { after: this.store.cursor, limit: PAGE }), (reply) => {
      if (reply.code !== 0) {
        this.later(() => this.isOnline && this.sync());
        return;
      }
      const page = decode(SyncPage, reply.data);
      for (const message of page.messages) this.message(message);
      this.store.cursor = Math.max(this.store.cursor, Math.min(page.trimmedTo, page.latest));
      // Nothing more to ask: while we are behind the server says so again.
    });
  }

  /** Sends, now or when there is a connection; returns the client message id. */
  send(toUser, command, content) {
    const id = Math.max(Date.now(), this.store.lastId + 1);
    this.store.lastId = id;
    const waiting = { id, toUser, command, content: [...content] };
    this.store.outbox = [...this.store.outbox, waiting];
    this.try(waiting);
    return id;
  }

  try(waiting) {
    if (!this.isOnline) return;
    const { id, toUser, command, content } = waiting;
    const message = encode(Send, { clientMessageId: id, toUser, command, content: Uint8Array.from(content) });
    const socket = this.socket;
    const timer = setTimeout(() => socket.close(4000, "no answer"), ANSWER_MS);
    this.ask(COMMAND.SEND, message, (reply) => {
      clearTimeout(timer);
      if (RETRY_CODES.has(reply.code)) return this.later(() => this.try(waiting));
      this.store.outbox = this.store.outbox.filter((other) => other.id !== id);
      if (reply.code === 0) this.on.sent(id, decode(SendResult, reply.data));
      else this.on.refused(id, `${reply.message} (${reply.code})`);
    });
  }

  join(roomId) {
    this.rooms.add(roomId);
    if (this.isOnline) this.ask(COMMAND.JOIN, encode(Rooms, { roomIds: [roomId] }), null);
  }

  leave(roomId) {
    this.rooms.delete(roomId);
    if (this.isOnline) this.ask(COMMAND.LEAVE, encode(Rooms, { roomIds: [roomId] }), null);
  }

  /** To a user or a room, for what is worth nothing later. */
  signal(to, command, content = EMPTY) {
    if (this.isOnline) this.ask(COMMAND.SIGNAL, encode(Signal, { ...to, command, content }), null);
  }

  later(what) {
    setTimeout(() => !this.isOver && what(), this.backoff());
  }

  backoff() {
    const wait = this.backoffMs * (1 + Math.random() / 2);
    this.backoffMs = Math.min(this.backoffMs * 2, BACKOFF_MAX_MS);
    return wait;
  }

  closed(event) {
    this.isOnline = false;
    this.asked.clear();
    clearInterval(this.beat);
    if (this.isOver) return;
    const code = this.closeSaid?.code || event.code;
    const words = this.closeSaid?.reason || event.reason || "connection lost";
    if (code >= 4200 && code < 4400) {
      this.isOver = true;
      // A takeover by this device, or its sign-in elsewhere, which gave it another token.
      this.on.state(code === 4201 || code === 4202 ? "signed in elsewhere" : `ended: ${words} (${code})`, false);
      return;
    }
    const told = code >= 4100 && code < 4200 ? this.closeSaid?.retryAfterMs : 0;
    const wait = told || this.backoff();
    this.on.state(`${words}; back in ${Math.ceil(wait / 1000)} s`, false);
    this.timer = setTimeout(() => this.connect(), wait);
  }
}
