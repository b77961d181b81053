"""Encoding of contents in the file: JSON, compressed, never pickle."""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from typing import Any

#: `wbits` and `memLevel` by the length of the data; the last are zlib's own.
_WINDOWS = ((8 << 10, (13, 5)), (16 << 10, (14, 6)), (math.inf, (15, 8)))
_LENGTHS = struct.Struct("<HH")
_CHECK = struct.Struct(">I")


def pack(content: object) -> bytes:
    """Return compressed JSON. Values that JSON does not know (NaN, bytes, foreign objects) become text."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), default=str)
    return compress(text.encode("utf-8", "replace"))


def compress(data: bytes) -> bytes:
    """Return the data compressed, for `zlib.decompress`."""
    # Not with more memory than the data need: to clear a quarter of a megabyte takes longer than a small trace.
    bits, memory = next(sizes for most, sizes in _WINDOWS if len(data) <= most)
    compressor = zlib.compressobj(1, zlib.DEFLATED, bits, memory)
    return compressor.compress(data) + compressor.flush()


def wrap(data: bytes) -> bytes:
    """Return data of 65 535 bytes at most as they are, in the form of compressed ones, for `zlib.decompress`.

    Source: RFC 1950, 2.2 (header, checksum); RFC 1951, 3.2.4 (a block that is not compressed, the last one).
    """
    return b"".join(
        (b"\x78\x01\x01", _LENGTHS.pack(len(data), len(data) ^ 0xFFFF), data, _CHECK.pack(zlib.adler32(data)))
    )


def unpack(data: bytes) -> Any:
    """The reverse of `pack`. Errors: `ValueError`, `zlib.error` for other bytes."""
    return json.loads(zlib.decompress(data))


def pack_routes(routes: Mapping[str, object]) -> bytes:
    """Figures by route as lines, so that those of one are found without parsing all of them."""
    lines = [f"{_line_name(route)}{json.dumps(figures, separators=(',', ':'))}\n" for route, figures in routes.items()]
    return zlib.compress("".join(lines).encode(), 1)


def unpack_routes(data: bytes) -> dict[str, object]:
    """The reverse of `pack_routes`. Errors: `ValueError`, `zlib.error` for other bytes."""
    lines = (line.split("\t", 1) for line in zlib.decompress(data).decode().splitlines())
    return {json.loads(name): json.loads(figures) for name, figures in lines}


def unpack_route(data: bytes, route: str) -> dict[str, object]:
    """The figures of one route, empty when it is not there. Errors: as `unpack_routes`."""
    lines = "\n" + zlib.decompress(data).decode()
    mark = "\n" + _line_name(route)
    found = lines.find(mark)
    if found < 0:
        return {}
    begin = found + len(mark)
    figures: dict[str, object] = json.loads(lines[begin : lines.index("\n", begin)])
    return figures


def _line_name(route: str) -> str:
    # ASCII alone: neither a tab nor any line break that a route may contain stands in it as such.
    return f"{json.dumps(route)}\t"
