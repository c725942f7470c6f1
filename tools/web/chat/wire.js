// Protobuf as far as the chat needs it: the messages of codec/proto/wire.proto, and two of the gRPC API.
// A message is described by its fields: number -> [name, kind]. Ids are decimal strings, since they may pass 2^53.

const VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5;
const text = new TextEncoder(), untext = new TextDecoder();

export const COMMAND = {
  SIGN_IN: 1, HEARTBEAT: 2, MESSAGE: 4, SEND: 16, SYNC: 17, ACK: 18, JOIN: 19, LEAVE: 20, SIGNAL: 21, BEHIND: 23, CLOSE: 24,
};

export const Packet = { 1: ["requestId", "string"], 2: ["command", "number"], 3: ["content", "bytes"], 4: ["seq", "number"] };
export const Reply = { 1: ["code", "number"], 2: ["message", "string"], 3: ["data", "bytes"] };
export const SignIn = { 1: ["userId", "id"], 2: ["deviceId", "id"], 3: ["token", "string"], 16: ["cursor", "present"] };
export const SignInResult = { 1: ["latest", "number"], 2: ["idleMs", "number"] };
export const Message = {
  2: ["command", "number"], 3: ["content", "bytes"], 4: ["seq", "number"], 6: ["roomId", "id"],
  16: ["messageId", "id"], 17: ["fromUser", "id"], 19: ["createdAtMs", "number"], 20: ["roomEpoch", "number"], 21: ["roomSeq", "number"],
};
export const Send = { 1: ["clientMessageId", "number"], 2: ["toUser", "id"], 3: ["command", "number"], 4: ["content", "bytes"] };
export const SendResult = { 1: ["messageId", "id"], 2: ["seq", "number"], 3: ["createdAtMs", "number"], 4: ["duplicate", "number"] };
export const Sync = { 1: ["after", "number"], 2: ["limit", "number"] };
export const SyncPage = { 1: ["messages", [Message]], 2: ["latest", "number"], 3: ["hasMore", "number"], 4: ["trimmedTo", "number"] };
export const Rooms = { 1: ["roomIds", ["id"]] };
export const Signal = {
  1: ["toUser", "id"], 2: ["roomId", "id"], 3: ["command", "number"], 4: ["content", "bytes"], 5: ["fromUser", "id"],
};
export const Behind = { 1: ["latest", "number"] };
export const Close = { 1: ["code", "number"], 2: ["reason", "string"], 3: ["retryAfterMs", "number"] };

const Device = { 1: ["id", "id"], 2: ["kind", "number"], 3: ["brand", "string"], 4: ["model", "string"] };
export const AccountSignIn = { 1: ["phoneNumber", "string"], 2: ["code", "string"], 3: ["device", Device] };
export const Account = {
  1: ["isNew", "number"], 2: ["userId", "id"], 3: ["deviceId", "id"], 4: ["token", "string"], 5: ["expiresAtMs", "number"],
};

/** The bytes of `values` as message `type`; what is undefined, zero or empty is left out, as proto3 does. */
export function encode(type, values) {
  const out = [];
  for (const [number, [name, kind]] of Object.entries(type)) {
    const list = Array.isArray(kind) ? values[name] ?? [] : [values[name]];
    for (const value of list) field(out, Number(number), Array.isArray(kind) ? kind[0] : kind, value, Array.isArray(kind));
  }
  return Uint8Array.from(out);
}

function field(out, number, kind, value, always) {
  if (value === undefined) return;
  if (kind === "number" || kind === "id" || kind === "present") {
    const integer = BigInt(value);
    if (integer === 0n && kind !== "present" && !always) return;
    varint(out, BigInt(number << 3 | VARINT));
    varint(out, BigInt.asUintN(64, integer));
    return;
  }
  const bytes = kind === "string" ? text.encode(value) : kind === "bytes" ? value : encode(kind, value);
  if (bytes.length === 0 && typeof kind === "string" && !always) return;
  varint(out, BigInt(number << 3 | BYTES));
  varint(out, BigInt(bytes.length));
  for (const byte of bytes) out.push(byte);
}

function varint(out, value) {
  while (value > 0x7fn) {
    out.push(Number(value & 0x7fn) | 0x80);
    value >>= 7n;
  }
  out.push(Number(value));
}

/** The values in `bytes` as message `type`, with defaults for what is absent. Unknown fields are skipped; bad bytes throw. */
export function decode(type, bytes) {
  const values = {};
  for (const [name, kind] of Object.values(type)) values[name] = Array.isArray(kind) ? [] : blank(kind);
  const reader = { bytes, at: 0 };
  while (reader.at < bytes.length) {
    const tag = Number(take(reader));
    const [number, wire] = [tag >>> 3, tag & 7];
    const raw = payload(reader, wire);
    const known = type[number];
    if (!known) continue;
    const [name, kind] = known;
    if (Array.isArray(kind)) values[name].push(value(kind[0], wire, raw));
    else values[name] = value(kind, wire, raw);
  }
  return values;
}

function blank(kind) {
  return kind === "string" ? "" : kind === "bytes" ? new Uint8Array() : kind === "id" ? "0" : typeof kind === "string" ? 0 : {};
}

function value(kind, wire, raw) {
  const isInteger = kind === "number" || kind === "id" || kind === "present";
  if (isInteger !== (wire === VARINT)) throw new Error("a field of another type");
  if (kind === "id") return raw.toString();
  if (isInteger) return Number(BigInt.asIntN(64, raw));
  return kind === "string" ? untext.decode(raw) : kind === "bytes" ? raw : decode(kind, raw);
}

function payload(reader, wire) {
  if (wire === VARINT) return take(reader);
  const length = wire === BYTES ? Number(take(reader)) : wire === FIXED64 ? 8 : wire === FIXED32 ? 4 : NaN;
  const end = reader.at + length;
  if (!(end <= reader.bytes.length)) throw new Error("a message is cut");
  const part = reader.bytes.slice(reader.at, end);
  reader.at = end;
  return part;
}

function take(reader) {
  let result = 0n;
  for (let shift = 0n; shift < 70n; shift += 7n) {
    if (reader.at >= reader.bytes.length) throw new Error("a message is cut");
    const byte = reader.bytes[reader.at++];
    result |= BigInt(byte & 0x7f) << shift;
    if (byte < 0x80) return BigInt.asUintN(64, result);
  }
  throw new Error("a number is too long");
}

export const toText = (bytes) => untext.decode(bytes);
export const fromText = (string) => text.encode(string);
