"""The default instrumentors on real parts; on and off; hooks; OUTBOUND_HOSTS; what leaves of their spans."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import types

import psycopg2
import psycopg2.sql
import pytest
import redis
import requests
from django.contrib.sessions.models import Session
from opentelemetry import propagate
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind

import django_otel
from django_otel import conf, runtime
from django_otel.base import guard
from django_otel.config.parse import parse
from django_otel.instrumentation import instrumentors
from django_otel.redaction import library_spans
from django_otel.tracing import outbound
from tests import sizes
from tests.http_echo import start_echo
from tests.services import ROOT, serve, server_env, wait_until

SECRETS = ("alice@example.org", "hunter2", "078-05-1120")
HOOK_CALLS: list[str] = []


def named_hook(span, request):
    HOOK_CALLS.append(request.url)


@pytest.fixture(scope="module")
def echo_server():
    with start_echo() as echo:
        yield echo


@pytest.fixture
def echo(echo_server):
    echo_server.requests.clear()
    return echo_server


def everything(span) -> str:
    """All that a span holds, as one text."""
    events = [(event.name, dict(event.attributes or {})) for event in span.events]
    return repr((span.name, dict(span.attributes or {}), events, span.status.description))


def states() -> dict[str, instrumentors.State]:
    return {state.name: state for state in instrumentors.states()}


# --- Real parts. ---


def test_requests_makes_a_client_span_and_sends_its_context(otel_spans, echo):
    """The callee gets the client span's id, in the trace of the caller."""
    with django_otel.span("caller"):
        requests.get(echo.url(path="/a"), timeout=5)
    client, caller = otel_spans.one("GET"), otel_spans.one("caller")
    assert client.kind is SpanKind.CLIENT
    assert client.parent.span_id == caller.context.span_id
    assert echo.last["traceparent"].startswith(f"00-{client.context.trace_id:032x}-{client.context.span_id:016x}-0")
    assert client.attributes["http.request.method"] == "GET"
    assert client.attributes["http.response.status_code"] == 200
    assert client.attributes["url.full"] == echo.url(path="/a")
    assert "http.url" not in client.attributes, "the stable names alone"


def test_requests_duration_is_a_metric_of_the_process(otel_metrics, echo):
    """What instrumentors measure goes through our meter provider, so that /metrics shows it."""
    requests.get(echo.url(), timeout=5)
    assert otel_metrics.value("http.client.request.duration", {"server.port": echo.port}).count == 1
    assert any(family.name == "http.client.request.duration" for family in runtime.collect())


def test_redis_commands_and_pipelines_are_spans(otel_spans, valkey_url):
    """A command is named by itself; a pipeline of 500 has a short name."""
    client = redis.Redis.from_url(valkey_url)
    with django_otel.span("caller"):
        client.set("greeting", "hunter2")
        pipe = client.pipeline()
        for number in range(500):
            pipe.set(f"user:{number}", "alice@example.org")
        pipe.execute()
        pipe.set("a", 1).get("a").execute()
    client.close()
    assert otel_spans.one("SET").attributes["db.query.text"] == "SET ? ?"
    assert otel_spans.one("SET").attributes["db.system.name"] == "redis"
    assert len(otel_spans.one("PIPELINE SET").attributes["db.query.text"]) <= 1000
    assert otel_spans.one("PIPELINE").attributes["db.query.text"] == "SET ? ?\nGET ?"
    assert {span.parent.span_id for span in otel_spans if span.name != "caller"} == {
        otel_spans.one("caller").context.span_id
    }
    assert not any(secret in everything(span) for span in otel_spans for secret in SECRETS)


def test_redis_arguments_do_not_leave_in_a_command_of_one_word_or_in_an_error(otel_spans, valkey_url):
    """redis-py takes a whole line as the command, and the server repeats arguments in its errors."""
    client = redis.Redis.from_url(valkey_url)
    with django_otel.span("caller"):
        client.execute_command("SET password hunter2")
        with pytest.raises(redis.ResponseError, match="hunter2"):
            client.execute_command("NOSUCH", "hunter2")
        with pytest.raises(redis.ResponseError, match="hunter2"):
            pipe = client.pipeline()
            pipe.set("text", "x").incrby("text", "hunter2")
            pipe.execute()
    client.close()
    assert [span.name for span in otel_spans] == ["SET", "NOSUCH", "PIPELINE", "caller"]
    assert "hunter2" not in "".join(map(everything, otel_spans))


