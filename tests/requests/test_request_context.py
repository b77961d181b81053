"""What is current while a request is served: a context of the API, for every reader."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
from django.http import HttpResponse
from django.test import RequestFactory
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from django_otel import runtime
from django_otel.base.sdk_compat import SPAN_KEY
from django_otel.middleware import OTelMiddleware
from django_otel.requests import record
from django_otel.requests.record import REQUEST_KEY, RequestRecord
from django_otel.sampling.policy import Policy

PARENT = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}


@pytest.fixture(params=[0.0, 1.0, 0.5], ids=["dropped", "recorded", "by trace id"])
def ratio(request):
    runtime.current().sampler.swap(Policy(request.param, "admin", 1))
    yield request.param
    runtime.current().sampler.swap(None)


@pytest.fixture
def dropped():
    runtime.current().sampler.swap(Policy(0.0, "admin", 1))
    yield
    runtime.current().sampler.swap(None)


def inside(view, headers=None):
    """What `view()` returns when it is called within a request."""
    found = []

    def get_response(request):
        found.append(view())
        return HttpResponse("x")

    OTelMiddleware(get_response)(RequestFactory().get("/hello/", headers=headers or {}))
    return found[0]


# --- Reading. ---


def test_it_is_read_as_any_mapping_is(ratio):
    def view():
        here = context.get_current()
        assert type(here) is RequestRecord and isinstance(here, Context)
        span, other = trace.get_current_span(), object()
        whole = {SPAN_KEY: span, REQUEST_KEY: here}
        assert here.get(SPAN_KEY) is here[SPAN_KEY] is context.get_value(SPAN_KEY) is span
        assert here.get(REQUEST_KEY) is here[REQUEST_KEY] is here
        assert here.get("other") is None and here.get("other", other) is other
        with pytest.raises(KeyError, match="other"):
            here["other"]
        assert SPAN_KEY in here and REQUEST_KEY in here and "other" not in here
        assert len(here) == 2 and bool(here)
        assert list(here) == list(here.keys()) == list(whole) == list(reversed(list(reversed(here))))
        assert [*here.items()] == [*whole.items()] and [*here.values()] == [*whole.values()]
        for copied in (here.copy(), dict(here), {**here}, dict(Context(here)), here | {}, {} | here):
            assert type(copied) is dict and copied.keys() == whole.keys()
            assert all(copied[key] is whole[key] for key in whole)
        assert (here | {"a": 1})["a"] == ({"a": 1} | here)["a"] == 1
        assert here == here and here == Context(here) and here != Context() and here != Context({SPAN_KEY: span})
        assert repr(here) == "<RequestRecord of a GET request>", "nothing of its path, which may hold a secret"

    inside(view)


def test_two_requests_are_two_contexts(ratio):
    first, second = (inside(context.get_current) for _ in range(2))
    assert first != second
    assert trace.get_current_span(first).get_span_context() != trace.get_current_span(second).get_span_context()


def test_it_cannot_be_changed(ratio):
    def view():
        here = context.get_current()
        changes = (
            lambda: here.__setitem__("a", 1), lambda: here.__delitem__(SPAN_KEY), lambda: here.update(a=1),
            lambda: here.pop(SPAN_KEY), here.popitem, here.clear, lambda: here.setdefault("a", 1),
            lambda: here.__ior__({"a": 1}),
        )  # fmt: skip
        for change in changes:
            with pytest.raises(ValueError):
                change()
        assert len(here) == 2

    inside(view)


# --- Contexts made from it. ---


def test_what_is_added_to_it_keeps_the_request_and_its_span(ratio):
    def view():
        here, span = context.get_current(), trace.get_current_span()
        for further in (
            context.set_value("a", 1), baggage.set_baggage("a", "1"), trace.set_span_in_context(span), Context(here),
        ):  # fmt: skip
            assert type(further) is Context
            token = context.attach(further)
            try:
                assert trace.get_current_span() is span
                assert record.current() is here
            finally:
                context.detach(token)
        assert context.get_current() is here

    inside(view)


def test_where_something_was_current_before_it_still_is_and_the_request_is_added(ratio):
    token = context.attach(context.set_value("tenant", "a"))
    try:

        def view():
            here = context.get_current()
            assert type(here) is Context and here["tenant"] == "a"
            assert record.current().span is trace.get_current_span() is here[SPAN_KEY]

        inside(view)
    finally:
        context.detach(token)


def test_nothing_of_it_is_left_to_the_garbage_collector(ratio):
    """It refers to itself by what it answers, and by nothing that it holds."""

    def view():
        here = context.get_current()
        assert here[REQUEST_KEY] is here
        assert trace.get_current_span() is not trace.INVALID_SPAN
        return weakref.ref(here)

    gc.disable()
    try:
        assert inside(view)() is None
    finally:
        gc.enable()


# --- The span that is not recorded. ---


def test_a_span_that_is_not_recorded_is_one_for_all_that_ask(dropped):
    def view():
        here = context.get_current()
        assert here.span_or_none is None, "not asked for yet"
        begin = threading.Barrier(8)
        found = []

        def ask():
            begin.wait()
            found.append(trace.get_current_span(here))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(found) == 8 and len(set(map(id, found))) == 1
        assert found[0] is trace.get_current_span() is here.span
        assert found[0].get_span_context().is_valid and not found[0].is_recording()
        return here, found[0]

    here, span = inside(view)
    assert here.span is span, "also when the request is over"


def test_the_first_who_asks_may_come_after_the_request(dropped):
    here = inside(context.get_current)
    assert trace.get_current_span(here).get_span_context().is_valid


def test_the_trace_id_is_the_one_that_decided(otel_spans):
    """Services that receive it decide alike by the same ratio."""
    sampler = runtime.current().sampler
    sampler.swap(Policy(0.5, "admin", 1))
    try:
        seen = [inside(lambda: trace.get_current_span().get_span_context()) for _ in range(60)]
        assert len({found.trace_flags.sampled for found in seen}) == 2
        assert all(sampler.decide(found.trace_id) is bool(found.trace_flags.sampled) for found in seen)
    finally:
        sampler.swap(None)


def test_services_that_are_called_and_spans_that_begin_belong_to_its_trace(dropped, otel_spans):
    def view():
        with runtime.tracer().start_as_current_span("inside") as span:
            headers = {}
            propagate.inject(headers)
            own = record.current().span.get_span_context()
            assert span.get_span_context().trace_id == own.trace_id
            assert not span.is_recording()
            assert headers["traceparent"].split("-")[1] == f"{own.trace_id:032x}"

    inside(view)
    assert not otel_spans


def test_below_a_caller_that_does_not_record_it_has_the_callers_trace_id(otel_spans):
    found = inside(lambda: (type(context.get_current()), trace.get_current_span().get_span_context()), PARENT)
    assert found[0] is RequestRecord
    assert f"{found[1].trace_id:032x}" == PARENT["traceparent"].split("-")[1]
    assert not otel_spans


def test_after_discard_span_what_follows_is_no_trace_of_its_own(otel_spans):
    def view():
        here, span = record.current(), trace.get_current_span()
        here.discard_span()
        assert here.span is trace.INVALID_SPAN
        assert trace.get_current_span() is span
        with runtime.tracer().start_as_current_span("inside", kind=SpanKind.CLIENT) as further:
            assert not further.is_recording()
            assert further.get_span_context().trace_id == span.get_span_context().trace_id

    inside(view)
    assert not otel_spans
