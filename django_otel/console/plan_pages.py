"""The page of a stored statement's query plan, requested by a POST from a trace or from the queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.translation import gettext

from django_otel.console import plans, text
from django_otel.console.access import EXPLAIN_PERMISSION, may_explain
from django_otel.console.filters import whole
from django_otel.console.page import TRACE_ID, console_page, read_store, trace_addresses
from django_otel.console.stored_spans import kind_of, statement_of
from django_otel.tracestore import record_reader
from django_otel.tracestore.processor import StoreProcessor
from django_otel.tracestore.reader import StoreReader
from django_otel.tracestore.records import MAX_STATEMENT

if TYPE_CHECKING:
    from django_otel.console.entries import ConsoleAdmin

Found = tuple[Mapping[str, Any], str]


@console_page
def explain_span(
    request: HttpRequest, admin: ConsoleAdmin, context: dict[str, object], console: StoreProcessor, trace_id: str
) -> HttpResponse:
    """The plan of the statement of a span; `span` names it."""
    _require_permission(request)
    trace_id, span_id = trace_id.lower(), _given(request, "span").lower()

    def use(reader: StoreReader) -> Found | None:
        found = reader.trace(trace_id) if TRACE_ID.fullmatch(trace_id) else None
        spans = found.spans if found is not None else ()
        span = next((span for span in spans if span.get("id") == span_id and kind_of(span) == "database"), None)
        return (span, _text_of(span)) if span is not None else None

    return _answer(request, admin, context, read_store(console, use), trace_id)


@console_page
def explain_statement(
    request: HttpRequest, admin: ConsoleAdmin, context: dict[str, object], console: StoreProcessor
) -> HttpResponse:
    """The plan of a statement of the page of queries; `statement` is its number in the store."""
    _require_permission(request)
    number = whole(_given(request, "statement"), 0, 2**62)

    def use(reader: StoreReader) -> tuple[Found | None, str]:
        statement, trace_id = record_reader.find_statement(reader.connection, number)
        found = reader.trace(trace_id) if trace_id else None
        for span in found.spans if found is not None else ():
            if kind_of(span) == "database" and _text_of(span)[:MAX_STATEMENT] == statement:
                return (span, statement), trace_id
        return None, trace_id

    found, trace_id = read_store(console, use)
    return _answer(request, admin, context, found, trace_id)


def _require_permission(request: HttpRequest) -> None:
    if not may_explain(request):
        raise PermissionDenied(f"The permission {EXPLAIN_PERMISSION} is needed.")


def _given(request: HttpRequest, name: str) -> str:
    values = request.POST if request.method == "POST" else request.GET
    return str(values.get(name, ""))[:40]


def _text_of(span: Mapping[str, Any]) -> str:
    """The text of a statement; a name is none."""
    statement = statement_of(span)
    return "" if statement == span.get("name") else statement


def _answer(
    request: HttpRequest, admin: ConsoleAdmin, context: dict[str, object], found: Found | None, trace_id: str
) -> HttpResponse:
    """The plan after a POST; before it the statement and a button."""
    context |= {"title": gettext("Query plan"), "trace": trace_addresses(admin.admin_site.name)(trace_id)}
    if found is None:
        context["refusal"] = gettext("This statement is not (or no longer) in the store.")
        return TemplateResponse(request, "django_otel/console/plan.html", context, status=404)
    span, statement = found
    context |= {
        "sql": text.sql(statement), "is_unsorted": "ORDER BY ?" in statement, "span_id": span.get("id", ""),
        "fields": {name: _given(request, name) for name in ("span", "statement") if _given(request, name)},
    }  # fmt: skip
    status = 200
    try:
        if request.method == "POST":
            context["plan"] = plans.explain(span, statement)
        else:
            plans.find_alias(span)
            plans.number_placeholders(statement)
            context["may_ask"] = True
    except plans.NotExplained as refusal:
        context["refusal"] = str(refusal)
        status = 409 if request.method == "POST" else 200
    return TemplateResponse(request, "django_otel/console/plan.html", context, status=status)
