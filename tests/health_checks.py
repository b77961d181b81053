"""Checks of a project for `OTEL["HEALTH"]`."""

import threading

calls = []
_meeting = threading.Barrier(3)
release = threading.Event()
#: What `choose` does.
outcome = {"error": None}


def good():
    calls.append(threading.current_thread().name)


async def good_async():
    calls.append("async")


def meet_a():
    _meeting.wait(30)


meet_b = meet_c = meet_a


def bad():
    raise ValueError("password=hunter2 was refused")


def leaves():
    raise SystemExit(3)


def choose():
    if outcome["error"]:
        raise outcome["error"]


def hang():
    calls.append("hang")
    release.wait(60)


NOT_CALLABLE = 7
