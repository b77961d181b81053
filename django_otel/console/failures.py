"""The trace id, and a link to the trace, wherever Django shows a failure.

Django's debug page and the mails of `AdminEmailHandler` are written by one
class, `ExceptionReporter`; the id is put on top of what it writes. The page for
visitors is a template, `django_otel/500.html`, see `views.server_error`.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext
from django.views.debug import ExceptionReporter
from opentelemetry import trace

from django_otel import conf, runtime
from django_otel.base import guard
from django_otel.config.schema import Config

_plain_html = ExceptionReporter.get_traceback_html
_plain_text = ExceptionReporter.get_traceback_text


def trace_of(request: HttpRequest | None) -> tuple[str, bool] | None:
    """The id of a request's trace (else of the active one), and whether it is recorded; None without a trace."""
    from django_otel.requests.record import find

    record = find(request)
    span = record.span if record is not None else trace.get_current_span()
    ids = span.get_span_context()
    if not ids.is_valid:
        return None
    return trace.format_trace_id(ids.trace_id), bool(ids.trace_flags.sampled or span.is_recording())


def trace_address(trace_id: str, request: HttpRequest | None = None, *, is_absolute: bool = False) -> str | None:
    """Return where a recorded trace can be looked at: at `TRACE_URL`, else in the admin's console; None for neither.

    `is_absolute` makes an address with the request's host out of a path, for a mail; one whose host is not allowed
    stays a path.
    """
    template = runtime.current().config.trace_url
    if template:
        # Not str.format: other braces in the URL are the URL's.
        address = template.replace("{trace_id}", trace_id)
    elif runtime.console() is not None:
        try:
            address = reverse("admin:django_otel_trace_detail", args=[trace_id])
        except NoReverseMatch:
            # A project without the admin.
            return None
    else:
        return None
    if is_absolute and request is not None and not urlsplit(address).netloc:
        try:
            return request.build_absolute_uri(address)
        except Exception as error:
            guard.pass_on(error)
            # A disallowed host is one of the reported failures.
            return address
    return address


def _get_traceback_html(self: ExceptionReporter) -> SafeString:
    page = _plain_html(self)
    with guard.contained("the trace on the debug page"):
        note = _html_note(self.request, is_email=self.is_email)
        head, end, rest = page.partition("</h1>")
        # Elsewhere on the page of a project's own reporter, or on none at all.
        return SafeString(f"{head}{end}\n{note}{rest}") if note and end else page
    return page


def _get_traceback_text(self: ExceptionReporter) -> SafeString:
    page = _plain_text(self)
    with guard.contained("the trace on the debug page"):
        return SafeString(_text_note(self.request, is_email=self.is_email) + page)
    return page


def _html_note(request: HttpRequest | None, *, is_email: bool) -> str:
    found = trace_of(request)
    if found is None:
        return ""
    trace_id, is_recorded = found
    address = trace_address(trace_id, request, is_absolute=is_email) if is_recorded else None
    if address:
        words = gettext("Look at the trace")
        return format_html(
            '<p>{} <code dir="ltr">{}</code> <a href="{}">{}</a></p>', gettext("Trace"), trace_id, address, words
        )
    words = gettext("Trace") if is_recorded else gettext("Trace (not recorded)")
    return format_html('<p>{} <code dir="ltr">{}</code></p>', words, trace_id)


def _text_note(request: HttpRequest | None, *, is_email: bool) -> str:
    found = trace_of(request)
    if found is None:
        return ""
    trace_id, is_recorded = found
    address = trace_address(trace_id, request, is_absolute=is_email) if is_recorded else None
    words = gettext("Trace: %(trace_id)s") if is_recorded else gettext("Trace (not recorded): %(trace_id)s")
    note = f"{words % {'trace_id': trace_id}}\n"
    return f"{note}{address}\n\n" if address else f"{note}\n"


def may_see_console(request: object) -> bool:
    """Return whether the visitor is known to have access to traces. Makes no query: the page is failing."""
    if conf.is_debug():
        return True
    loaded = getattr(request, "__dict__", {})
    user = loaded.get("_cached_user") or loaded.get("_acached_user")
    return bool(user is not None and getattr(user, "is_active", False) and getattr(user, "is_superuser", False))


def install(config: Config) -> None:
    """Put the trace on Django's pages and mails about failures, or leave them alone. May be called again and again."""
    if not config.enabled or config.providers == "none":
        uninstall()
        return
    if ExceptionReporter.get_traceback_html is _plain_html:
        ExceptionReporter.get_traceback_html = _get_traceback_html  # type: ignore[method-assign]
    if ExceptionReporter.get_traceback_text is _plain_text:
        ExceptionReporter.get_traceback_text = _get_traceback_text  # type: ignore[method-assign]


def uninstall() -> None:
    """Give Django its own methods back."""
    if ExceptionReporter.get_traceback_html is _get_traceback_html:
        ExceptionReporter.get_traceback_html = _plain_html  # type: ignore[method-assign]
    if ExceptionReporter.get_traceback_text is _get_traceback_text:
        ExceptionReporter.get_traceback_text = _plain_text  # type: ignore[method-assign]
