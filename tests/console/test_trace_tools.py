"""A trace beside its waterfall: neighbours, critical path, flame view, curl, export and import, comparison."""

from __future__ import annotations

import io
import json

import pytest

from django_otel.console import trace_view
from django_otel.tracestore.reader import read
from tests.console.test_console import HOSTILE, record, request_span, stored
from tests.console.test_errors import VIEW, catch, parse_text

LIST = "/admin/django_otel/trace/"
pytestmark = pytest.mark.usefixtures("db")


def make(console, times=1, **attributes):
    def build(tracer):
        for _ in range(times):
            with request_span(tracer, **attributes), tracer.start_as_current_span("SELECT x"):
                pass

    record(console, build)


def span(span_id, begin, end, parent="", **more):
    return {
        "id": span_id, "parent": parent, "name": span_id, "kind": "INTERNAL", "start": begin, "end": end,
        "attributes": {}, **more,
    }  # fmt: skip


def test_previous_and_next_of_the_same_route(page, console):
    make(console, 3)
    make(console, 1, route="/other/")
    first, second, third = sorted(
        (row for row in stored(console) if row.route != "/other/"), key=lambda row: row.start_ns
    )
    content = page(f"{LIST}{second.trace_id}/").content.decode()
    assert f"../{first.trace_id}/" in content
    assert f"../{third.trace_id}/" in content
    with read(console.store()) as reader:
        assert reader.neighbours(first) == ("", second.trace_id)


def test_the_critical_path_is_what_the_request_waited_for():
    spans = [
        span("root", 0, 100, kind="SERVER"), span("early", 0, 30, "root"), span("beside", 5, 25, "root"),
        span("late", 40, 95, "root"), span("inner", 50, 90, "late"),
    ]  # fmt: skip
    steps = trace_view.critical_path(spans)
    assert [step.span_id for step in steps] == ["root", "early", "late", "inner"]
    assert {step.span_id: step.share for step in steps} == {
        "root": "15 %", "early": "30 %", "late": "15 %", "inner": "40 %"
    }  # fmt: skip


@pytest.mark.parametrize(
    "spans",
    [[], [span("a", 5, 1)], [span("a", 0, 9, "b"), span("b", 0, 9, "a")], [span("a", 0, 9, "a")], [span("a", 0, 0)]],
)
def test_faulty_spans_break_nothing(spans):
    trace_view.critical_path(spans)
    trace_view.draw_flame(spans)
    trace_view.curl_of(spans)


def test_curl_has_no_secret_and_is_one_safe_command():
    root = span("a", 0, 1, kind="SERVER")
    root["attributes"] = {
        "http.request.method": "POST", "url.path": "/pay/'; rm -rf ~/", "url.scheme": "https",
        "server.address": "shop.example", "server.port": 8443, "url.query": "a=1&token=[redacted]",
        "http.request.header.accept": ["text/html"], "http.request.header.x_api_key": ["[redacted]"],
        "http.request.header.cookie": ["sessionid=7"],
    }  # fmt: skip
    assert trace_view.curl_of([root]) == (
        "curl -X POST 'https://shop.example:8443/pay/%27;%20rm%20-rf%20~/?a=1' -H 'accept: text/html'"
    )


def test_a_trace_is_exported_and_imported_again(page, console):
    make(console, 1, password="hunter2")
    (row,) = stored(console)
    answer = page(f"{LIST}{row.trace_id}/export/")
    assert answer["Content-Disposition"] == f'attachment; filename="trace-{row.trace_id}.json"'
    assert b"hunter2" not in answer.content
    with read(console.store()) as reader:
        before = reader.trace(row.trace_id).spans
    console.store().clear()
    content = answer.content.replace(b"[redacted]", b"hunter3")
    done = page.client.post(f"{LIST}import/", {"file": io.BytesIO(content)})
    assert (done.status_code, done["Location"]) == (302, f"{LIST}{row.trace_id}/")
    with read(console.store()) as reader:
        assert reader.trace(row.trace_id).spans == before


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"[]", b"{}", b'{"resourceSpans": 7}', b"[" * 100_000, b"\xff\xfe", json.dumps(HOSTILE).encode()],
)
def test_what_is_no_trace_is_not_imported(page, console, content):
    answer = page.client.post(f"{LIST}import/", {"file": io.BytesIO(content)})
    assert answer.status_code == 400
    assert stored(console) == []


def test_two_traces_are_compared(page, console):
    make(console, 2)
    first, second = stored(console)
    text = parse_text(page(f"{LIST}{first.trace_id}/compare/", **{"with": second.trace_id}))
    assert "SELECT x" in text
    assert "1 → 1" in text
    assert page(f"{LIST}{first.trace_id}/compare/", **{"with": HOSTILE}).status_code == 200
    assert page(f"{LIST}{'0' * 31}1/compare/").status_code == 404
    assert page(f"{LIST}{'0' * 31}1/export/").status_code == 404


def test_the_page_shows_its_parts_without_script(page, console):
    def build(tracer):
        with request_span(
            tracer, **{"url.path": "/x", HOSTILE: HOSTILE, "django.layer.database.duration": 0.5}
        ) as current:
            console.on_error(catch(VIEW), "/x", current)
            with tracer.start_as_current_span(HOSTILE):
                pass

    record(console, build)
    (row,) = stored(console)
    answer = page(f"{LIST}{row.trace_id}/")
    content, text = answer.content.decode(), parse_text(answer)
    for part in (
        "Critical path",
        "Flame view",
        "As a curl command",
        "Counted as:",
        "Export (OTLP/JSON)",
    ):
        assert part in text, part
    assert "<script>alert" not in content
    assert "<img src=x" not in content
