"""Common parts of the console's pages: access, tabs, and the page shown if there is no store.

Each page is a function `f(request, admin, context, console, ...)` under `console_page`.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlencode

from django.apps import apps
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, reverse
from django.utils.translation import gettext, gettext_lazy

from django_otel import runtime
from django_otel.base import guard
from django_otel.base.private_files import Unusable
from django_otel.base.suppression import suppress_instrumentation
from django_otel.console.access import PERMISSION, may_view
from django_otel.tracestore.columns import DAMAGED
from django_otel.tracestore.processor import StoreProcessor
from django_otel.tracestore.reader import StoreReader, read

if TYPE_CHECKING:
    from django_otel.console.entries import ConsoleAdmin

_Found = TypeVar("_Found")

#: Model name and title of each page, in the order of the tabs; one that is not registered has no tab.
TABS = (
    ("dashboard", gettext_lazy("Dashboard")),
    ("trace", gettext_lazy("Traces")),
    ("errors", gettext_lazy("Errors")),
    ("slow", gettext_lazy("Slow routes")),
    ("queries", gettext_lazy("Queries")),
    ("logs", gettext_lazy("Logs")),
    ("instruments", gettext_lazy("Instruments")),
    ("tasks", gettext_lazy("Tasks")),
)
#: Rows of a page of a list.
PAGE_SIZE = 50
TRACE_ID = re.compile(r"[0-9a-f]{32}")
#: Stand for an id in an address.
_SOME_TRACE, _SOME_NUMBER = "0123456789abcdef" * 2, "1234567890123456"

View = Callable[..., HttpResponse]


class StoreFailed(Exception):  # noqa: N818 (an answer, not a fault)
    """The store cannot be read; the text says why."""


def console_page(view: View) -> View:
    """Base of the pages; they are called through the admin site, which requires a sign-in."""

    @functools.wraps(view)
    def wrapper(request: HttpRequest, admin: ConsoleAdmin, *args: object, **kwargs: object) -> HttpResponse:
        if not may_view(request):
            raise PermissionDenied(f"The permission {PERMISSION} is needed.")
        # The path is excluded from telemetry; this keeps what the page itself does out of it as well.
        with suppress_instrumentation():
            pages = _addresses(admin.admin_site.name)
            context = {
                **admin.admin_site.each_context(request),
                "opts": admin.model._meta,
                "otel_pages": pages,
                "otel_tabs": [(name, title, pages[name]) for name, title in TABS if pages[name]],
                "otel_app": apps.get_app_config("django_otel").verbose_name,
            }
            console = runtime.console()
            if console is None:
                context |= {"title": admin.page_title, "why": _why_off()}
                return TemplateResponse(request, "django_otel/console/off.html", context).render()
            try:
                response = view(request, admin, context, console, *args, **kwargs)
                # Within the suppression: templates load lazily what they show.
                return response.render() if isinstance(response, TemplateResponse) else response
            except StoreFailed as failure:
                context |= {"title": admin.page_title, "why": [str(failure)], "is_failure": True}
                return TemplateResponse(request, "django_otel/console/off.html", context, status=503).render()

    return wrapper


def _addresses(site: str) -> dict[str, str]:
    found = {}
    for name, _ in TABS:
        try:
            found[name] = reverse(f"{site}:django_otel_{name}_changelist")
        except NoReverseMatch:
            # A project's own admin site with only one of the pages.
            found[name] = ""
    return found


def _why_off() -> list[str]:
    """Why there is no console in this process, and what to do."""
    current = runtime.current()
    if current.problems:
        return [gettext("settings.OTEL is not valid, so telemetry is off: run manage.py check.")]
    if not current.config.enabled:
        return [gettext('Telemetry is off: OTEL["ENABLED"] is False (or OTEL_SDK_DISABLED is set).')]
    if runtime.is_testing():
        return [gettext("In tests spans are kept in memory, not in the store.")]
    if current.config.console.enabled is None:
        return [
            gettext("By default the console is on only with DEBUG, and DEBUG is off here."),
            gettext('To have it in production as well, set OTEL["CONSOLE"] = {"ENABLED": True}.'),
            gettext("Only staff with the permission “Can view traces and dashboard” can see it."),
        ]
    return [gettext('The console is off: OTEL["CONSOLE"]["ENABLED"] is False.')]


def read_store(console: StoreProcessor, use: Callable[[StoreReader], _Found]) -> _Found:
    """Return the result of `use(store)`. Errors: `StoreFailed` with a sentence for the page."""
    with store_errors(), read(console.store()) as reader:
        try:
            return use(reader)
        except DAMAGED as error:
            guard.report("reading the trace store", error)
            message = gettext("A part of the trace store cannot be read (%(reason)s).")
            raise StoreFailed(message % {"reason": type(error).__name__}) from error


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Turn the store's errors into `StoreFailed`."""
    try:
        yield
    except Unusable as error:
        raise StoreFailed(gettext("The trace store cannot be used: %(reason)s") % {"reason": error}) from error
    except (sqlite3.Error, OSError) as error:
        guard.report("using the trace store", error)
        message = gettext("The trace store cannot be used now (%(reason)s); try again.")
        raise StoreFailed(message % {"reason": type(error).__name__}) from error


# --- Lists. ---


def trace_addresses(site: str) -> Callable[[str], str]:
    """Return a function that gives the address of a trace; "" for an invalid id, or without that page."""
    address = _addresses_like(f"{site}:django_otel_trace_detail", _SOME_TRACE)
    return lambda trace_id: address(trace_id) if TRACE_ID.fullmatch(trace_id) else ""


def issue_addresses(site: str) -> Callable[[int], str]:
    """Return a function that gives the address of an issue, by its number."""
    return _addresses_like(f"{site}:django_otel_errors_detail", _SOME_NUMBER)


def _addresses_like(name: str, some_id: str) -> Callable[[object], str]:
    # Resolved once: an address for each of fifty rows takes as long as reading them.
    try:
        before, after = reverse(name, args=[some_id]).split(some_id)
    except NoReverseMatch:
        # A project's own admin site with only some of the pages.
        return lambda given: ""
    return lambda given: f"{before}{given}{after}"


def page_links(total: int, number: int, values: Mapping[str, object]) -> dict[str, object]:
    """Return the context of the links between the pages of a list; `values` are those of the query string."""
    pages = max(1, math.ceil(total / PAGE_SIZE))

    def address(to: int) -> str:
        return "?" + urlencode({**values, "page": to})

    return {
        "number": number,
        "pages": pages,
        "newer": address(number - 1) if number > 1 else "",
        "older": address(number + 1) if number < pages else "",
    }


def sorted_columns(names: Sequence[tuple[str, str]], sort: str, values: Mapping[str, object]) -> list[dict[str, str]]:
    """Return the heads of a list's columns (key and words), each with the address that sorts by it."""
    return [
        {
            "name": name,
            "key": key,
            "address": "?" + urlencode({**values, "sort": key if sort == f"-{key}" else f"-{key}"}),
            "order": "descending" if sort == f"-{key}" else "ascending" if sort == key else "",
        }
        for key, name in names
    ]
