"""`manage.py otel traces`, `trace`, `errors`, `slow`, `n-plus-one`, `logs` and `mcp`, of a store that is filled."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import time

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from django_otel.console.answers import Answers, Scope, fit
from django_otel.console.route_sums import by_route, percentile
from django_otel.tracestore.file import find_file
from django_otel.tracestore.items import StoredLog
from django_otel.tracestore.reader import read
from django_otel.tracestore.record_reader import RequestRow
from django_otel.tracestore.writer import TraceStore
from tests.console.test_slow_pages import release, requests
from tests.services import ROOT, server_env
from tests.tracestore.test_store import Counted, processor, provider_with

SECRET = "hunter2-4711"
HOSTILE = "\x1b[2J\u202ebell\x07"


def fill(part) -> str:
    """Fill a store: requests, a failure, an N+1, log records; return the id of the failed trace."""
    from opentelemetry.trace import SpanKind, StatusCode

    tracer = provider_with(part)
    for number in range(30):
        with tracer.start_as_current_span(
            "GET /orders/", kind=SpanKind.SERVER,
            attributes={"http.request.method": "GET", "http.route": f"/orders/{'long/' * 10}{number % 3}/",
                        "http.response.status_code": 200},
        ):  # fmt: skip
            for _ in range(6):
                with tracer.start_as_current_span(
                    "SELECT shop_order",
                    attributes={"db.system.name": "sqlite", "db.query.text": "SELECT ? FROM shop_order " + "x" * 200},
                ):
                    pass
    with tracer.start_as_current_span(
        f"POST /pay/{HOSTILE}", kind=SpanKind.SERVER,
        attributes={"http.request.method": "POST", "http.route": f"/pay/{HOSTILE}",
                    "http.response.status_code": 500, "password": SECRET},
    ) as span:  # fmt: skip
        try:
            raise ValueError(f"refused password={SECRET}")
        except ValueError as error:
            span.record_exception(error)
            span.set_status(StatusCode.ERROR)
        failed = f"{span.get_span_context().trace_id:032x}"
    assert part.force_flush()
    now_ns = time.time_ns()
    part.store().write(
        [
            StoredLog(failed, now_ns + number, "shop",
                      {"time": now_ns + number, "span": "1" * 16, "level": "ERROR", "severity": 17,
                       "logger": "shop.pay", "body": f"refused {number} {HOSTILE}",
                       "service": "shop", "attributes": {}})
            for number in range(300)
        ],
        lambda count, reason: None,
    )  # fmt: skip
    return failed


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """Settings of a project with a filled store, and the id of its failed trace."""
    folder = tmp_path_factory.mktemp("terminal")
    part = processor(folder / "store", Counted())
    failed = fill(part)
    part.shutdown()
    part.finish_shutdown(5)
    return {"SERVICE_NAME": "shop", "CONSOLE": {"ENABLED": True, "PATH": str(folder / "store")}}, failed


@pytest.fixture
def run(filled):
    """Run a command: exit code and output."""

    def call(*arguments: str, otel=None):
        out = io.StringIO()
        code = 0
        with override_settings(OTEL=otel or filled[0]):
            try:
                call_command("otel", *arguments, stdout=out, no_color=True)
            except SystemExit as exit_:
                code = int(exit_.code or 0)
        return code, out.getvalue()

    return call


COMMANDS = {
    "traces": "traces", "errors": "errors", "slow": "routes", "n-plus-one": "statements", "logs": "log_records",
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_text_fits_and_steers_no_terminal(run, name):
    code, text = run(name)
    lines = text.splitlines()
    assert code == 0 and len(lines) > 1
    assert max(map(len, lines)) <= 80
    assert not set(text) & set("\x1b\x07\u202e") and SECRET not in text


@pytest.mark.parametrize("name", COMMANDS)
def test_json_is_bounded_and_redacted(run, name):
    code, text = run(name, "--format", "json", "--limit", "2", "--since", "1h")
    answer = json.loads(text)
    assert code == 0 and 1 <= len(answer[COMMANDS[name]]) <= 2
    assert SECRET not in text and "\x1b" not in text
    for row in answer[COMMANDS[name]]:
        assert row["address"] == f"/admin/django_otel/trace/{row['trace_id']}/"


def test_what_the_answers_say(run, filled):
    _, failed = filled
    errors = json.loads(run("errors", "--format", "json")[1])["errors"]
    assert (errors[0]["type"], errors[0]["count"], errors[0]["trace_id"]) == ("ValueError", 1, failed)
    assert errors[0]["place"].endswith("test_terminal.py in fill")
    (statement,) = json.loads(run("n-plus-one", "--format", "json")[1])["statements"]
    assert (statement["in_one_request"], statement["traces"], statement["queries"]) == (6, 30, 180)
    routes = json.loads(run("slow", "--format", "json")[1])["routes"]
    assert sorted((route["requests"], route["errors"]) for route in routes) == [(1, 1), (10, 0), (10, 0), (10, 0)]
    assert json.loads(run("traces", "--errors", "--format", "json")[1])["traces"][0]["status"] == 500
    assert json.loads(run("traces", "--status", "404", "--format", "json")[1])["traces"] == []
    assert json.loads(run("traces", "--status", "x", "--format", "json")[1])["traces"] == []
    logs = json.loads(run("logs", "--search", "refused 299", "--level", "error", "--format", "json")[1])
    assert logs["total"] == 1 and logs["log_records"][0]["trace_id"] == failed


def test_slow_routes_before_and_since_the_last_release(filled, monkeypatch):
    """Divided where the last release was first seen; without two of them there is nothing to compare."""
    from django_otel.console import answers

    store = TraceStore(find_file(filled[0]["CONSOLE"]["PATH"], {}, "x"), max_traces=500, max_bytes=64 << 20)
    for began_s, wanted in ((0.0, (None, 10)), (4e9, (10, None))):
        monkeypatch.setattr(
            answers, "list_releases", lambda connection, began_s=began_s: [("shop", "2", began_s), ("shop", "1", 0.0)]
        )
        with read(store) as reader:
            found = Answers(reader, str).list_slow_routes(Scope())
        route = next(each for each in found["routes"] if each["method"] == "GET")
        counts = tuple(figures and figures["requests"] for figures in (route["before"], route["after"]))
        assert (found["release"], counts) == ("2", wanted)
    monkeypatch.setattr(answers, "list_releases", lambda connection: [("shop", "1", 0.0)])
    with read(store) as reader:
        found = Answers(reader, str).list_slow_routes(Scope())
    assert found["release"] is None and found["routes"][0]["before"] is None


def test_what_got_worse_since_the_last_release_stands_below_the_slow_routes(run, tmp_path):
    part = processor(tmp_path / "store", Counted())
    for name, ago_s in (("1", 7200), ("2", 3600)):
        release(part, name, ago_s)
    for route, after_ms, errors in (("/slower/", 90, 0), ("/broken/", 10, 9), ("/same/", 10, 0)):
        requests(part, route, [10] * 20, 7000)
        requests(part, route, [after_ms] * 20, 3000, errors)
    part.shutdown()
    part.finish_shutdown(5)
    otel = {"SERVICE_NAME": "shop", "CONSOLE": {"ENABLED": True, "PATH": str(tmp_path / "store")}}
    lines = run("slow", otel=otel)[1].partition("Since the last release:")[2].splitlines()
    assert sorted(filter(None, lines)) == [
        "p95 10.0 -> 10.0 ms, failed 0/20 -> 9/20: GET /broken/",
        "p95 10.0 -> 90.0 ms, failed 0/20 -> 0/20: GET /slower/",
    ]
    found = json.loads(run("slow", "--format", "json", otel=otel)[1])
    changes = {route["route"]: route["change"] for route in found["routes"]}
    assert (found["release"], changes) == ("2", {"/slower/": "slower", "/broken/": "broken", "/same/": "same"})


def test_errors_are_the_issues_where_there_are_any(run, tmp_path):
    """Also those of requests that are not recorded, each counted."""
    part = processor(tmp_path / "store", Counted())
    for _ in range(3):
        try:
            raise KeyError("order")
        except KeyError as error:
            part.on_error(error, "/orders/")
    assert part.force_flush()
    part.shutdown()
    part.finish_shutdown(5)
    otel = {"SERVICE_NAME": "shop", "CONSOLE": {"ENABLED": True, "PATH": str(tmp_path / "store")}}
    (error,) = json.loads(run("errors", "--format", "json", otel=otel)[1])["errors"]
    assert (error["type"], error["count"], error["routes"], error["trace_id"]) == ("KeyError", 3, ["/orders/"], "")
    assert "3 x KeyError" in run("errors", otel=otel)[1]


def test_one_trace(run, filled):
    _, failed = filled
    code, text = run("trace", failed[:12])
    assert code == 0 and "POST /pay/" in text and "refused" in text
    assert max(map(len, text.splitlines())) <= 80 and SECRET not in text
    answer = json.loads(run("trace", failed, "--format", "json")[1])
    assert answer["trace_id"] == failed and answer["spans"][0]["events"][0]["name"] == "exception"
    assert run("trace", "f" * 32)[0] == 1
    assert "problem" in json.loads(run("trace", "nonsense", "--format", "json")[1])


def test_without_a_store_it_says_what_to_do(run, tmp_path):
    code, text = run("traces", otel={"CONSOLE": {"ENABLED": False}})
    assert code == 1 and "The console is off" in text
    code, text = run("traces", otel={"CONSOLE": {"ENABLED": True, "PATH": str(tmp_path / "none")}})
    assert code == 1 and "no trace store" in text
    assert not (tmp_path / "none" / "traces.sqlite3").exists()
    damaged = tmp_path / "damaged.sqlite3"
    damaged.write_bytes(b"no database" * 1000)
    damaged.chmod(0o600)
    otel = {"CONSOLE": {"ENABLED": True, "PATH": str(damaged)}}
    code, text = run("errors", "--format", "json", otel=otel)
    assert code in (0, 1) and json.loads(text)


@pytest.mark.parametrize("arguments", [("--limit", "0"), ("--limit", "x"), ("--limit", "501"), ("--since", "15")])
def test_faulty_options_are_refused(run, arguments):
    with pytest.raises(CommandError):
        run("traces", *arguments)


def test_percentiles_are_of_values_that_are_there():
    assert [percentile(list(range(1, 101)), share) for share in (0.5, 0.95, 0.99)] == [50, 95, 99]
    assert percentile([7], 0.95) == 7
    rows = [RequestRow("/x", "GET", 0, ns, False, 2, "a") for ns in (1, 2, 3, 100)]
    (found,) = by_route(rows).values()
    assert (found.p50_ns, found.p95_ns, found.requests, found.queries) == (2, 100, 4, 2.0)


@pytest.mark.parametrize("text", ['"' * 400, "\u202e" * 300, "ä" * 400, "x" * 400], ids=range(4))
def test_an_answer_fits(text):
    answer = {"traces": [{"name": text} for _ in range(500)], "stored": 500}
    found = fit(answer, 5_000)
    assert len(json.dumps(found)) <= 5_000
    assert json.loads(found)["left_out"] == 500 - len(json.loads(found)["traces"])
    assert "problem" in json.loads(fit({"name": text * 100}, 5_000))


# --- The Model Context Protocol, with the official client. ---

TOOLS = ("list_traces", "get_trace", "list_errors", "list_slow_routes", "list_n_plus_one", "search_logs")


@pytest.mark.process
@pytest.mark.long
def test_official_client_over_stdio(filled):
    """Tools, the read-only hint, calls without arguments, bounds, redaction, and refused arguments."""
    mcp = pytest.importorskip("mcp")
    from mcp.client.stdio import stdio_client

    otel, failed = filled
    parameters = mcp.StdioServerParameters(
        command=sys.executable, args=["-m", "django", "otel", "mcp"], env=server_env(otel), cwd=str(ROOT)
    )

    async def talk():
        async with stdio_client(parameters) as streams, mcp.ClientSession(streams[0], streams[1]) as session:
            await session.initialize()
            listed = {tool.name: tool for tool in (await session.list_tools()).tools}
            calls = {name: await session.call_tool(name, {}) for name in TOOLS if name != "get_trace"}
            calls["get_trace"] = await session.call_tool("get_trace", {"trace_id": failed})
            calls["many"] = await session.call_tool("search_logs", {"limit": 500})
            calls["missing"] = await session.call_tool("get_trace", {"trace_id": "f" * 32})
            calls["faulty"] = await session.call_tool("list_traces", {"since": "yesterday"})
            calls["level"] = await session.call_tool("search_logs", {"level": "LOUD"})
            return listed, calls

    listed, calls = asyncio.run(asyncio.wait_for(talk(), 120))
    assert tuple(listed) == TOOLS
    for tool in listed.values():
        assert tool.model_dump(by_alias=True)["annotations"]["readOnlyHint"] is True
    answers = {}
    for name, result in calls.items():
        raw = result.model_dump_json(by_alias=True)
        assert len(raw.encode()) <= 20_000, name
        assert SECRET not in raw
        (content,) = result.content
        answers[name] = json.loads(content.text)
    assert answers["list_errors"]["errors"][0]["type"] == "ValueError"
    assert answers["list_n_plus_one"]["statements"][0]["in_one_request"] == 6
    assert answers["get_trace"]["trace_id"] == failed
    assert answers["many"]["left_out"] > 0
    assert all("problem" in answers[name] for name in ("missing", "faulty", "level"))


def test_the_store_is_not_changed_by_reading(run, filled):
    path = find_file(filled[0]["CONSOLE"]["PATH"], {}, "x")
    before = path.read_bytes()
    for name in COMMANDS:
        run(name)
    assert path.read_bytes() == before
    assert read is not None