def test_redis_spans_follow_the_stable_conventions(otel_spans, valkey_url):
    client = redis.Redis.from_url(valkey_url, db=3)
    with django_otel.span("caller"):
        client.set("a", 1)
        client.execute_command("CLIENT GETNAME")
        client.pipeline().set("a", 1).set("b", 2).execute()
        client.pipeline().set("a", 1).get("a").execute()
    client.close()
    found = [dict(span.attributes) for span in otel_spans if span.name != "caller"]
    assert [attributes["db.operation.name"] for attributes in found] == [
        "SET", "CLIENT GETNAME", "PIPELINE SET", "PIPELINE",
    ]  # fmt: skip
    assert [attributes.get("db.operation.batch.size") for attributes in found] == [None, None, 2, 2]
    for attributes in found:
        assert isinstance(attributes["server.port"], int)
        assert not [
            key for key in attributes if key.startswith(("db.redis.", "net.")) or key in ("db.system", "db.statement")
        ]


def test_redis_outside_any_span_follows_the_rule_of_queries(otel_spans, valkey_url, settings, db):
    """A Celery worker asks its broker all the time: each question would be a trace of one span."""
    client = redis.Redis.from_url(valkey_url)

    def ask():
        client.ping()
        client.pipeline().get("a").execute()
        Session.objects.count()

    ask()
    with django_otel.untraced:
        ask()
    assert list(otel_spans) == []
    with django_otel.span("caller"):
        ask()
    assert len(otel_spans) == 4
    otel_spans.clear()
    settings.OTEL = {"DATABASE": {"ROOT_SPANS": True}}
    ask()
    assert [span.parent for span in otel_spans] == [None] * 3
    otel_spans.clear()
    settings.OTEL = {"DATABASE": {"ROOT_SPANS": True}, "SAMPLING": {"RATIO": 0.0}}
    ask()
    with django_otel.span("caller"):
        ask()
    assert list(otel_spans) == []
    client.close()


def test_psycopg2_statements_leave_without_literals(otel_spans, postgres):
    """Connections of the project's own, not Django's: the official instrumentor records them verbatim."""
    connection = psycopg2.connect(postgres)
    with connection.cursor() as cursor, django_otel.span("caller"):
        cursor.execute("/* for alice@example.org */ SELECT 'alice@example.org', 'hunter2' WHERE 7 = %s", (7,))
        cursor.execute(psycopg2.sql.SQL("SELECT '078-05-1120'"))
        cursor.execute(psycopg2.sql.SQL("SELECT {}").format(psycopg2.sql.Literal("hunter2")))
        with pytest.raises(psycopg2.Error):
            cursor.execute("SELECT 'alice@example.org'::int")
    connection.close()
    queries = [span for span in otel_spans if span.name != "caller"]
    assert len(queries) == 4
    # Before 0.66b0 the instrumentor records nothing of an `SQL` but the database's name.
    composed = {"SELECT"} if "db.query.text" in queries[1].attributes else {"postgres"}
    assert [{span.name} for span in queries] == [{"SELECT"}, composed, {"SELECT"}, {"SELECT"}]
    assert {span.attributes["db.system.name"] for span in queries} == {"postgresql"}
    assert {span.parent.span_id for span in queries} == {otel_spans.one("caller").context.span_id}
    assert queries[0].attributes["db.query.text"] == "SELECT ?, ? WHERE ? = %s"
    assert queries[1].attributes.get("db.query.text", "SELECT ?") == "SELECT ?"
    assert not [secret for secret in SECRETS if secret in "".join(map(everything, queries))]


def test_statement_off_leaves_no_statement_of_a_library(otel_spans, postgres, settings):
    """DATABASE.STATEMENT holds for connections of the project's own as well."""
    settings.OTEL = {"DATABASE": {"STATEMENT": "off"}}
    connection = psycopg2.connect(postgres)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    connection.close()
    assert "db.query.text" not in otel_spans.one("SELECT").attributes


