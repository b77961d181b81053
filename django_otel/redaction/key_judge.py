"""The verdict on a key, with the keys that the project added."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from urllib.parse import unquote

from django_otel.redaction import personal as personal_data
from django_otel.redaction.keys import PLAIN, SAFE_KEYS, SENSITIVE, judge_words, split_key

#: The end of a longer key is judged, and the verdict is not remembered.
MAX_KEY_LENGTH = 256
_CACHE_ENTRIES = 4096


class KeyJudge:
    """Judges keys by `keys.judge_words`, by `extra` words and globs, and as personal data when `personal` is set.

    Thread-safe; at most 4 096 verdicts are remembered.
    """

    __slots__ = ("_extra_globs", "_extra_words", "_judged", "_personal")

    def __init__(self, extra: Sequence[str] = (), *, personal: bool = False) -> None:
        self._personal = personal
        globs = [pattern for pattern in extra if any(character in pattern for character in "*?[")]
        self._extra_globs = tuple(re.compile(fnmatch.translate(pattern.lower())) for pattern in globs)
        self._extra_words = tuple(words for pattern in extra if pattern not in globs and (words := split_key(pattern)))
        self._judged: dict[tuple[str, bool, bool], int] = {}

    def judge(self, key: str, loose: bool = True, query: bool = False) -> int:
        """Return PLAIN, LABEL or SENSITIVE of `keys`; `loose` and `query` as in `keys.judge_words`."""
        entry = (key, loose, query)
        verdict = self._judged.get(entry)
        if verdict is None:
            verdict = self._judge_uncached(key[-MAX_KEY_LENGTH:], loose, query)
            if len(self._judged) >= _CACHE_ENTRIES:
                self._judged.clear()
            if len(key) <= MAX_KEY_LENGTH:
                self._judged[entry] = verdict
        return verdict

    def _judge_uncached(self, key: str, loose: bool, query: bool) -> int:
        if "%" in key:
            key = unquote(key)
        lowered = key.lower()
        for glob in self._extra_globs:
            if glob.match(lowered):
                return SENSITIVE
        words = split_key(key)
        for extra in self._extra_words:
            for start in range(len(words) - len(extra) + 1):
                if words[start : start + len(extra)] == extra:
                    return SENSITIVE
        if lowered in SAFE_KEYS:
            return PLAIN
        if self._personal and personal_data.is_personal(words):
            return SENSITIVE
        return judge_words(words, loose, query)
