// One call over gRPC-Web: a POST whose body and answer are frames of five bytes (flags, length) and a payload.

const TRAILERS = 0x80;
const TIMEOUT_MS = 10_000;

/** Calls `method` ("gimbal.v1.Accounts/SignIn") at `origin` with an encoded message; the encoded answer, or an Error whose `reason` is stable. */
export async function call(origin, method, message) {
  const body = new Uint8Array(5 + message.length);
  new DataView(body.buffer).setUint32(1, message.length);
  body.set(message, 5);
  const answer = await fetch(`${origin}/${method}`, {
    method: "POST",
    headers: { "content-type": "application/grpc-web+proto", "x-grpc-web": "1" },
    body,
    signal: AbortSignal.timeout(TIMEOUT_MS),
  });
  let status = answer.headers.get("grpc-status");
  let words = answer.headers.get("grpc-message");
  let reason = answer.headers.get("gimbal-reason");
  let found = null;
  const bytes = new Uint8Array(await answer.arrayBuffer());
  for (let at = 0; at + 5 <= bytes.length;) {
    const length = new DataView(bytes.buffer).getUint32(at + 1);
    const part = bytes.slice(at + 5, at + 5 + length);
    if (bytes[at] & TRAILERS) {
      const trailers = new Headers(new TextDecoder().decode(part).trim().split(/\r?\n/).map(pair));
      status = trailers.get("grpc-status") ?? status;
      words = trailers.get("grpc-message") ?? words;
      reason = trailers.get("gimbal-reason") ?? reason;
    } else {
      found = part;
    }
    at += 5 + length;
  }
  if (status !== "0" || !found) {
    const error = new Error(decodeURIComponent(words || "") || `the server answered ${answer.status}`);
    error.reason = reason || "";
    throw error;
  }
  return found;
}

function pair(line) {
  const colon = line.indexOf(":");
  return [line.slice(0, colon).trim(), line.slice(colon + 1).trim()];
}
