"""The file through which temporary log levels reach the processes of one host."""

from __future__ import annotations

import json
import math
import time

from django_otel.base.frozen import record
from django_otel.base.log_levels import MAX_LEVELS, LiveLevel
from django_otel.multiprocess.host_registry import HostRegistry, ReadingFile

FILE_NAME = "log-levels.json"
_FORMAT = 1


@record
class LevelReading:
    """Result of reading the rows. Units: `began_s` is `time.monotonic()` when that began."""

    levels: tuple[LiveLevel, ...]
    began_s: float

    def to_bytes(self) -> bytes:
        levels = [[live.logger, live.level, live.expires_at_s] for live in self.levels]
        return json.dumps({"format": _FORMAT, "began_s": self.began_s, "levels": levels}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> LevelReading:
        """Return the reading of `to_bytes`. Errors: `ValueError` for anything else."""
        content = json.loads(data)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError("Log levels of another format.")
        listed, began_s = content.get("levels"), _number(content.get("began_s"))
        if not isinstance(listed, list):
            raise ValueError("The log levels are not a list.")
        # Of before the machine was started last: older than anything of now.
        return cls(tuple(map(_level, listed[:MAX_LEVELS])), began_s if began_s <= time.monotonic() else 0.0)


def _level(item: object) -> LiveLevel:
    match item:
        case [str(logger), str(level), expires_at_s]:
            return LiveLevel(logger, level, _number(expires_at_s))
    raise ValueError("A log level is not a logger's name, a level and an end.")


def _number(value: object) -> float:
    """Errors: `ValueError` for anything but a finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError("A time of the log levels is not a number.")
    return float(value)


class LevelFile(ReadingFile[LevelReading]):
    """The file of one folder, as one process sees it."""

    def __init__(self, registry: HostRegistry) -> None:
        super().__init__(registry.folder / FILE_NAME, LevelReading.from_bytes)
        self.registry = registry

    def publish(self, reading: LevelReading) -> None:
        """Let the other processes have a reading, unless theirs is newer. Errors: `OSError`."""
        with self.registry.locked():
            before = self.read_contained()
            if before is None or (before.began_s <= reading.began_s and before.levels != reading.levels):
                self.registry.replace_file(FILE_NAME, reading.to_bytes())
