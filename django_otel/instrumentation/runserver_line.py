"""The line that `runserver` prints for each request, extended: duration, queries, N+1, and the trace's address.

Only while DEBUG is on and the process is `manage.py runserver`. Django's own
line stays one line: a filter on its logger adds to the record. An ASGI server
in the place of runserver (Daphne) has a line of its own, which is left alone.
"""

from __future__ import annotations

import logging
import re
import threading
from time import perf_counter
from typing import TYPE_CHECKING

from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from opentelemetry import trace

from django_otel import conf, runtime
from django_otel.base import guard
from django_otel.base.text import printable
from django_otel.config.schema import Config
from django_otel.requests.observer import Observer
from django_otel.requests.record import RequestRecord

if TYPE_CHECKING:
    from django_otel.requests.protocols import ResponseLike

_LOGGER = "django.server"
_N_PLUS_ONE = "django.n_plus_one"
#: Characters of a host in an address; anything else is not printed.
_HOST = re.compile(r"[A-Za-z0-9.\-:\[\]_]{1,253}")
_ID = "0" * 32


class _Thread(threading.local):
    """The request that this thread has finished last, until its line is printed."""

    method = ""
    text = ""


_finished = _Thread()


class LineObserver(Observer):
    """An observer that collects the additions to its request's line."""

    __slots__ = ()

    def finish(
        self,
        record: RequestRecord,
        response: ResponseLike | None,
        response_size_bytes: int | None = None,
        error: BaseException | None = None,
    ) -> None:
        """As the observer's; then the text is there when Django prints the line, in the same thread."""
        request, is_first = record.request, not record.is_finished
        super().finish(record, response, response_size_bytes, error)
        if is_first and isinstance(request, HttpRequest) and not record.is_discarded:
            with guard.contained("describing a request for runserver's line"):
                _finished.method, _finished.text = request.method or "", describe(record, request)


def describe(record: RequestRecord, request: HttpRequest) -> str:
    """Return duration, queries, N+1, route and address of a request's trace."""
    parts = [f"{(perf_counter() - record.started_s) * 1000:.0f} ms"]
    if record.queries:
        parts.append(f"{record.queries} {'query' if record.queries == 1 else 'queries'}")
    span = record.span_or_none
    for event in getattr(span, "events", None) or ():
        if event.name == _N_PLUS_ONE:
            known = event.attributes or {}
            place = f"{known.get('code.file.path', '')}:{known.get('code.line.number', '')}".strip(":")
            parts.append(f"N+1: {known.get('django.n_plus_one.count', '')} {place}".rstrip())
    match = request.resolver_match
    if match is not None and (match.kwargs or match.args):
        parts.append(f"/{match.route}".replace("//", "/"))
    if span is not None and (address := _address(span, request)):
        parts.append(address)
    return printable("  ".join(parts))


def _address(span: trace.Span, request: HttpRequest) -> str:
    """Return where the trace can be looked at; "" where it is not recorded."""
    context = span.get_span_context()
    if not (context.is_valid and context.trace_flags.sampled):
        return ""
    trace_id = f"{context.trace_id:032x}"
    if runtime.console() is None:
        url = runtime.current().config.trace_url
        return url.replace("{trace_id}", trace_id) if url else trace_id
    try:
        path = reverse("admin:django_otel_trace_detail", args=[_ID]).replace(_ID, trace_id)
    except NoReverseMatch:
        return trace_id
    host = str(request.META.get("HTTP_HOST", ""))
    return f"{request.scheme}://{host}{path}" if _HOST.fullmatch(host) else path


class _AddToLine(logging.Filter):
    """Adds the text of the request to the line about it."""

    def filter(self, record: logging.LogRecord) -> bool:
        method, text = _finished.method, _finished.text
        arguments = record.args
        # Django's line: the request's first line, the status, the size.
        if text and isinstance(arguments, tuple) and len(arguments) == 3:
            _finished.text = ""
            if str(arguments[0]).startswith(f"{method} "):
                record.msg, record.args = f"{record.msg}  %s", (*arguments, text)
        return True


_filter = _AddToLine()


def is_wanted(config: Config) -> bool:
    """Return whether this process is `runserver` with DEBUG."""
    return config.enabled and runtime.command_name() == "runserver" and conf.is_debug()


def install(config: Config) -> None:
    """Begin to add to the lines, or stop."""
    logger = logging.getLogger(_LOGGER)
    logger.removeFilter(_filter)
    if is_wanted(config):
        logger.addFilter(_filter)


def uninstall() -> None:
    """Leave the lines alone."""
    logging.getLogger(_LOGGER).removeFilter(_filter)
