// The page: a door (sign in over gRPC-Web), a list of talks, and one of them open. What a window knows it keeps in the browser's
// local storage, by user and device; the server keeps the mailbox.

import { call } from "./rpc.js";
import { Session } from "./session.js";
import { Account, AccountSignIn, decode, encode, fromText, toText } from "./wire.js";

const WEB = 5; // DEVICE_KIND_WEB
const TEXT = 1, TYPING = 2; // our type codes of messages and signals
const TYPING_MS = 3_000;
const KEPT_MAX = 500;
const $ = (id) => document.getElementById(id);

const ports = await (await fetch("chat.json")).json();
const origin = (port) => `${location.protocol}//${location.hostname}:${port}`;
const socketUrl = `${location.protocol === "https:" ? "wss" : "ws"}://${location.hostname}:${ports.websocket}${ports.path}`;

let house = null;

class Store {
  constructor(account) {
    this.key = `gimbal ${account.userId} ${account.deviceId}`;
    const kept = JSON.parse(localStorage.getItem(this.key) || "{}");
    this.kept = { cursor: 0, lastId: 0, outbox: [], talks: {}, ...kept };
  }

  save() {
    localStorage.setItem(this.key, JSON.stringify(this.kept));
  }

  take(message) {
    if (message.command !== TEXT) return;
    const { seq, createdAtMs, fromUser } = message;
    this.add(`u${fromUser}`, { key: `s${seq}`, from: fromUser, text: toText(message.content), at: createdAtMs });
  }

  add(talk, entry) {
    const list = (this.kept.talks[talk] ??= []);
    list.push(entry);
    if (list.length > KEPT_MAX) list.splice(0, list.length - KEPT_MAX);
    this.save();
  }

  change(talk, key, changes) {
    const entry = this.kept.talks[talk]?.find((other) => other.key === key);
    if (entry) Object.assign(entry, changes);
    this.save();
  }
}
for (const name of ["cursor", "lastId", "outbox"]) {
  Object.defineProperty(Store.prototype, name, {
    get() { return this.kept[name]; },
    set(value) { this.kept[name] = value; this.save(); },
  });
}

class House {
  constructor(account) {
    this.account = account;
    this.store = new Store(account);
    this.unread = new Map();
    this.typing = new Map();
    this.talk = null;
    this.rooms = new Map();
    $("door").hidden = true;
    $("house").hidden = false;
    $("me").textContent = `user ${account.userId}`;
    document.title = `gimbal chat: ${account.userId}`;
    this.session = new Session(socketUrl, account, this.store, {
      state: (words, isOnline) => {
        $("state").textContent = words;
        $("state").classList.toggle("online", isOnline);
      },
      message: (message) => this.came(`u${message.fromUser}`, message.fromUser),
      room: (message) => this.roomCame(message),
      signal: (signal) => this.typingCame(signal),
      sent: (id, result) => this.answered(id, { state: "stored", seq: result.seq, at: result.createdAtMs }),
      refused: (id, words) => this.answered(id, { state: "refused", words }),
    });
    this.open(null);
  }

  end() {
    this.session.end();
    $("house").hidden = true;
    $("door").hidden = false;
    document.title = "gimbal chat";
  }

  came(talk, fromUser) {
    this.typing.delete(talk);
    if (this.talk !== talk && fromUser !== this.account.userId) this.unread.set(talk, (this.unread.get(talk) || 0) + 1);
    this.draw();
  }

  roomCame(message) {
    const talk = message.roomId === "0" ? "all" : `r${message.roomId}`;
    const list = this.rooms.get(talk) ?? [];
    this.rooms.set(talk, list);
    list.push({ from: message.fromUser, text: toText(message.content), at: message.createdAtMs });
    if (list.length > KEPT_MAX) list.shift();
    this.came(talk, message.fromUser);
  }

  typingCame(signal) {
    if (signal.command === TEXT && signal.roomId !== "0") {
      return this.roomCame({ roomId: signal.roomId, fromUser: signal.fromUser, content: signal.content, createdAtMs: Date.now() });
    }
    if (signal.command !== TYPING) return;
    const talk = signal.roomId !== "0" ? `r${signal.roomId}` : `u${signal.fromUser}`;
    clearTimeout(this.typing.get(talk)?.timer);
    const timer = setTimeout(() => { this.typing.delete(talk); this.draw(); }, TYPING_MS);
    this.typing.set(talk, { from: signal.fromUser, timer });
    this.draw();
  }

  answered(id, changes) {
    for (const talk of Object.keys(this.store.kept.talks)) this.store.change(talk, `c${id}`, changes);
    this.draw();
  }

  send(text) {
    const content = fromText(text);
    if (this.talk.startsWith("r")) {
      // Between members of a room, as long as they are there: never stored, and not echoed to its sender.
      const room = this.talk.slice(1);
      this.session.signal({ roomId: room }, TEXT, content);
      this.roomCame({ roomId: room, fromUser: this.account.userId, content, createdAtMs: Date.now() });
      return;
    }
    const to = this.talk.slice(1);
    const id = this.session.send(to, TEXT, content);
    // To ourselves it comes back with its seq.
    if (to !== this.account.userId) {
      this.store.add(this.talk, { key: `c${id}`, from: this.account.userId, text, at: Date.now(), state: "sending" });
    }
    this.draw();
  }

