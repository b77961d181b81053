"""The time that a page or a command says is left until an end."""

import re
import time


def check_time_left(text: str, pattern: str, seconds: int, begun_s: float) -> None:
    """Check the time that is left behind the first match of `pattern`, of an end `seconds` after a change.

    The change was made after `begun_s`, and `text` was read before this call: the time may be shorter by as much as has
    passed since. An end is a whole second, and the time is rounded.
    """
    found = re.search(rf"{pattern}\s*\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d \S+ \(in (?:(\d+) min)? ?(?:(\d+) s)?[);]", text)
    assert found is not None, text
    left_s = int(found[1] or 0) * 60 + int(found[2] or 0)
    assert seconds - (time.time() - begun_s) - 1.5 <= left_s <= seconds, (text, left_s)
