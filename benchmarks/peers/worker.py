"""The measured process: one configuration, with commands in lines of JSON on its standard input.

    {"do": "warm",  "case": "json"}
    {"do": "check", "case": "json", "requests": 40}
    {"do": "time",  "case": "json", "requests": 100}
    {"do": "count", "case": "json", "requests": 20}      (under valgrind)
    {"do": "idle",  "case": "json", "seconds": 5}        (under valgrind)

One line of JSON answers each.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import callgrind
from benchmarks.peers.catalogue import CASES, VARIANTS, Case, Variant, traceparents
from benchmarks.peers.subject import Subject, UnsupportedError
from benchmarks.peers.subjects import SUBJECTS

_HEADERS = {
    "host": "shop.example:8000",
    "user-agent": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "accept": "text/html,application/json",
    "accept-encoding": "gzip, deflate",
}
Loop = Callable[[int], None]


def build_wsgi_loop(case: Case, variant: Variant) -> Loop:
    """Requests one after the other, as a WSGI server hands them to the application."""
    from django.core.wsgi import get_wsgi_application

    application = get_wsgi_application()
    environ: dict[str, Any] = {
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": case.path,
        "RAW_URI": case.path,
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "measured",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "40000",
        **{"HTTP_" + name.upper().replace("-", "_"): value for name, value in _HEADERS.items()},
    }
    headers: list[dict[str, str]] = [{}] * 10
    if case.has_traceparent:
        headers = [{"HTTP_TRACEPARENT": value} for value in traceparents(variant, 10)]
    statuses: list[str] = []

    def start_response(status: str, headers: object, exc_info: object = None) -> Callable[[bytes], object]:
        statuses.append(status)
        return statuses.append  # type: ignore[return-value]

    def loop(requests: int) -> None:
        statuses.clear()
        for number in range(requests):
            body = io.BytesIO(b"")
            response = application({**environ, "wsgi.input": body, **headers[number % 10]}, start_response)
            for _chunk in response:
                pass
            response.close()  # type: ignore[attr-defined]
        if len(statuses) != requests or not all(status.startswith(str(case.status)) for status in statuses):
            raise AssertionError(f"{case.name}: {requests} requests answered {sorted(set(statuses))}")

    return loop


def build_asgi_loop(case: Case, event_loop: asyncio.AbstractEventLoop) -> Loop:
    """The same from an ASGI server."""
    from django.core.asgi import get_asgi_application

    application = get_asgi_application()
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": case.path,
        "raw_path": case.path.encode(),
        "query_string": b"",
        "root_path": "",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 40000),
        "headers": [(name.encode(), value.encode()) for name, value in _HEADERS.items()],
    }

    async def serve(requests: int) -> None:
        answered = 0

        async def send(message: Any) -> None:
            nonlocal answered
            answered += message.get("status") == case.status

        for _ in range(requests):
            is_read = False
            gone = asyncio.Event()

            async def receive() -> dict[str, Any]:
                nonlocal is_read
                if is_read:
                    # The client stays.
                    await gone.wait()  # noqa: B023 (one request at a time)
                is_read = True
                return {"type": "http.request", "body": b"", "more_body": False}

            await application(dict(scope), receive, send)  # type: ignore[arg-type]
        if answered != requests:
            raise AssertionError(f"{case.name}: {answered} of {requests} requests answered {case.status}")

    return lambda requests: event_loop.run_until_complete(serve(requests))


class Worker:
    """One configuration, ready to be driven."""

    def __init__(self, subject: Subject, settings: dict[str, Any], *, keeps_clocks: bool) -> None:
        self.subject = subject
        self._loops: dict[str, Loop] = {}
        self._event_loop: asyncio.AbstractEventLoop | None = None
        subject.before_setup(settings)
        import django
        from django.conf import settings as django_settings

        django_settings.configure(**settings)
        django.setup()
        subject.after_setup()
        if not keeps_clocks:
            subject.stop_clocks()

    def loop(self, case: Case) -> Loop:
        if case.name not in self._loops:
            if case.is_async:
                self._event_loop = self._event_loop or asyncio.new_event_loop()
                self._loops[case.name] = build_asgi_loop(case, self._event_loop)
            else:
                self._loops[case.name] = build_wsgi_loop(case, self.subject.variant)
            self._loops[case.name](20)
            self.subject.flush()
        return self._loops[case.name]

    def warm(self, case: Case) -> dict[str, Any]:
        """Serve the first requests: under valgrind that is fast as long as nothing is counted."""
        self.loop(case)
        return {}

    def check(self, case: Case, requests: int) -> dict[str, Any]:
        """What `requests` requests emit."""
        loop, subject = self.loop(case), self.subject
        before = (subject.emission().requests, subject.emission().queries)
        counted = (subject.requests_counted(), subject.queries_counted())
        with self._watched() as observed:
            loop(requests)
        subject.flush()
        emission = subject.emission()
        return {
            "requests": emission.requests - before[0],
            "queries": emission.queries - before[1],
            "trace_ids": sorted(emission.trace_ids),
            "observed": sum(observed),
            "requests_counted": subject.requests_counted() - counted[0],
            "queries_counted": subject.queries_counted() - counted[1],
        }

    @contextlib.contextmanager
    def _watched(self) -> Iterator[list[bool]]:
        """Whether the peer has a span where Django looks for the view, for each request: recorded or not, it is on."""
        from django.core.handlers.base import BaseHandler

        resolve, subject, observed = BaseHandler.resolve_request, self.subject, []

        def resolve_request(self: BaseHandler, request: Any) -> Any:
            observed.append(subject.has_span())
            return resolve(self, request)

        BaseHandler.resolve_request = resolve_request  # type: ignore[method-assign]
        try:
            yield observed
        finally:
            BaseHandler.resolve_request = resolve  # type: ignore[method-assign]

    def time(self, case: Case, requests: int) -> dict[str, float]:
        """Seconds of one block: on the clock, and of the processor in all threads."""
        loop, subject = self.loop(case), self.subject
        started_s, started_cpu_s = time.perf_counter(), time.process_time()
        loop(requests)
        if subject.variant.exports:
            subject.flush()
        found = {"wall_s": time.perf_counter() - started_s, "cpu_s": time.process_time() - started_cpu_s}
        if not subject.variant.exports:
            subject.flush()
        return found

    def count(self, case: Case, requests: int) -> dict[str, float]:
        """Instructions of a loop of requests, and how many of them were recorded."""
        loop, subject = self.loop(case), self.subject

        def measured() -> None:
            loop(requests)
            if subject.variant.exports:
                subject.flush()

        before = subject.emission().requests
        instructions = callgrind.count_settled(measured)
        subject.flush()
        return {"instructions": instructions, "recorded": subject.emission().requests - before}

    def idle(self, case: Case, seconds: float) -> dict[str, float]:
        """Instructions of a second in which nothing is asked for, after some requests."""
        self.loop(case)
        callgrind.count(lambda: time.sleep(2))
        return {"instructions": callgrind.count(lambda: time.sleep(seconds)) / seconds}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", required=True)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--sqlite", required=True)
    parser.add_argument("--postgres", default="", help="JSON of Django's database settings")
    parser.add_argument("--endpoint", default="")
    parser.add_argument("--stop-clocks", action="store_true", help="let threads that work by the clock sleep")
    options = parser.parse_args()
    # The answers have a stream of their own: peers print.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        subject = SUBJECTS[options.peer](VARIANTS[options.variant], options.endpoint)
        from benchmarks.peers.settings import base_settings

        postgres = json.loads(options.postgres) if options.postgres else None
        settings = base_settings(options.sqlite, postgres)
        worker = Worker(subject, settings, keeps_clocks=not options.stop_clocks)
    except UnsupportedError as reason:
        answer({"unsupported": str(reason)})
        return
    except Exception:
        answer({"error": traceback.format_exc()})
        return
    answer({"ready": True})
    cases = {case.name: case for case in CASES}
    for line in sys.stdin:
        order = json.loads(line)
        do, case = order.pop("do"), cases[order.pop("case")]
        try:
            answer(getattr(worker, do)(case, **order))
        except Exception:
            answer({"error": traceback.format_exc()})
    # Exit at once: what peers do at the end is not measured, and may wait for servers.
    os._exit(0)


if __name__ == "__main__":
    main()
