"""Tail keeping: dropped traces that end in an error or take long arrive whole, the others leave nothing behind."""

from __future__ import annotations

import threading
import time

import pytest
from django.http import HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

import django_otel
from django_otel import runtime
from tests import sizes, views
from tests.app.models import Item

DECISIONS = "django_otel.sampling.decisions"
DROPPED = "django_otel.spans.dropped"
DURATION = "http.server.request.duration"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


def work(request, outcome):
    with django_otel.span("outer"), django_otel.span("inner", step=1):
        Item.objects.count()
    if outcome == "boom":
        raise ValueError("boom")
    if outcome == "slow":
        time.sleep(0.12)
    return HttpResponse(status=500 if outcome == "500" else 404 if outcome == "404" else 200)


async def async_work(request, outcome):
    with django_otel.span("async"):
        if outcome == "boom":
            raise ValueError("boom")
    return HttpResponse()


def stream(request):
    def produce():
        with django_otel.span("chunk"):
            yield b"1"
        time.sleep(0.12)
        yield b"2"

    return StreamingHttpResponse(produce())


SEEN = []


def see(request, status):
    """Sets the status of its request's span, which it keeps."""
    span = trace.get_current_span()
    SEEN.append(span)
    if status:
        span.set_status(StatusCode[status])
    return HttpResponse()


def fail(span, request, response):
    span.set_status(StatusCode.ERROR)


LATE = []


def late(request):
    """Starts a thread that goes on when the response is gone."""
    context, go = otel_context.get_current(), threading.Event()

    def run():
        token = otel_context.attach(context)
        with django_otel.span("late"):
            started.set()
            go.wait(60)
        otel_context.detach(token)

    started = threading.Event()
    thread = threading.Thread(target=run)
    thread.start()
    started.wait(60)
    LATE.append((thread, go))
    return HttpResponse(status=int(request.GET["status"]))


urlpatterns = [
    path("work/<str:outcome>/", work),
    path("async/<str:outcome>/", async_work),
    path("stream/", stream),
    path("late/", late),
    path("see/<str:status>/", see),
    path("see/", see, {"status": ""}),
    path("hello/", views.hello),
]

pytestmark = [pytest.mark.urls(__name__), pytest.mark.django_db]


@pytest.fixture
def client():
    return Client(raise_request_exception=False)


@pytest.fixture(autouse=True)
def nothing_is_held_afterwards():
    yield
    assert runtime.current().traces.tail is None or len(runtime.current().traces.tail) == 0


def sampling(**values):
    return override_settings(OTEL={"SAMPLING": {"RATIO": 0.0, **values}})


@pytest.mark.parametrize(("outcome", "status"), [("boom", 500), ("500", 500)])
def test_a_request_that_ends_in_an_error_arrives_with_all_its_spans(client, otel_spans, otel_metrics, outcome, status):
    with sampling(KEEP_ERRORS=True):
        assert client.get(f"/work/{outcome}/").status_code == status
        client.get("/work/fine/")
        client.get("/work/404/")

    spans = list(otel_spans)
    assert [span.name for span in spans if span.kind is not SpanKind.CLIENT] == [
        "inner", "outer", "GET /work/<str:outcome>/",
    ]  # fmt: skip
    assert sum(span.kind is SpanKind.CLIENT for span in spans) == 1
    assert {span.context.trace_flags.sampled for span in spans} == {True}
    assert {span.attributes["sampling.reason"] for span in spans} == {"error"}
    assert {span.attributes["sampling.weight"] for span in spans} == {1.0}
    assert len({span.context.trace_id for span in spans}) == 1
    by_name = {span.name: span for span in spans}
    assert by_name["inner"].parent.span_id == by_name["outer"].context.span_id
    assert by_name["inner"].attributes["step"] == 1
    root = by_name["GET /work/<str:outcome>/"]
    assert root.status.status_code is StatusCode.ERROR
    assert [event.name for event in root.events] == (["exception"] if outcome == "boom" else [])
    assert otel_metrics.value(DURATION).count == 3
    assert otel_metrics.value(DECISIONS, {"sampling.decision": "dropped", "sampling.reason": "ratio"}) == 3
    assert otel_metrics.value(DECISIONS, {"sampling.decision": "kept", "sampling.reason": "error"}) == 1