  isTyping() {
    const now = Date.now();
    if (!this.talk || now - (this.typedAt || 0) < TYPING_MS / 2) return;
    this.typedAt = now;
    const number = this.talk.slice(1);
    this.session.signal(this.talk.startsWith("r") ? { roomId: number } : { toUser: number }, TYPING);
  }

  enter(room) {
    this.session.join(room);
    if (!this.rooms.has(`r${room}`)) this.rooms.set(`r${room}`, []);
    this.open(`r${room}`);
  }

  leave() {
    this.session.leave(this.talk.slice(1));
    this.rooms.delete(this.talk);
    this.open(null);
  }

  open(talk) {
    this.talk = talk;
    this.unread.delete(talk);
    $("talk").hidden = talk === null;
    $("nobody").hidden = talk !== null;
    $("leave").hidden = !talk?.startsWith("r");
    this.draw();
    if (talk) $("text").focus();
  }

  entries(talk) {
    return this.rooms.get(talk) ?? this.store.kept.talks[talk] ?? [];
  }

  draw() {
    const talks = new Set([...Object.keys(this.store.kept.talks), ...this.rooms.keys()]);
    if (this.talk) talks.add(this.talk);
    const lastAt = (talk) => this.entries(talk).at(-1)?.at ?? Infinity;
    const sorted = [...talks].sort((a, b) => lastAt(b) - lastAt(a));
    $("talks").replaceChildren(...sorted.map((talk) => this.row(talk)));
    if (!this.talk) return;
    $("title").textContent = name(this.talk);
    const who = this.typing.get(this.talk);
    $("typing").textContent = who ? `${who.from} is typing…` : "";
    const list = $("messages");
    const isAtEnd = list.scrollTop + list.clientHeight >= list.scrollHeight - 40;
    list.replaceChildren(...this.entries(this.talk).map((entry) => this.line(entry)));
    if (isAtEnd) list.scrollTop = list.scrollHeight;
  }

  row(talk) {
    const button = element("button", talk === this.talk ? "here" : "");
    button.type = "button";
    button.append(element("span", "", name(talk)));
    if (this.unread.has(talk)) button.append(element("b", "", this.unread.get(talk)));
    button.append(element("small", "", this.entries(talk).at(-1)?.text ?? ""));
    button.onclick = () => this.open(talk);
    const item = element("li");
    item.append(button);
    return item;
  }

  line(entry) {
    const isMine = entry.from === this.account.userId;
    const item = element("li", `${isMine ? "mine" : ""} ${entry.state ?? ""}`, entry.text);
    const time = new Date(entry.at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    const state = { sending: "sending…", stored: `stored as ${entry.seq}`, refused: `refused: ${entry.words}` }[entry.state];
    const sender = isMine || this.talk.startsWith("u") ? "" : `${entry.from} · `;
    item.append(element("small", "", sender + time + (state ? ` · ${state}` : "")));
    return item;
  }
}

function name(talk) {
  return talk === "all" ? "To everybody" : talk.startsWith("r") ? `Room ${talk.slice(1)}` : talk === "u0" ? "Backend" : `User ${talk.slice(1)}`;
}

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  made.className = className.trim();
  made.textContent = text;
  return made;
}

/** Each number keeps its device, so that signing in again does not make another. */
async function signIn(phoneNumber, code) {
  const key = `gimbal device ${phoneNumber}`;
  const device = { id: localStorage.getItem(key) ?? "0", kind: WEB, brand: "browser", model: "gimbal chat" };
  const answer = await call(origin(ports.grpc), "gimbal.v1.Accounts/SignIn", encode(AccountSignIn, { phoneNumber, code, device }));
  const account = decode(Account, answer);
  localStorage.setItem(key, account.deviceId);
  // By window: two windows may be two people.
  sessionStorage.setItem("account", JSON.stringify(account));
  return account;
}

$("sign-in").onsubmit = async (event) => {
  event.preventDefault();
  $("door-error").textContent = "";
  try {
    house = new House(await signIn($("phone").value, $("code").value));
  } catch (error) {
    $("door-error").textContent = error.message;
  }
};
$("sign-out").onclick = () => {
  sessionStorage.removeItem("account");
  house.end();
};
$("copy").onclick = () => navigator.clipboard?.writeText(house.account.userId);
$("open").onsubmit = (event) => {
  event.preventDefault();
  if ($("open-user").value) house.open(`u${BigInt($("open-user").value)}`);
  event.target.reset();
};
$("enter").onsubmit = (event) => {
  event.preventDefault();
  if ($("enter-room").value) house.enter(String(BigInt($("enter-room").value)));
  event.target.reset();
};
$("write").onsubmit = (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (text) house.send(text);
  event.target.reset();
};
$("text").oninput = () => house.isTyping();
$("leave").onclick = () => house.leave();

// Until here a click would have been a form's own submission, and a new page.
document.querySelector("#sign-in button").disabled = false;
const kept = sessionStorage.getItem("account");
if (kept) house = new House(JSON.parse(kept));