def test_query_strings_of_calls_stay_here_unless_asked_for(otel_spans, echo, settings):
    """A query string may hold anything; REQUEST.QUERY asks for it, and then secrets in it are redacted."""
    requests.get(echo.url(path="/a?q=private&access_token=hunter2"), timeout=5)
    assert otel_spans.one("GET").attributes["url.full"] == echo.url(path="/a")
    otel_spans.clear()
    settings.OTEL = {"REQUEST": {"QUERY": True}}
    requests.get(echo.url(path="/a?q=private&access_token=hunter2"), timeout=5)
    url = otel_spans.one("GET").attributes["url.full"]
    assert "q=private" in url
    assert "hunter2" not in url


def test_failed_call_leaves_no_query_string_in_events_or_status(otel_spans):
    """The exception of requests holds the whole URL."""
    with pytest.raises(requests.ConnectionError, match="hunter2"):
        requests.get("http://127.0.0.1:9/x?note=hunter2", timeout=1)
    span = otel_spans.one("GET")
    assert span.attributes["error.type"] == "ConnectionError"
    assert span.events
    assert "hunter2" not in everything(span)


# --- On and off. ---


def test_defaults_are_on_and_said_to_be():
    """psycopg2, redis and requests are installed here."""
    assert {name: state.is_on for name, state in states().items()} == {
        "psycopg2": True,
        "redis": True,
        "requests": True,
    }


def test_taking_a_name_out_switches_it_off_and_back_on(otel_spans, echo, settings):
    """The library is as it was before, and instrumented again when the setting is undone."""
    assert hasattr(requests.Session.send, "opentelemetry_instrumentation_requests_applied")
    settings.OTEL = {"INSTRUMENT": []}
    assert not hasattr(requests.Session.send, "opentelemetry_instrumentation_requests_applied")
    assert not hasattr(redis.Redis.execute_command, "__wrapped__")
    assert not hasattr(psycopg2.connect, "__wrapped__")
    requests.get(echo.url(), timeout=5)
    assert list(otel_spans) == []
    assert "traceparent" not in echo.last
    settings.OTEL = {}
    requests.get(echo.url(), timeout=5)
    assert len(otel_spans.named("GET")) == 1


def test_an_open_connection_is_silent_once_its_instrumentor_is_off(otel_spans, postgres, settings):
    """The driver's own patch cannot be taken back from a living connection, so its spans are."""
    connection = psycopg2.connect(postgres)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        settings.OTEL = {"INSTRUMENT": ["requests"]}
        otel_spans.clear()
        cursor.execute("SELECT 2")
        assert list(otel_spans) == []
        settings.OTEL = {}
        cursor.execute("SELECT 3")
    connection.close()
    assert len(otel_spans.named("SELECT")) == 1


def test_switching_telemetry_off_takes_everything_back(settings):
    """ENABLED = False leaves no library instrumented."""
    settings.OTEL = {"ENABLED": False}
    assert instrumentors.states() == ()
    assert not hasattr(requests.Session.send, "opentelemetry_instrumentation_requests_applied")


def test_installing_again_with_the_same_settings_touches_nothing():
    """Idempotent: the patched function stays the same object."""
    before = requests.Session.send
    instrumentors.install(conf.get_config())
    instrumentors.install(conf.get_config())
    assert requests.Session.send is before


def test_what_another_tool_has_instrumented_is_left_alone(settings):
    """Neither switched on again nor off."""
    settings.OTEL = {"INSTRUMENT": []}
    RequestsInstrumentor().instrument()
    theirs = requests.Session.send
    try:
        settings.OTEL = {}
        assert requests.Session.send is theirs
        assert not states()["requests"].is_on
        assert "another tool" in states()["requests"].reason
        settings.OTEL = {"ENABLED": False}
        assert requests.Session.send is theirs
    finally:
        RequestsInstrumentor().uninstrument()


def test_a_listed_name_that_is_not_there_is_said_once(settings, caplog):
    """Only a name the project wrote down is complained about."""
    guard.reset()
    settings.OTEL = {"INSTRUMENT": ["requests", "flask-nonsense"]}
    settings.OTEL = {"INSTRUMENT": ["flask-nonsense", "requests"]}
    assert len([record for record in caplog.records if "flask-nonsense" in record.getMessage()]) == 1
    assert states()["flask-nonsense"].is_complaint
    assert "opentelemetry-instrumentation-flask-nonsense" in states()["flask-nonsense"].reason
    assert states()["requests"].is_on