def test_a_request_that_takes_long_arrives(client, otel_spans):
    with sampling(KEEP_SLOW_S=0.1):
        client.get("/work/slow/")
    # A limit that no request reaches, however busy the machine is.
    with sampling(KEEP_SLOW_S=600):
        for outcome in ("slow", "fine", "boom"):
            client.get(f"/work/{outcome}/")

    assert len([span for span in otel_spans if span.kind is SpanKind.SERVER]) == 1
    assert {span.attributes["sampling.reason"] for span in otel_spans} == {"slow"}


def test_a_stream_is_as_long_as_its_last_byte(client, otel_spans):
    with sampling(KEEP_SLOW_S=0.1):
        b"".join(client.get("/stream/").streaming_content)

    assert {span.name for span in otel_spans} == {"chunk", "GET /stream/"}


async def test_errors_are_kept_under_asgi(otel_spans):
    with sampling(KEEP_ERRORS=True):
        client = AsyncClient(raise_request_exception=False)
        await client.get("/async/fine/")
        await client.get("/async/boom/")

    assert [span.name for span in otel_spans] == ["async", "GET /async/<str:outcome>/"]


def test_an_error_is_kept_although_the_caller_said_no(client, otel_spans):
    with sampling(KEEP_ERRORS=True):
        client.get("/work/boom/", headers={"traceparent": TRACEPARENT})

    root = next(span for span in otel_spans if span.kind is SpanKind.SERVER)
    assert f"{root.context.trace_id:032x}" == TRACEPARENT[3:35]
    assert f"{root.parent.span_id:016x}" == TRACEPARENT[36:52]


def test_two_requests_of_one_trace_do_not_share_their_lot(client, otel_spans):
    """A caller with flag 00 may call twice within one trace; only the call that failed is kept."""
    with sampling(KEEP_ERRORS=True):
        for outcome in ("fine", "boom", "fine"):
            client.get(f"/work/{outcome}/", headers={"traceparent": TRACEPARENT})

    assert len([span for span in otel_spans if span.kind is SpanKind.SERVER]) == 1
    assert len([span for span in otel_spans if span.name == "inner"]) == 1


def test_a_rule_with_ratio_0_drops_at_first_and_keeps_errors(client, otel_spans):
    with sampling(KEEP_ERRORS=True, RULES=[{"route": "/work/*", "ratio": 0.0}]):
        client.get("/work/fine/")
        client.get("/work/boom/")

    assert len([span for span in otel_spans if span.kind is SpanKind.SERVER]) == 1


def test_the_limit_does_not_starve_errors(client, otel_spans):
    with sampling(RATIO=1.0, KEEP_ERRORS=True, MAX_PER_SECOND=0.001):
        for outcome in ("fine", "fine", "boom", "boom", "boom"):
            client.get(f"/work/{outcome}/")

    roots = [span for span in otel_spans if span.kind is SpanKind.SERVER]
    assert [span.attributes.get("sampling.reason") for span in roots] == [None, "error", "error", "error"]


def test_the_limit_holds_for_what_is_slow(client, otel_spans):
    with sampling(KEEP_SLOW_S=0.0001, MAX_PER_SECOND=0.001):
        for _ in range(3):
            client.get("/work/fine/")

    assert len([span for span in otel_spans if span.kind is SpanKind.SERVER]) == 1


def test_excluded_paths_keep_nothing(client, otel_spans):
    otel = {"SAMPLING": {"RATIO": 0.0, "KEEP_ERRORS": True}, "REQUEST": {"EXCLUDE": ["/work/*"]}}
    with override_settings(OTEL=otel):
        client.get("/work/boom/")
    assert list(otel_spans) == []


