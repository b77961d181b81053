"""Values of an attribute that all processes of a group count together, so that a limit applies to the group.

One file per attribute in the group's folder, a line of JSON per value. A process looks into it only for a value that
it does not know yet, and never again once the file is full.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from django_otel.base.private_files import open_file
from django_otel.multiprocess.lease import lock_exclusively_in_time

_MAX_BYTES = 4 << 20
#: How long another process may hold the file, in seconds: it writes a line.
LOCK_TIMEOUT_S = 0.05


def admit(folder: Path, name: str, wanted: Iterable[str], limit: int) -> frozenset[str]:
    """Add `wanted` values of the attribute `name` as far as there is room for; return all that are admitted.

    Errors: `OSError`, also when another process holds the file.
    """
    path = folder / f"values-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    descriptor = open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        lock_exclusively_in_time(descriptor, LOCK_TIMEOUT_S, path)
        data = os.pread(descriptor, _MAX_BYTES, 0)
        # A line that was not finished is a dead process's.
        whole = data[: data.rfind(b"\n") + 1]
        found = dict.fromkeys(_parse(whole))
        more = [value for value in dict.fromkeys(wanted) if value not in found][: max(0, limit - len(found))]
        if more:
            lines = b"".join(json.dumps(value).encode() + b"\n" for value in more)
            if os.pwrite(descriptor, lines, len(whole)) != len(lines):
                os.ftruncate(descriptor, len(whole))
                raise OSError(f"{path} cannot grow")
        return frozenset([*found, *more])
    finally:
        os.close(descriptor)


def _parse(data: bytes) -> list[str]:
    found = []
    for line in data.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, str):
            found.append(value)
    return found
