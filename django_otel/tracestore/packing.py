"""How contents stand in the file: JSON, compressed, never pickle."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any


def pack(content: object) -> bytes:
    """JSON, compressed. What JSON does not know (NaN, bytes, foreign objects) becomes text."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), default=str)
    return zlib.compress(text.encode("utf-8", "replace"), 1)


def unpack(data: bytes) -> Any:
    """The reverse of `pack`. Errors: `ValueError`, `zlib.error` for what is not ours."""
    return json.loads(zlib.decompress(data))


def pack_routes(routes: Mapping[str, object]) -> bytes:
    """Figures by route as lines, so that those of one are found without parsing all of them."""
    lines = [f"{_line_name(route)}{json.dumps(figures, separators=(',', ':'))}\n" for route, figures in routes.items()]
    return zlib.compress("".join(lines).encode(), 1)


def unpack_routes(data: bytes) -> dict[str, object]:
    """The reverse of `pack_routes`. Errors: `ValueError`, `zlib.error` for what is not ours."""
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