def test_a_recorded_error_that_would_have_been_kept_anyway_stands_for_itself_alone(client, otel_spans):
    """Else the weights of errors would add up to more than there were."""
    with sampling(RATIO=0.5, KEEP_ERRORS=True):
        for _ in range(30):
            client.get("/work/boom/")
            client.get("/hello/")

    roots = [span for span in otel_spans if span.kind is SpanKind.SERVER]
    errors = [span for span in roots if span.status.status_code is StatusCode.ERROR]
    assert len(errors) == 30
    assert {span.attributes["sampling.weight"] for span in errors} == {1.0}
    assert {span.attributes.get("sampling.reason") for span in errors} == {None, "error"}
    assert {span.attributes["sampling.weight"] for span in roots if span not in errors} == {2.0}


def test_a_request_of_which_nothing_is_kept_ends_its_span_without_describing_it(client, otel_spans):
    with sampling(KEEP_ERRORS=True, KEEP_SLOW_S=3600):
        client.get("/see/")
        assert len(runtime.current().traces.tail) == 0
    span = SEEN.pop()
    assert not span.is_recording()
    assert span.is_discarded
    assert "http.route" not in span.attributes
    assert list(otel_spans) == []


@pytest.mark.parametrize("fails", [True, False])
def test_a_request_inside_another_span_shares_the_lot_of_that_trace(client, otel_spans, fails):
    with sampling(KEEP_ERRORS=True), django_otel.span("around") as around:
        client.get("/work/fine/")
        if fails:
            around.set_status(StatusCode.ERROR)

    names = [span.name for span in otel_spans if span.kind is not SpanKind.CLIENT]
    assert names == (["inner", "outer", "GET /work/<str:outcome>/", "around"] if fails else [])


@pytest.mark.parametrize(("status", "arrives"), [("ERROR", True), ("OK", False)])
def test_the_status_that_a_view_gives_its_span_decides_as_well(client, otel_spans, status, arrives):
    with sampling(KEEP_ERRORS=True):
        client.get(f"/see/{status}/")
    SEEN.clear()
    assert [span.attributes["http.route"] for span in otel_spans] == ["/see/<str:status>/"] * arrives


def test_the_projects_function_may_make_a_failure_of_a_request(client, otel_spans):
    otel = {"SAMPLING": {"RATIO": 0.0, "KEEP_ERRORS": True}, "REQUEST": {"ENRICH": f"{__name__}.fail"}}
    with override_settings(OTEL=otel):
        client.get("/see/")
    SEEN.clear()
    assert [span.attributes["sampling.reason"] for span in otel_spans] == ["error"]


@pytest.mark.parametrize("status", [200, 500])
def test_a_span_that_outlives_its_request_shares_its_lot(client, otel_spans, status):
    with sampling(KEEP_ERRORS=True):
        client.get(f"/late/?status={status}")
        thread, go = LATE.pop()
        go.set()
        thread.join(60)

    assert [span.name for span in otel_spans] == (["GET /late/", "late"] if status == 500 else [])


def test_a_full_buffer_drops_the_oldest_trace_and_counts_it(otel_spans, otel_metrics):
    """The root of the one that was pushed out is still seen when it fails."""
    with sampling(KEEP_ERRORS=True, TAIL_BUFFER_SPANS=10):
        tracer = runtime.tracer()
        old = tracer.start_span("old", kind=SpanKind.SERVER)
        inside = trace.set_span_in_context(old)
        for number in range(6):
            tracer.start_span(f"old {number}", inside).end()
        new = tracer.start_span("new", kind=SpanKind.SERVER)
        for number in range(6):
            tracer.start_span(f"new {number}", trace.set_span_in_context(new)).end()
        assert len(runtime.current().traces.tail) <= 10
        for root in (new, old):
            root.set_status(Status(StatusCode.ERROR))
            root.end()

    assert [span.name for span in otel_spans] == [*(f"new {number}" for number in range(6)), "new", "old"]
    assert otel_metrics.value(DROPPED, {"django_otel.reason": "tail_buffer"}) == 7


