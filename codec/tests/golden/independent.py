"""Checks the hex examples of Markdown files against Google's protobuf library; shares no code with the crate.

Needs grpcio-tools (it brings protoc and protobuf). From the repository's root:

    python codec/tests/golden/independent.py docs/protocol.md codec/tests/golden/edges.md

With --write the bytes of every unmarked example are made anew from its text.
"""

import pathlib
import re
import sys
import tempfile

from google.protobuf import text_format
from grpc_tools import protoc

WIRE = pathlib.Path(__file__).parents[2] / "proto" / "wire.proto"
BLOCK = re.compile(r"(?<=\n)```hex (\S+)([^\n]*)\n(.*?\n)```", re.S)


def compile_wire():
    """The Python module generated from wire.proto."""
    out = tempfile.mkdtemp()
    assert protoc.main(["protoc", f"-I{WIRE.parent}", f"--python_out={out}", str(WIRE)]) == 0
    sys.path.insert(0, out)
    import wire_pb2

    return wire_pb2


def varint(value):
    """Unsigned LEB128."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out + bytes([value]))


def split(block):
    """The described messages, outermost first, and the frame."""
    words = [line for line in block.splitlines() if re.match(r"packet\b|[A-Z]", line)]
    digits = [line for line in block.splitlines() if line not in words]
    messages = [tuple((line + " ").split(" ", 1)) for line in words]
    return messages, bytes.fromhex("".join(digits))


def parse(wire, kind, text):
    message = getattr(wire, "Packet" if kind == "packet" else kind)()
    return text_format.Parse(text, message)


def encode(wire, messages):
    """The frame that the text describes."""
    inner = b""
    for kind, text in reversed(messages):
        message = parse(wire, kind, text)
        if inner:
            setattr(message, "content" if kind == "packet" else "data", inner)
        inner = message.SerializeToString(deterministic=True)
    return varint(len(inner)) + inner


def assert_decodes(wire, name, messages, frame):
    """For bytes that no encoder writes: what they decode to is what the text describes."""
    inner = frame[len(varint(len(frame) - 1)):]
    for kind, text in messages:
        decoded = type(parse(wire, kind, "")).FromString(inner)
        decoded.DiscardUnknownFields()
        expected = parse(wire, kind, text)
        if kind in ("packet", "Reply") and len(messages) > 1:
            inner = decoded.content if kind == "packet" else decoded.data
            decoded.ClearField("content" if kind == "packet" else "data")
        assert decoded == expected, f"{name}: {decoded} is not {expected}"


def main():
    wire = compile_wire()
    write = "--write" in sys.argv
    count = 0
    for path in map(pathlib.Path, (arg for arg in sys.argv[1:] if arg != "--write")):

        def visit(match):
            nonlocal count
            count += 1
            name, marks, block = match.groups()
            messages, frame = split(block)
            if "refused" in marks:
                return match.group()
            if "accepted" in marks:
                assert_decodes(wire, name, messages, frame)
                return match.group()
            expected = encode(wire, messages)
            assert write or frame == expected, f"{name}: {frame.hex(' ')} is not {expected.hex(' ')}"
            lines = [" ".join(f"{byte:02x}" for byte in expected[i:i + 32]) for i in range(0, len(expected), 32)]
            texts = [f"{kind} {text}".rstrip() for kind, text in messages]
            return "```hex " + name + marks + "\n" + "\n".join(texts + lines) + "\n```"

        text = path.read_text()
        changed = BLOCK.sub(visit, text)
        if write and changed != text:
            path.write_text(changed)
    print(f"{count} examples agree")


if __name__ == "__main__":
    main()