def test_a_default_whose_library_is_absent_is_silent(monkeypatch, caplog):
    """The same obstacle, but for a name that is not in the settings."""
    monkeypatch.setattr(instrumentors, "_find", lambda name: None)
    config = parse({}, {})
    guard.reset()
    instrumentors.uninstall()
    try:
        instrumentors.install(config)
        assert not any(state.is_on or state.is_complaint for state in instrumentors.states())
        assert caplog.records == []
    finally:
        monkeypatch.undo()
        instrumentors.install(conf.get_config())
    assert states()["requests"].is_on


def test_an_obstacle_names_the_version_that_is_wanted(monkeypatch):
    """A library that is too old or too new is explained in words, without packaging's markers."""
    import importlib.metadata

    from opentelemetry.instrumentation import dependencies

    real = importlib.metadata.version
    monkeypatch.setattr(dependencies, "version", lambda name: "0.1" if name == "redis" else real(name))
    obstacle = instrumentors.find_obstacle("redis")
    assert "redis 0.1" in obstacle
    assert "redis >= 2.6" in obstacle.replace(">=2.6", " >= 2.6")
    assert "extra ==" not in obstacle


def test_django_is_refused_with_an_explanation():
    """Naming it would measure every request twice."""
    assert "SPANS" in instrumentors.find_obstacle("django")
    assert "django" not in instrumentors.available()
    assert {"requests", "redis", "psycopg2", "httpx"} <= set(instrumentors.available())


def test_an_instrumentor_that_raises_does_not_raise_out_of_install(monkeypatch, settings, caplog):
    """ready() must not fail, and what was half patched is taken back."""
    undone = []
    settings.OTEL = {"INSTRUMENT": []}
    # Mended before the settings are put back, or requests would stay off for the tests that follow.
    with monkeypatch.context() as broken:
        broken.setattr(RequestsInstrumentor, "_instrument", lambda self, **_: 1 / 0)
        broken.setattr(RequestsInstrumentor, "_uninstrument", lambda self, **_: undone.append(1))
        guard.reset()
        settings.OTEL = {"INSTRUMENT": ["requests", "redis"]}
    assert "ZeroDivisionError" in states()["requests"].reason
    assert undone == [1]
    assert states()["redis"].is_on, "the others are not affected"
    settings.OTEL = {"INSTRUMENT": ["requests"]}
    assert states()["requests"].is_on, "the next change of the settings tries again"


def run_python(code: str, **env: str) -> str:
    """Run `code` with the test project set up in a process of its own; what it printed."""
    environment = server_env(None, TEST_SQLITE=":memory:", **env)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


OPT_IN = "import os, django; django.setup(); print(os.environ.get('OTEL_SEMCONV_STABILITY_OPT_IN'))"


def test_stable_names_are_opted_in_before_the_first_instrumentor():
    """Instrumentors read the variable once; without it they use old names and leak query strings into labels."""
    assert run_python(OPT_IN).strip() == "http,database"
    modes = (
        "import django; django.setup();"
        # Their libraries are not imported before the project does it.
        "import requests;"
        "from opentelemetry.instrumentation import _semconv as s;"
        "c = s._OpenTelemetrySemanticConventionStability; t = s._OpenTelemetryStabilitySignalType;"
        "print(*[c._get_opentelemetry_stability_opt_in_mode(x).value for x in (t.HTTP, t.DATABASE)])"
    )
    assert run_python(modes).split() == ["http", "database"]


def test_an_opt_in_of_the_project_is_kept():
    """Only a variable that is unset is set."""
    assert run_python(OPT_IN, OTEL_SEMCONV_STABILITY_OPT_IN="http/dup").strip() == "http/dup"


@pytest.mark.parametrize(
    "variable",
    ["OTEL_PYTHON_EXCLUDED_URLS", pytest.param("OTEL_PYTHON_REQUESTS_EXCLUDED_URLS", marks=pytest.mark.long)],
)
def test_a_list_of_urls_that_cannot_be_read_stops_no_instrumentor(variable):
    """The official one would fail: calls of the library would leave no spans."""
    states = (
        "import os, django; django.setup(); import requests;"
        "from django_otel.instrumentation import instrumentors;"
        f"print(os.environ['{variable}'], *[s.reason for s in instrumentors.states() if s.name == 'requests'])"
    )
    assert run_python(states, **{variable: "("}).strip() == "( on"