def test_the_buffer_stays_in_its_bound_when_threads_fill_it(otel_spans):
    """Roots that never end, children that never end, from many threads at once."""
    with sampling(KEEP_ERRORS=True, TAIL_BUFFER_SPANS=200):
        tracer, held, seen = runtime.tracer(), [], []

        def fill():
            for _ in range(300):
                root = tracer.start_span("root", otel_context.Context(), SpanKind.SERVER)
                inside = trace.set_span_in_context(root, otel_context.Context())
                held.extend(tracer.start_span("open", inside) for _ in range(3))
                tracer.start_span("ended", inside).end()
                seen.append(len(runtime.current().traces.tail))
                if len(held) % 2:
                    root.end()

        threads = [threading.Thread(target=fill) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert max(seen) <= 200 + len(threads)
        for span in held:
            span.end()
        runtime.current().traces.tail.clear()


def test_spans_per_trace_bounds_what_is_held(client, otel_spans):
    otel = {
        "SAMPLING": {"RATIO": 0.0, "KEEP_ERRORS": True},
        "TRACES": {"LIMITS": {"SPANS_PER_TRACE": 2}},
    }
    with override_settings(OTEL=otel):
        client.get("/work/boom/")
    assert len(list(otel_spans)) == 2


def test_without_tail_keeping_nothing_is_recorded(client, otel_spans):
    """Not even for a moment: the cost of a dropped request is what it was."""
    seen = []
    with sampling(), override_settings(MIDDLEWARE=["django_otel.middleware.OTelMiddleware"]):
        urlpatterns.append(path("look/", lambda request: seen.append(trace.get_current_span()) or HttpResponse()))
        try:
            client.get("/look/")
        finally:
            urlpatterns.pop()
    assert not seen[0].is_recording()
    assert runtime.current().traces.switch.tail is None


def test_switching_it_on_and_off_live_takes_effect_at_once(client, otel_spans):
    from django_otel.sampling.policy import Policy

    sampler = runtime.current().sampler
    with sampling():
        client.get("/work/boom/")
        sampler.swap(Policy(None, "admin", 1, keep_errors=True))
        client.get("/work/boom/")
        sampler.swap(None)
        client.get("/work/boom/")
    assert len([span for span in otel_spans if span.kind is SpanKind.SERVER]) == 1


class Watcher(SpanProcessor):
    """A project's own processor, which counts."""

    begun: list = []  # noqa: RUF012 (emptied by the test)
    ended: list = []  # noqa: RUF012

    def on_start(self, span, parent_context=None):
        self.begun.append(span.get_span_context().span_id)

    def on_end(self, span):
        self.ended.append((span.get_span_context().span_id, span.get_span_context().trace_flags.sampled))


def test_a_projects_own_processor_sees_each_span_end_once(otel_spans):
    """Kept ones with the flag, the others without; as it has seen them begin."""
    from django_otel.export.processors import CleanProcessor

    Watcher.begun.clear()
    Watcher.ended.clear()
    with sampling(KEEP_ERRORS=True):
        runtime.current().traces.switch.parts = (
            *runtime.current().traces.switch.parts,
            CleanProcessor(Watcher(), lambda span: span),
        )
        client = Client(raise_request_exception=False)
        client.get("/work/fine/")
        fine = len(Watcher.begun)
        client.get("/work/boom/")

    assert sorted(Watcher.begun) == sorted(span_id for span_id, _ in Watcher.ended)
    sampled = dict(Watcher.ended)
    assert [sampled[span_id] for span_id in Watcher.begun] == [False] * fine + [True] * (len(Watcher.begun) - fine)


# --- A real server under load. ---


@pytest.mark.process
@pytest.mark.scaled
def test_under_load_every_error_arrives_whole_at_a_real_receiver():
    """Two gunicorn workers with threads, 1 % of new traces recorded, 1 % of the requests an error."""
    from benchmarks.tail import measure

    found = measure(sizes.scaled(0.5, 2.0), 2, keeps=True, least_errors=4)

    assert found["errors"] > 3
    assert found["arrived"] == found["whole"] == found["errors"]
    # About one in a hundred of the others, recorded at first.
    assert found["others"] < 0.1 * found["answered"]


@pytest.mark.heavy
def test_a_full_buffer_stays_in_the_stated_bound():
    """docs/sampling.md: TAIL_BUFFER_SPANS times about 2 KiB, for spans with ten short attributes."""
    from benchmarks.tail import measure_buffer

    bytes_per_span, held = measure_buffer(2000)

    assert held <= 2000
    assert bytes_per_span < 3 * 1024
