"""The waterfall's filter, its collapsed spans, and the log records between the spans."""

from __future__ import annotations

import re

import pytest
from opentelemetry.trace import SpanKind, Status, StatusCode

from django_otel.console import span_filter, waterfall
from django_otel.tracestore.items import StoredLog
from tests import sizes
from tests.console.test_console import HOSTILE, LIST, huge_trace, record, request_span, stored
from tests.console.test_errors import parse_text

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def trace(console):
    """A request with queries in a view, a call that fails, and three log records; address and ids of its spans."""
    ids = {}

    def build(tracer):
        def child(name, **attributes):
            kind = SpanKind.CLIENT if attributes else SpanKind.INTERNAL
            return tracer.start_as_current_span(name, kind=kind, attributes=attributes)

        with request_span(tracer) as root:
            ids["root"] = root.get_span_context()
            with child("view") as view:
                ids["view"] = view.get_span_context()
                for number in range(2):
                    query = {"db.system.name": "sqlite", "db.query.text": f"SELECT a FROM t{number}"}
                    with child(f"SELECT t{number}", **query) as span:
                        ids[f"t{number}"] = span.get_span_context()
            with child("GET bank", **{"server.address": "bank.example", "amount": 120}) as call:
                ids["bank"] = call.get_span_context()
                call.set_status(Status(StatusCode.ERROR, "refused"))

    record(console, build)
    (row,) = stored(console)
    spans = {name: f"{context.span_id:016x}" for name, context in ids.items()}
    logs = [("at the beginning", "view", 0), ("at the end", "root", 10**12), ("from the bank", "bank", 0)]
    console.store().write(
        [
            StoredLog(row.trace_id, row.start_ns + add_ns, "shop", {
                "time": row.start_ns + add_ns, "span": spans[name], "level": "INFO", "severity": 9, "logger": "shop",
                "body": body, "service": "shop", "attributes": {},
            })
            for body, name, add_ns in logs
        ],
        print,
    )  # fmt: skip
    return f"{LIST}{row.trace_id}/", spans


def lines(answer):
    """The ids of the spans and the texts of the log records of the waterfall, in order."""
    part = answer.content.decode().partition('id="otel-waterfall"')[2].partition("</section>")[0]
    found = re.findall(r'id="s-([0-9a-f]{16})"|otel-inline-log.*?<span dir="auto">(.*?)</span>', part, re.DOTALL)
    return [span_id or body for span_id, body in found]


def test_log_records_stand_between_the_spans(page, trace):
    address, ids = trace
    assert lines(page(address)) == [
        ids["root"], ids["view"], "at the beginning", ids["t0"], ids["t1"], ids["bank"], "from the bank", "at the end",
    ]  # fmt: skip
    assert "at the end" not in lines(page(address, without_logs="1"))
    assert "at the end" in parse_text(page(address, without_logs="1")), "in the list below"


@sizes.each(
    ("query", "shown"),
    [
        ({"kind": "database"}, "root view t0 t1"),
        ({"kind": "client"}, "root bank"),
        ({"kind": "server"}, "root"),
        ({"find": "t1"}, "root view t1"),
        ({"find": "db.query.text~T0"}, "root view t0"),
        ({"find": "amount>100"}, "root bank"),
        ({"find": "amount>200"}, ""),
        ({"find": "duration<10min t1", "kind": "database"}, "root view t1"),
        ({"find": "status=200"}, "root"),
        ({"find": "service=shop", "kind": "client"}, "root bank"),
        ({"find": "THE BANK"}, "root bank"),
        ({"find": '"the bank"'}, "root bank"),
        ({"errors": "1"}, "root bank"),
        ({"errors": "1", "kind": "database"}, ""),
        ({"kind": "nonsense", "errors": "0"}, "root view t0 t1 bank"),
    ],
)
@pytest.mark.heavy
def test_spans_are_filtered_and_stay_below_those_above_them(page, trace, query, shown):
    address, ids = trace
    answer = page(address, **query)
    assert [line for line in lines(answer) if line in ids.values()] == [ids[name] for name in shown.split()]
    if "find" in query or query.get("errors") == "1":
        assert "of 5 spans" in parse_text(answer)