def test_nothing_is_opted_in_when_nothing_is_instrumented():
    """The environment is left alone without need."""
    assert run_python(OPT_IN, TEST_OTEL='{"INSTRUMENT": []}').strip() == "None"


# --- Arguments and hooks. ---


def test_arguments_of_the_settings_reach_the_instrumentor(otel_spans, echo, settings):
    """{name: {keyword: value}}; a hook may be a dotted path."""
    settings.OTEL = {
        "INSTRUMENT": {
            "requests": {
                "excluded_urls": "private",
                "request_hook": "tests.instrumentation.test_instrumentors.named_hook",
            }
        }
    }
    HOOK_CALLS.clear()
    requests.get(echo.url(path="/private"), timeout=5)
    requests.get(echo.url(path="/public"), timeout=5)
    assert [span.attributes["url.full"] for span in otel_spans] == [echo.url(path="/public")]
    from tests.instrumentation import test_instrumentors

    assert test_instrumentors.HOOK_CALLS == [echo.url(path="/public")]


def test_a_raising_hook_does_not_break_the_call(otel_spans, echo, settings, caplog):
    """The official instrumentor calls hooks unprotected, in the middle of the application's own call."""

    def broken_request_hook(span, request):
        raise RuntimeError("hook")

    def broken_response_hook(span, request, response):
        raise RuntimeError("hook")

    settings.OTEL = {
        "INSTRUMENT": {"requests": {"request_hook": broken_request_hook, "response_hook": broken_response_hook}}
    }
    guard.reset()
    assert requests.get(echo.url(), timeout=5).status_code == 200
    assert requests.get(echo.url(), timeout=5).status_code == 200
    assert len(otel_spans.named("GET")) == 2
    assert "traceparent" in echo.last
    assert len([record for record in caplog.records if "request_hook" in record.getMessage()]) == 1


def test_a_hook_may_be_interrupted(echo, settings):
    """Only Exception is contained."""

    def interrupted(span, request):
        raise KeyboardInterrupt

    settings.OTEL = {"INSTRUMENT": {"requests": {"request_hook": interrupted}}}
    with pytest.raises(KeyboardInterrupt):
        requests.get(echo.url(), timeout=5)


# --- OUTBOUND_HOSTS. ---


@sizes.each(
    ("url", "patterns", "is_allowed"),
    [
        ("http://anything/", None, True),
        ("http://anything/", (), False),
        ("https://api.example.com/x", ("api.example.com",), True),
        ("https://API.Example.com./x", ("api.example.COM",), True),
        ("https://evil-api.example.com/", ("api.example.com",), False),
        ("https://api.example.com.evil.org/", ("api.example.com", "*.example.com"), False),
        ("http://a.b.internal/", ("*.internal",), True),
        ("http://internal/", ("*.internal",), False),
        ("http://pay:8001/", ("pay:8001",), True),
        ("http://pay:8002/", ("pay:8001",), False),
        ("https://pay/", ("pay:443",), True),
        ("http://pay:9/", ("pay:*",), True),
        ("http://api.example.com@evil.org/", ("api.example.com",), False),
        ("http://[::1]:8000/", ("[::1]:8000",), True),
        ("http://[::1]:8000/", ("::1",), True),
        ("http://[::1]:8001/", ("[::1]:8000",), False),
        ("http://host:notaport/", ("*",), False),
        ("not a url", ("*",), False),
    ],
)
def test_host_patterns(url, patterns, is_allowed):
    """Globs on the host, with a port if they name one; what cannot be read is refused."""
    assert outbound.is_host_allowed(url, patterns) is is_allowed


def test_headers_go_to_listed_hosts_only(otel_spans, echo, settings):
    """The call to another host is traced all the same."""
    settings.OTEL = {"PROPAGATION": {"OUTBOUND_HOSTS": ["localhost"]}}
    with django_otel.span("caller"):
        requests.get(echo.url("localhost"), timeout=5)
        requests.get(echo.url("127.0.0.1"), timeout=5)
        requests.get(echo.url("localhost"), timeout=5)
    assert echo.traced_hosts() == [("localhost", True), ("127.0.0.1", False), ("localhost", True)]
    assert len(otel_spans.named("GET")) == 3


