"""Hostile input for tests: how much of it, JSON that is damaged in its structure, and bytes.

The tests are short, and the same every time, unless FUZZ says how many examples each is to look at.
"""

import copy
import json
import os
import struct

import google_crc32c
import hypothesis
from hypothesis import HealthCheck
from hypothesis import strategies as st

__all__ = ["REMOVED", "check_message", "damaged_bytes", "damaged_json", "framed", "settings"]

REMOVED = object()


def settings(*, short: int) -> hypothesis.settings:
    """Return settings for `short` examples, or as many as FUZZ asks for."""
    long = int(os.environ.get("FUZZ", "0"))
    return hypothesis.settings(
        max_examples=long or short,
        derandomize=not long,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def check_message(error: Exception) -> None:
    """Check that the message of our error is readable, bounded and free of control characters."""
    text = str(error)
    assert text.strip()
    assert len(text) < 20_000
    assert all(letter.isprintable() or letter == "\n" for letter in text)


def values() -> st.SearchStrategy:
    """Draw values of JSON, including some that JSON should not have."""
    scalars = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6),
        st.sampled_from([10**30, -1, 0, 2**63, 2**64, 1e308, "../../etc/passwd", "/etc/passwd",
                         "\0", "\x1b[2J", "\ud800", "a\nb", "..", "", "items", "a.b"]),
    )  # fmt: skip
    return st.recursive(
        scalars,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
        ),
        max_leaves=4,
    )


def _places(value, path=()):
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _places(inner, (*path, key))
    elif isinstance(value, list):
        for key, inner in list(enumerate(value))[:4]:
            yield from _places(inner, (*path, key))


@st.composite
def damaged_json(draw, value) -> object:
    """A valid value of JSON with some of its parts replaced, removed, doubled or exchanged."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        place = draw(st.sampled_from(places))
        if not place:
            if draw(st.integers(0, 9)) == 0:
                return draw(values())
            continue
        *above, last = place
        holder = value
        for key in above:
            holder = holder[key]
        match draw(st.sampled_from(["replace", "remove", "double", "exchange"])):
            case "replace":
                holder[last] = draw(values())
            case "remove":
                del holder[last]
            case "double" if isinstance(holder, list):
                holder.insert(last, copy.deepcopy(holder[last]))
            case "double":
                holder[draw(st.text(max_size=4))] = copy.deepcopy(holder[last])
            case "exchange":
                other = value
                for key in draw(st.sampled_from(places)):
                    other = other[key]
                holder[last] = copy.deepcopy(other)
    return value


@st.composite
def json_bytes(draw, value) -> bytes:
    """A file of such JSON, or one that is damaged as bytes are, or written by a joker."""
    kind = draw(st.integers(0, 9))
    if kind < 6:
        return json.dumps(draw(damaged_json(value))).encode()
    if kind < 9:
        return draw(damaged_bytes(json.dumps(value).encode()))
    return draw(
        st.sampled_from([
            b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"1e400", b"NaN", b"-Infinity",
            b"\xff\xfe[\0]\0", b"\xef\xbb\xbf{}", b"\0", b"", b"{} {}", b'"\\ud800"',
            b"[" * 900 + b"]" * 900,
        ])
    )  # fmt: skip


@st.composite
def damaged_bytes(draw, content: bytes) -> bytes:
    """Bytes that are cut, flipped, added, doubled or exchanged at some places."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(content)))
        end = min(begin + draw(st.integers(0, 64)), len(content))
        match draw(st.sampled_from(["cut", "flip", "insert", "double", "splice", "remove"])):
            case "cut":
                del content[begin:]
            case "flip" if begin < len(content):
                content[begin] ^= draw(st.integers(1, 255))
            case "insert":
                content[begin:begin] = draw(st.binary(max_size=16))
            case "double":
                content[end:end] = content[begin:end]
            case "splice":
                content[begin:end] = draw(st.binary(min_size=end - begin, max_size=end - begin))
            case "remove":
                del content[begin:end]
    return bytes(content)


def checksum(data: bytes) -> bytes:
    """Return the checksum of TFRecords: CRC-32C, rotated, plus a constant."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def framed(record: bytes, length: int | None = None) -> bytes:
    """Return a TFRecord, which may claim to be longer than it is."""
    head = struct.pack("<Q", len(record) if length is None else length)
    return head + checksum(head) + record + checksum(record)