def test_a_filter_that_cannot_be_read_says_so(page, trace):
    address, ids = trace
    answer = page(address, find="amount>much")
    assert "“amount&gt;much” is not valid" in answer.content.decode()
    assert len([line for line in lines(answer) if line in ids.values()]) == 5


def test_links_keep_the_filter(page, trace):
    address, ids = trace
    content = page(address, kind="database", find="t0").content.decode()
    assert f'href="?find=t0&amp;kind=database&amp;span={ids["t0"]}#s-{ids["t0"]}"' in content
    opened = page(address, kind="database", find="t0", span=ids["t0"]).content.decode()
    assert 'class="otel-details"' in opened
    assert f'href="{address}?find=t0&amp;kind=database&amp;#s-{ids["t0"]}"' in opened


def test_spans_are_collapsed_by_their_address(page, trace):
    address, ids = trace
    content = page(address).content.decode()
    assert f'href="?closed={ids["view"]}#s-{ids["view"]}"' in content
    closed = page(address, closed=ids["view"])
    assert lines(closed) == [ids["root"], ids["view"], "at the beginning", ids["bank"], "from the bank", "at the end"]
    assert "2 spans below" in parse_text(closed)
    assert f'href="?#s-{ids["view"]}"' in closed.content.decode()
    both = page(address, closed=f"{ids['view']}.{ids['root']}")
    assert [line for line in lines(both) if line in ids.values()] == [ids["root"]]
    assert "4 spans below" in parse_text(both)
    # A filter looks into them.
    assert ids["t0"] in lines(page(address, closed=ids["root"], kind="database"))


def test_a_link_leads_to_a_span_that_is_collapsed_or_filtered_out(page, trace):
    """The spans above it are expanded; beside a filter it is shown, and not counted."""
    address, ids = trace
    answer = page(address, closed=f"{ids['view']}.{ids['root']}", span=ids["t1"])
    assert ids["t1"] in lines(answer) and 'class="otel-details"' in answer.content.decode()
    answer = page(address, find="bank", span=ids["t1"])
    assert [line for line in lines(answer) if line in ids.values()] == [ids[x] for x in ("root", "view", "t1", "bank")]
    assert "1 of 5 spans matches" in parse_text(answer)


@sizes.each(
    "query",
    [
        {"find": HOSTILE}, {"kind": HOSTILE}, {"closed": HOSTILE}, {"closed": "." * 5000}, {"find": "x" * 5000},
        {"find": "a=1 " * 40}, {"closed": ".".join(f"{number:016x}" for number in range(400))}, {"find": '"'},
        {"find": "~ = !="}, {"rows": "9" * 40, "kind": "cache"}, {"find": "\u202e\x00"}, {"find": "duration>x"},
    ],
)  # fmt: skip
def test_any_address_is_answered_without_markup(page, trace, query):
    address, _ = trace
    answer = page(address, **query)
    assert answer.status_code == 200
    content = answer.content.decode()
    assert "<script>alert" not in content and "<img src=x" not in content


def test_a_huge_trace_is_filtered_over_its_pages():
    trace = huge_trace(queries=True, failed={3000, 4999})
    chosen = span_filter.parse({"errors": "1"})
    built = waterfall.build(trace, chosen=chosen)
    assert (built.fitting, built.total, built.pages.count) == (2, 5000, 1)
    assert [row.name for row in built.rows] == ["0", "3000", "4999"]
    chosen = span_filter.parse({"kind": "database"})
    assert waterfall.build(trace, chosen=chosen).fitting == 4999
    closed = waterfall.build(huge_trace(), chosen=span_filter.parse({"closed": f"{9:016x}"}))
    assert (len(closed.rows), closed.rows[-1].hidden) == (10, 4990)


def test_spans_of_another_hand_break_no_filter():
    trace = huge_trace(1)
    odd = [{"id": 7, "name": None, "attributes": 3, "events": 4, "start": "x"}, {}, {"id": "a", "parent": "a"}]
    for query in ({"find": "x=1"}, {"find": "x"}, {"kind": "internal"}, {"find": "duration>1"}, {"closed": "0" * 16}):
        waterfall.build(type(trace)(trace.row, odd, [{"span": None, "time": "x"}]), chosen=span_filter.parse(query))
