"""Pages that export a trace from the store, import one, and compare two."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from django.core.files.uploadedfile import UploadedFile
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.http import content_disposition_header
from django.utils.translation import gettext, ngettext_lazy

from django_otel import runtime
from django_otel.console import text
from django_otel.console.page import TRACE_ID, console_page, read_store, store_errors, trace_addresses
from django_otel.console.pages import title_of
from django_otel.console.trace_view import compare
from django_otel.tracestore.incoming import Received, read_spans_json
from django_otel.tracestore.otlp_json import TRACES, to_json
from django_otel.tracestore.processor import StoreProcessor
from django_otel.tracestore.reader import StoreReader, Trace

if TYPE_CHECKING:
    from django_otel.console.entries import ConsoleAdmin

#: Largest file that is imported, and most spans in it.
MAX_IMPORT_BYTES = 8 << 20
MAX_IMPORT_SPANS = 20_000
_SPANS = ngettext_lazy("%(count)s span", "%(count)s spans", "n")


@console_page
def export(
    request: HttpRequest, admin: ConsoleAdmin, context: dict[str, object], console: StoreProcessor, trace_id: str
) -> HttpResponse:
    """The trace as OTLP/JSON, as a file."""
    trace_id = trace_id.lower()
    data = read_store(console, lambda reader: reader.chunks(trace_id)) if TRACE_ID.fullmatch(trace_id) else b""
    content = None
    if data:
        try:
            content = to_json(data, TRACES)
        except ValueError:
            content = None
    if content is None:
        context |= {"title": gettext("Trace not found"), "trace_id": trace_id[:64]}
        return TemplateResponse(request, "django_otel/console/missing.html", context, status=404)
    answer = HttpResponse(json.dumps(content, ensure_ascii=False, indent=1), content_type="application/json")
    answer["Content-Disposition"] = content_disposition_header(True, f"trace-{trace_id}.json") or ""
    return answer


@console_page
def import_trace(
    request: HttpRequest, admin: ConsoleAdmin, context: dict[str, object], console: StoreProcessor
) -> HttpResponse:
    """A form that accepts OTLP/JSON; its spans are redacted as our own are."""
    problem = ""
    if request.method == "POST":
        given = request.FILES.get("file")
        received, problem = _read_file(given if isinstance(given, UploadedFile) else None)
        if received is not None:
            with store_errors():
                console.store().write(received.items, lambda count, reason: None)
            trace_id = received.items[0].trace_id
            if len(received.items) == 1:
                return HttpResponseRedirect(
                    reverse(f"{admin.admin_site.name}:django_otel_trace_detail", args=[trace_id])
                )
            return HttpResponseRedirect(reverse(f"{admin.admin_site.name}:django_otel_trace_changelist"))
    context |= {"title": gettext("Import a trace"), "import_problem": problem}
    return TemplateResponse(request, "django_otel/console/import.html", context, status=400 if problem else 200)


def _read_file(given: UploadedFile[bytes] | None) -> tuple[Received | None, str]:
    """Return the contents of a file, or what is wrong with it."""
    if given is None or not given.size:
        return None, gettext("Choose a file.")
    if given.size > MAX_IMPORT_BYTES:
        return None, gettext("The file is larger than %(size)s MiB.") % {"size": MAX_IMPORT_BYTES >> 20}
    try:
        content = json.loads(given.read())
        received = read_spans_json(
            content,
            runtime.current().scrubber,
            keeps_statements=runtime.current().config.database.statement != "off",
        )
    except (ValueError, RecursionError):
        return None, gettext("The file is not a trace in OTLP/JSON; expected an object with resourceSpans.")
    if not received.items:
        return None, gettext("The file holds no span with a trace id and a span id.")
    if sum(getattr(item, "spans", 0) for item in received.items) > MAX_IMPORT_SPANS:
        return None, gettext("The file holds more than %(count)s spans.") % {"count": text.count(MAX_IMPORT_SPANS)}
    return received, ""


@console_page
def compare_traces(
    request: HttpRequest, admin: ConsoleAdmin, context: dict[str, object], console: StoreProcessor, trace_id: str
) -> HttpResponse:
    """Two traces side by side, by the names of their spans; the other one is `?with=`."""
    ids = [trace_id.lower(), request.GET.get("with", "").strip().lower()]

    def use(reader: StoreReader) -> list[Trace | None]:
        return [reader.trace(one) if TRACE_ID.fullmatch(one) else None for one in ids]

    found = read_store(console, use)
    if found[0] is None:
        context |= {"title": gettext("Trace not found"), "trace_id": ids[0][:64]}
        return TemplateResponse(request, "django_otel/console/missing.html", context, status=404)
    address = trace_addresses(admin.admin_site.name)
    context |= {
        "title": gettext("Compare traces"),
        "given": ids[1][:64],
        "is_missing": bool(ids[1]) and found[1] is None,
        "heads": [
            {
                "title": title_of(one.row), "at": text.time_tag(one.row.start_ns), "release": one.row.release,
                "duration": text.duration(one.row.duration_ns), "spans": text.plural(one.row.spans, _SPANS),
                "address": address(one.row.trace_id),
            }
            for one in found if one is not None
        ],
        "differences": compare(found[0], found[1])[:500] if found[1] is not None else [],
    }  # fmt: skip
    return TemplateResponse(request, "django_otel/console/compare.html", context)
