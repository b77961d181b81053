"""The page of all instruments."""

from __future__ import annotations

import html
import re

import pytest
from django.test import override_settings

import django_otel
from django_otel import runtime
from tests.console.test_console import INSTRUMENTS, LIST, record, request_span, stored, words

pytestmark = pytest.mark.django_db


def test_own_counters_gauges_and_histograms_have_a_chart(console, page):
    django_otel.counter("shop.carts", "{cart}", "Carts opened.").add(3, {"shop.country": "fr"})
    django_otel.counter("shop.carts").add(1, {"shop.country": "<b>de</b>"})
    django_otel.gauge("shop.stock", "{piece}", "Pieces in stock.").set(17)
    django_otel.histogram("shop.price.duration", "s", "Time to price a cart.").record(0.2)
    content = page(INSTRUMENTS, q="shop.").content.decode()
    assert content.count('class="otel-chart"') == 3
    text = words(page(INSTRUMENTS, q="shop."))
    for expected in (
        "shop.carts",
        "Carts opened.",
        "shop.country=fr",
        "4 in 2 series",
        "17",
        "1 measurement, mean 200 ms",
    ):
        assert expected in text, expected
    assert "<b>de</b>" not in content and "&lt;b&gt;de" in content


def test_figures_hold_together_in_a_sentence_from_right_to_left(console, page):
    """The sentence has its own direction, and each figure with its unit the other one."""
    django_otel.histogram("packed.duration", "s", "Time to pack.").record(0.2, {"shop.hall": "north"})
    with override_settings(LANGUAGES=[("ar", "Arabic")], LANGUAGE_CODE="ar"):
        content = page(INSTRUMENTS, q="packed.").content.decode()
    (row,) = re.findall(r"<dd>(.*?)</dd>", content)
    assert row.startswith("<bdi>") and re.search(r'<[^>]*dir="ltr"[^>]*>200 ms</', row), row


def test_all_instruments_are_listed_over_pages(console, page, client):
    for number in range(60):
        django_otel.counter(f"paged.counter_{number:02}").add(1)
    seen = []
    number = 1
    while True:
        content = page(INSTRUMENTS, page=number).content.decode()
        # Other tests have given theirs any name.
        found = re.findall(r'<h2 id="otel-instrument-\d+">(?:<[^>]*>)*([^<]+)', content)
        seen += [html.unescape(name).strip() for name in found]
        if 'rel="next"' not in content:
            break
        number += 1
    assert sorted(seen) == sorted(family.name for family in runtime.collect() if family.points)


@pytest.mark.parametrize(
    "given", [{"page": "-1"}, {"page": "99999"}, {"page": "x"}, {"q": "\x00' OR 1"}, {"q": "x" * 5000}]
)
def test_any_address_is_answered(console, page, given):
    assert page(INSTRUMENTS, **given).status_code == 200


def test_negative_endless_and_missing_values_do_not_break_a_chart(console, page):
    django_otel.up_down_counter("odd.negative").add(-5)
    django_otel.gauge("odd.endless").set(float("inf"))
    django_otel.gauge("odd.none").set(float("nan"))
    text = words(page(INSTRUMENTS, q="odd."))
    for name in ("odd.negative", "odd.endless", "odd.none"):
        assert name in text


def test_a_bucket_leads_to_the_trace_of_its_exemplar(console, page):
    """In the chart and as a link below it; only where the trace is stored."""
    histogram = django_otel.histogram("led.duration", "s", "Time that leads somewhere.")

    def build(tracer):
        for seconds in (0.02, 30.0):
            with request_span(tracer) as span:
                histogram.record(seconds)
                spans.append(span.get_span_context())

    spans: list = []
    record(console, build)
    content = page(INSTRUMENTS, q="led.duration").content.decode()
    for span in spans:
        address = f"{LIST}{span.trace_id:032x}/?span={span.span_id:016x}#s-{span.span_id:016x}"
        assert content.count(f'href="{address}"') == 2, "on the bar, and as a text"
        assert page(address.partition("#")[0]).status_code == 200
    assert 'role="group"' in content and "A trace of the bucket:" in content
    console.store().clear()
    assert stored(console) == []
    content = page(INSTRUMENTS, q="led.duration").content.decode()
    assert "A trace of the bucket:" not in content and LIST + "0" not in content
    assert 'class="otel-chart"' in content
