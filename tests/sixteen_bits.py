"""PNG and TIFF files of 16 bits a channel, by hand: Pillow writes none in colour."""

import struct
import zlib

import numpy as np


def png(samples, *, chunks=()):
    """A PNG of an array (height, width, 1 to 4), with further chunks by their names."""
    height, width, channels = samples.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)

    def chunk(kind, data):
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff(samples, *, order="<", compressed=False, planes=False, tags=()):
    """A TIFF of an array (height, width, channels), of unsigned whole numbers of 8 or 16 bits.

    Args:
      samples: the array.
      order: of bytes, as NumPy and `struct` write it.
      compressed: whether with DEFLATE.
      planes: whether each channel is in a part of its own.
      tags: further ones, or others than usual, with a value or values of 16 bits.
    """
    height, width, channels = samples.shape
    parts = np.split(samples, channels, axis=-1) if planes else [samples]
    data = [part.astype(part.dtype.newbyteorder(order)).tobytes() for part in parts]
    data = [zlib.compress(part) if compressed else part for part in data]
    places = [8 + sum(map(len, data[:number])) for number in range(len(data))]
    values = {
        256: [width], 257: [height], 258: [samples.itemsize * 8] * channels,
        259: [8 if compressed else 1], 262: [2 if channels > 2 else 1], 273: places,
        277: [channels], 278: [height], 279: [len(part) for part in data],
        284: [2 if planes else 1],
    }  # fmt: skip
    values |= {tag: np.atleast_1d(value) for tag, value in dict(tags).items()}
    start = 8 + sum(map(len, data))
    after = start + 2 + 12 * len(values) + 4
    entries, longer = b"", b""
    for tag, numbers in sorted(values.items()):
        packed = struct.pack(f"{order}{len(numbers)}H", *map(int, numbers))
        if len(packed) > 4:
            packed, longer = struct.pack(f"{order}I", after + len(longer)), longer + packed
        entries += struct.pack(f"{order}HHI", tag, 3, len(numbers)) + packed.ljust(4, b"\0")
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, start)
    directory = struct.pack(f"{order}H", len(values)) + entries + bytes(4)
    return head + b"".join(data) + directory + longer