def test_a_redirect_to_an_unlisted_host_takes_no_headers_along(echo, settings):
    """requests copies the request, trace headers included, to wherever it is redirected."""
    settings.OTEL = {"PROPAGATION": {"OUTBOUND_HOSTS": ["localhost"]}}
    requests.get(echo.url("localhost", redirect_to=echo.url("127.0.0.1")), timeout=5)
    assert echo.traced_hosts() == [("localhost", True), ("127.0.0.1", False)]


def test_headers_the_caller_copied_are_taken_out_for_an_unlisted_host(echo, settings):
    """A proxy view that forwards its inbound headers would hand the trace on."""
    settings.OTEL = {"PROPAGATION": {"OUTBOUND_HOSTS": ["localhost"]}}
    inbound = {"Traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01", "baggage": "a=b", "x-kept": "1"}
    requests.get(echo.url("127.0.0.1"), headers=inbound, timeout=5)
    assert not {"traceparent", "baggage"} & set(echo.last)
    assert echo.last["x-kept"] == "1"


def test_a_refusal_does_not_outlive_its_call(echo, settings):
    """The verdict is for one client span; what the project injects itself goes out."""
    settings.OTEL = {"PROPAGATION": {"OUTBOUND_HOSTS": ["localhost"]}}
    with django_otel.span("caller"):
        requests.get(echo.url("127.0.0.1"), timeout=5)
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
    assert "traceparent" in carrier


def test_the_projects_hook_runs_beside_our_verdict(echo, settings):
    """Also when it raises, and also when it makes a call of its own."""

    def hook(span, request):
        if "inner" not in request.url:
            requests.get(echo.url("127.0.0.1", "/inner"), timeout=5)
            raise RuntimeError("hook")

    settings.OTEL = {
        "PROPAGATION": {"OUTBOUND_HOSTS": ["localhost"]},
        "INSTRUMENT": {"requests": {"request_hook": hook}},
    }
    requests.get(echo.url("localhost"), timeout=5)
    assert echo.traced_hosts() == [("127.0.0.1", False), ("localhost", True)]


