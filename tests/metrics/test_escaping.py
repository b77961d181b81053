"""UTF-8 names by `escaping=` in the Accept header."""

from __future__ import annotations

import re

import pytest

import django_otel
from django_otel.metrics.exposition import render
from django_otel.metrics.negotiation import Format, negotiate, negotiate_escaping
from django_otel.metrics.prometheus_names import escape_name
from django_otel.metrics.store import CellStore
from tests import sizes

#: What Prometheus 3 sends.
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


@sizes.each(
    ("accept", "wanted", "escaping"),
    [
        (PROMETHEUS_3, Format.OPENMETRICS, "allow-utf-8"),
        ("text/plain;version=1.0.0;escaping=dots", Format.TEXT, "dots"),
        ("text/plain;version=1.0.0;escaping=values,text/plain;version=0.0.4;q=0.2", Format.TEXT, "values"),
        ("text/plain;version=0.0.4;escaping=underscores", Format.TEXT, ""),
        ("text/plain", Format.TEXT, ""), ("*/*", Format.TEXT, ""), ("", Format.TEXT, ""), (None, Format.TEXT, ""),
        ("application/openmetrics-text;version=1.0.0;escaping=nonsense", Format.OPENMETRICS, ""),
        ("text/plain;version=1.0.0", Format.TEXT, ""),
        ("text/plain;version=0.0.4;q=0.9,text/plain;version=1.0.0;escaping=dots;q=0.1", Format.TEXT, ""),
        ("text/plain;version=1.0.0;escaping=dots;q=0.1,text/plain;version=0.0.4;q=0.9", Format.TEXT, ""),
        ("text/plain;version=1.0.0;escaping=dots;q=0", Format.TEXT, ""),
        ("text/plain;version=1.0.0;escaping=dots;q=0,*/*;q=0.1", Format.TEXT, ""),
        ('text/plain; VERSION="1.0.0" ; Escaping="Allow-UTF-8"', Format.TEXT, "allow-utf-8"),
    ],
)  # fmt: skip
def test_the_escaping_is_that_of_the_format_that_is_given(accept, wanted, escaping):
    assert negotiate(accept) is wanted
    assert negotiate_escaping(accept, wanted) == escaping


@pytest.mark.parametrize(
    ("name", "underscores", "dots", "values"),
    [
        ("no_change", "no_change", "no__change", "no_change"),
        ("http.status:sum", "http_status:sum", "http_dot_status:sum", "U__http_2e_status:sum"),
        ("label with \u03c0", "label_with__", "label__with____", "U__label_20_with_20__3c0_"),
        ("0bad", "_bad", "__bad", "U___30_bad"),
        ("a_b.c", "a_b_c", "a__b_dot_c", "U__a__b_2e_c"),
    ],
)  # fmt: skip
def test_names_are_escaped_as_prometheus_does(name, underscores, dots, values):
    """The examples of prometheus/common, `TestEscapeName`."""
    assert escape_name(name, "allow-utf-8") == name
    assert [escape_name(name, scheme) for scheme in ("underscores", "dots", "values")] == [underscores, dots, values]


@pytest.fixture
def families():
    store = CellStore()
    store.counter("shop.größe.total", "", "Sizes.").add(3, {"shop.land": "fr", "plain": "x"})
    store.counter("shop.bare").add(1)
    store.gauge("shop.fill", "1").set(0.5)
    store.histogram("shop.100%.time", "s", "", (0.1, 1.0)).record(0.5, {"le": "mine", "a.b": 'q"'})
    store.histogram("shop.none", "s", "", (1.0,)).record(0.5)
    store.gauge("legacy_name").set(1)
    return store.collect()


def show(families, escaping: str, openmetrics: bool = True) -> list[str]:
    page = render(families, openmetrics=openmetrics, resource_attributes={"service.name": "s"}, escaping=escaping)
    return page.decode().splitlines()


def test_utf8_names_stand_in_quotes(families):
    lines = show(families, "allow-utf-8")
    for expected in (
        'target_info{"service.name"="s"} 1',
        '# TYPE "shop.größe" counter', '{"shop.größe_total",plain="x","shop.land"="fr"} 3', '{"shop.bare_total"} 1',
        '{"shop.fill_ratio"} 0.5', "legacy_name 1",
        '{"shop.100%.time_seconds_bucket","a.b"="q\\"",exported_le="mine",le="1.0"} 1',
        '{"shop.100%.time_seconds_sum","a.b"="q\\"",exported_le="mine"} 0.5', '{"shop.none_seconds_count"} 1',
        "# UNIT \"shop.none_seconds\" seconds",
    ):  # fmt: skip
        assert expected in lines, expected
    assert '# TYPE "shop.größe_total" counter' in show(families, "allow-utf-8", openmetrics=False)


@pytest.mark.parametrize(
    ("escaping", "expected"),
    [
        ("underscores", 'shop_gr__e_total{plain="x",shop_land="fr"} 3'),
        ("dots", 'shop_dot_gr____e_total{plain="x",shop_dot_land="fr"} 3'),
        ("values", 'U__shop_2e_gr_f6__df_e_total{U__shop_2e_land="fr",plain="x"} 3'),
    ],
)
def test_escaped_names_need_no_quotes(families, escaping, expected):
    lines = show(families, escaping)
    assert expected in lines
    assert not [line for line in lines if line.startswith(('{"', '# TYPE "'))]


def test_without_an_escaping_the_page_is_as_before(families):
    assert 'shop_gr_e_total{plain="x",shop_land="fr"} 3' in show(families, "")


def test_a_page_in_utf8_changes_no_later_page(families):
    before = show(families, "")
    show(families, "allow-utf-8")
    assert show(families, "") == before


@pytest.mark.parametrize("is_on", [False, True])
def test_a_scraper_gets_the_names_it_asks_for_where_the_setting_allows_it(is_on, client, settings):
    settings.OTEL = {**settings.OTEL, "METRICS": {"NEGOTIATE_NAMES": is_on}, "METRICS_VIEW": {"ALLOW": "all"}}
    django_otel.counter("own.größe").add(1)
    client.get("/hello/")
    answer = client.get("/metrics", headers={"accept": PROMETHEUS_3})
    assert answer.headers["Content-Type"].endswith("version=1.0.0; charset=utf-8; escaping=allow-utf-8")
    page = answer.content.decode()
    assert ('{"http.server.request.duration_seconds_count","http.request.method"="GET"' in page) == is_on
    assert ("http_server_request_duration_seconds_count{" in page) != is_on
    plain = client.get("/metrics").content.decode()
    assert "http_server_request_duration_seconds_count{" in plain and not re.search(r'^\{"', plain, re.MULTILINE)
