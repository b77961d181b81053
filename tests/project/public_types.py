"""Types of the public API, checked by mypy (`test_public_types.py`); never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import assert_type

from django.http import HttpRequest, HttpResponse

import django_otel
from django_otel.testing import (
    RecordedLogs,
    RecordedMetrics,
    RecordedSpans,
    assert_max_queries_per_statement,
    capture_logs,
    capture_metrics,
    capture_spans,
    override_sampling,
)


@django_otel.untraced
def view(request: HttpRequest, pk: int) -> HttpResponse:
    return HttpResponse()


@django_otel.untraced
async def async_view(request: HttpRequest, pk: int) -> HttpResponse:
    return HttpResponse()


@django_otel.sample(0.5)
def sampled(request: HttpRequest, pk: int = 1) -> HttpResponse:
    return HttpResponse()


@django_otel.span("work", kind="test")
def work(number: int, *, name: str = "") -> float:
    return 1.0


@django_otel.span("work")
async def async_work(number: int) -> float:
    return 1.0


@django_otel.span("rows")
def rows(number: int) -> Iterator[int]:
    yield number


@django_otel.span("rows")
async def async_rows(number: int) -> AsyncIterator[int]:
    yield number


@django_otel.timed("work.duration")
def measured(number: int) -> str:
    return ""


@override_sampling(1.0)
def test_function(number: int) -> None: ...


async def check(request: HttpRequest) -> None:
    assert_type(view(request, 1), HttpResponse)
    assert_type(view(request, pk=1), HttpResponse)
    view(request, "one")  # type: ignore[arg-type]
    view(request)  # type: ignore[call-arg]
    assert_type(await async_view(request, 1), HttpResponse)
    await async_view(request, "one")  # type: ignore[arg-type]
    assert_type(sampled(request), HttpResponse)
    sampled(request, "one")  # type: ignore[arg-type]
    assert_type(work(1, name=""), float)
    work("one")  # type: ignore[arg-type]
    assert_type(await async_work(1), float)
    await async_work("one")  # type: ignore[arg-type]
    assert_type(rows(1), Iterator[int])
    assert_type(async_rows(1), AsyncIterator[int])
    assert_type(measured(1), str)
    measured("one")  # type: ignore[arg-type]
    test_function("one")  # type: ignore[arg-type]

    assert_type(django_otel.current_trace_id(), str | None)
    assert_type(django_otel.trace_url(), str | None)
    assert_type(django_otel.flush(1.0), bool)
    assert_type(django_otel.carrier(), dict[str, str])
    with capture_spans() as spans, capture_metrics() as metrics, capture_logs() as logs:
        assert_type(spans, RecordedSpans)
        assert_type(metrics, RecordedMetrics)
        assert_type(logs, RecordedLogs)
    with assert_max_queries_per_statement(1):
        pass
    assert_type(assert_max_queries_per_statement(1)(work)(1), float)