def test_verdicts_of_threads_do_not_mix(echo, settings):
    """Two threads call two hosts at the same time, many times."""
    settings.OTEL = {"PROPAGATION": {"OUTBOUND_HOSTS": ["localhost"]}}

    def call(host):
        for _ in range(20):
            requests.get(echo.url(host), timeout=5)

    threads = [threading.Thread(target=call, args=(host,)) for host in ("localhost", "127.0.0.1")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(set(echo.traced_hosts())) == [("127.0.0.1", False), ("localhost", True)]


# --- Cleaning, without a server. ---


def build_span(scope: str, name: str, **attributes: object) -> ReadableSpan:
    return ReadableSpan(
        name,
        SpanContext(1, 2, is_remote=False),
        attributes=attributes,
        instrumentation_scope=InstrumentationScope(scope),
        start_time=1,
        end_time=2,
    )


def test_documents_found_by_a_search_do_not_leave():
    """The official instrumentor copies them into attributes, and the query."""
    span = build_span(
        "opentelemetry.instrumentation.redis",
        "redis.search",
        **{
            "db.system": "redis",
            "redis.search.index": "people",
            "redis.search.total": 1,
            "redis.search.query": "@email:alice@example.org",
            "redis.search.xdoc_7.email": "alice@example.org",
        },
    )
    cleaned = library_spans.clean_span(span)
    assert dict(cleaned.attributes) == {
        "db.system.name": "redis",
        "db.operation.name": "FT.SEARCH",
        "redis.search.index": "people",
        "redis.search.total": 1,
    }
    assert cleaned.name == "redis.search"


@pytest.mark.parametrize(
    ("statement", "text", "name"),
    [
        ("-- alice@example.org\nSELECT 1", "SELECT ?", "SELECT"),
        ("(SELECT 'hunter2')", "(SELECT ?)", "SELECT"),
        ("SELECT'hunter2'", "SELECT ?", "SELECT"),
        ("SQL('SELECT \\'hunter2\\'')", "SELECT ?", "SELECT"),
        ("UPDATE users SET ssn = '078-05-1120", None, "UPDATE users"),
    ],
)
def test_names_and_statements_of_driver_spans_hold_no_literal(statement, text, name):
    """Theirs is named by the statement's first word, whatever that is."""
    span = build_span(
        "opentelemetry.instrumentation.psycopg2",
        statement.split()[0],
        **{"db.system.name": "postgresql", "db.query.text": statement, "db.operation.name": statement.split()[0]},
    )
    cleaned = library_spans.clean_span(span)
    assert cleaned.name == name
    assert cleaned.attributes["db.operation.name"] == name.split()[0]
    assert not [secret for secret in SECRETS if secret in everything(cleaned)]
    if text is not None:
        assert cleaned.attributes["db.query.text"].replace("SELECT?", "SELECT ?") == text


def test_spans_of_the_project_pass_untouched():
    """Cleaning is for the official instrumentors; a project's own span is its own business (and the scrubber's)."""
    span = build_span(
        "shop", "x?y", **{"url.full": "http://h/?a=1", "db.system.name": "redis", "db.statement": "SET a b"}
    )
    assert library_spans.clean_span(span) is span


def test_a_span_with_nothing_to_clean_is_the_same_object():
    """No copy is made without need."""
    span = build_span("opentelemetry.instrumentation.requests", "GET", **{"url.full": "http://h/a"})
    assert library_spans.clean_span(span) is span


def test_what_the_sdk_dropped_is_still_counted():
    """A cleaned copy must not hide that limits were met."""
    from opentelemetry.attributes import BoundedAttributes

    span = build_span("opentelemetry.instrumentation.requests", "GET")
    span._attributes = BoundedAttributes(2, {"a": 1, "b": 2, "url.full": "http://h/?q=1"})
    cleaned = library_spans.clean_span(span)
    assert cleaned.attributes["url.full"] == "http://h/"
    assert cleaned.dropped_attributes == span.dropped_attributes == 1


def test_importing_instrumentors_imports_no_instrumented_library():
    """It is lazy: a library is imported when its instrumentor is switched on, not before."""
    code = (
        "import sys, django_otel.instrumentation.instrumentors;"
        "print([name for name in ('requests', 'redis', 'psycopg2', 'httpx', 'fastapi') if name in sys.modules])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# --- REQUEST.SPANS = "instrumentor": the official DjangoInstrumentor. ---


@pytest.mark.parametrize("kind", ["gunicorn", "uvicorn"])
def test_official_instrumentor_makes_the_span_and_we_the_metrics(kind, receiver):
    """One server span, theirs; one count per request, ours; our own pages and excluded paths in neither."""
    otel = {
        "REQUEST": {"SPANS": "instrumentor", "EXCLUDE": ["/hello*"]},
        "TRACES": {"ENDPOINT": receiver.url, "BATCH": {"DELAY_S": 0.1}},
        "METRICS_VIEW": {"ALLOW": "all"},
    }
    with serve(kind, otel) as server:
        assert server.get("/orders/3/?token=hunter2")[0] == 200
        assert server.get("/hello/")[0] == 200
        assert server.get("/livez")[0] == 200
        wait_until(lambda: any(span.name == "order.load" for _, span in receiver.spans()), 60, "the view's span")
        wait_until(lambda: any(span.kind == 2 for _, span in receiver.spans()), 60, "the server span")
        page = server.get("/metrics")[2].decode()
    servers = [span for _, span in receiver.spans() if span.kind == 2]
    assert len(servers) == 1
    assert "hunter2" not in str(servers[0])
    inner = next(span for _, span in receiver.spans() if span.name == "order.load")
    assert inner.parent_span_id == servers[0].span_id
    counts = [line for line in page.splitlines() if line.startswith("http_server_request_duration_seconds_count")]
    assert len(counts) == 1, counts
    assert 'http_route="/orders/<int:pk>/"' in counts[0]
    assert counts[0].endswith(" 1") or counts[0].endswith(" 1.0")


def test_our_own_exports_are_not_measured(receiver):
    """The OTLP exporter calls with requests, which is instrumented: a span for each export would never end."""
    with serve("gunicorn", {"TRACES": {"ENDPOINT": receiver.url, "BATCH": {"DELAY_S": 0.05}}}) as server:
        for count in (1, 2, 3, 4):
            assert server.get("/hello/")[0] == 200
            wait_until(lambda wanted=count: len(receiver.spans()) >= wanted, 60, "the span")
            wait_until(lambda wanted=count: len(receiver.requests) >= wanted, 60, "the export")
    assert {span.name for _, span in receiver.spans()} == {"GET /hello/"}
    assert "traceparent" not in {name for _, headers, _ in receiver.requests for name in headers}


def test_official_instrumentor_goes_out_of_the_middleware_again(settings):
    """The project's own list is not edited, and the setting is as it was."""
    before = settings.MIDDLEWARE
    kept = list(before)
    settings.OTEL = {"REQUEST": {"SPANS": "instrumentor"}}
    assert settings.MIDDLEWARE[0] == instrumentors.DJANGO_MIDDLEWARE
    assert before == kept
    settings.OTEL = {"REQUEST": {"SPANS": "instrumentor", "EXCLUDE": ["/x*"]}}
    assert settings.MIDDLEWARE.count(instrumentors.DJANGO_MIDDLEWARE) == 1
    settings.OTEL = {}
    assert settings.MIDDLEWARE == kept


def test_official_instrumentor_of_another_tool_is_left_alone(settings):
    """Switching ours off must not take theirs out."""
    from opentelemetry.instrumentation.django import DjangoInstrumentor

    settings.MIDDLEWARE = list(settings.MIDDLEWARE)
    DjangoInstrumentor().instrument()
    try:
        assert instrumentors.is_django_instrumented_elsewhere()
        settings.OTEL = {"REQUEST": {"SPANS": "instrumentor"}}
        settings.OTEL = {}
        assert instrumentors.DJANGO_MIDDLEWARE in settings.MIDDLEWARE
    finally:
        DjangoInstrumentor().uninstrument()
    assert not instrumentors.is_django_instrumented_elsewhere()


@pytest.mark.parametrize(
    ("root", "url", "is_excluded"),
    [
        ("", "http://h/metrics?", True),
        ("ops/", "http://h/ops/livez?", True),
        ("ops/", "http://h/livez?", False),
        ("ops/", "http://h/metrics?", False),
        ("ops/", "http://h/hello/?", False),
        ("ops/", "http://h/x/y?", True),
    ],
)
def test_official_instrumentor_leaves_our_pages_out_where_they_are_mounted(root, url, is_excluded, settings):
    """A page of the project at /metrics is traced like any other."""
    from django.urls import include, path
    from opentelemetry.instrumentation.django.middleware.otel_middleware import _DjangoMiddleware

    urlconf = types.ModuleType("instrumentor_urls")
    urlconf.urlpatterns = [path(root, include("django_otel.urls"))]
    if root:
        urlconf.urlpatterns.append(path("metrics", lambda request: None))
    settings.ROOT_URLCONF = urlconf
    settings.OTEL = {"REQUEST": {"SPANS": "instrumentor", "EXCLUDE": ["/x/*"]}}
    assert _DjangoMiddleware._excluded_urls.url_disabled(url) is is_excluded


@sizes.each(
    ("pattern", "url", "is_excluded"),
    [
        ("/health", "http://h/health", True),
        ("/health", "http://h:8000/health?", True),
        ("/health", "http://h/healthy", False),
        ("/health", "http://h/a/health", False),
        ("/static/*", "https://h/static/a/b.css?v=1", True),
        ("/a,b/*", "http://h/a,b/c", True),
        ("*.ico", "http://h/favicon.ico", True),
        ("*.ico", "http://h/page?x=.ico", False),
        ("/none", "http://h/metrics", True),
    ],
)
def test_path_patterns_become_the_instrumentors_url_patterns(pattern, url, is_excluded):
    """Its exclude list is searched for in whole URLs and split at commas; ours is globs on paths."""
    from opentelemetry.util.http import parse_excluded_urls

    excluded = parse_excluded_urls(instrumentors.build_excluded_urls([pattern]))
    assert excluded.url_disabled(url) is is_excluded
