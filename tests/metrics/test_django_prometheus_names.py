"""METRICS["NAMES"]: what a scrape and an exporter show under the names of django-prometheus."""

from __future__ import annotations

import pytest

from django_otel import runtime
from django_otel.metrics.django_prometheus import DERIVED, MEASURED, REPLACED, Names, present
from django_otel.metrics.exposition import render
from django_otel.metrics.model import OWN_SCOPE, Family, MetricType, Point, Scope
from django_otel.metrics.store import CellStore
from tests import sizes

NAMES = Names({"default": "postgresql"}, {"default": "locmem"}, {"shop.Order": "order"})


def family(name: str, points: list[tuple[dict, float]], scope: Scope = OWN_SCOPE) -> Family:
    made = [Point(tuple(sorted(labels.items())), value, (), 7) for labels, value in points]
    return Family(name, MetricType.COUNTER, "", "", scope, made)


def page_of(families: list[Family], *, openmetrics: bool = False) -> list[str]:
    page = render(families, openmetrics=openmetrics, resource_attributes={})
    return [line for line in page.decode().splitlines() if not line.startswith("#")]


def cache(alias: str, operation: str, outcome: str) -> dict[str, str]:
    return {"django.cache.alias": alias, "django.cache.operation": operation, "django.cache.outcome": outcome}


def test_cache_reads_of_one_backend_add_up_and_other_operations_do_not_count():
    found = present(
        [
            family(
                "django.cache.operations",
                [
                    (cache("default", "get", "hit"), 3), (cache("default", "get", "miss"), 2),
                    (cache("default", "get", "error"), 1), (cache("default", "set", "ok"), 9),
                    (cache("other", "get", "hit"), 5), (cache("default", "get_many", "hit"), 4),
                ],
            )
        ],
        Names({}, {"default": "locmem", "other": "locmem"}, {}),
        keeps_ours=False,
    )  # fmt: skip
    assert set(page_of(found)) == {
        'django_cache_get_total{backend="locmem"} 11',
        'django_cache_get_hits_total{backend="locmem"} 8',
        'django_cache_get_misses_total{backend="locmem"} 2',
        'django_cache_get_fail_total{backend="locmem"} 1',
    }


def test_models_start_at_zero_and_connections_and_migrations_have_their_labels():
    found = present(
        [
            family(
                "django.model.operations", [({"django.model": "shop.Order", "django.model.operation": "create"}, 2)]
            ),
            family("django.db.connections", [({"django.db.alias": "default"}, 4)]),
            family("django.db.connection.errors", [({"django.db.alias": "gone", "error.type": "x"}, 1)]),
            family("django.migrations", [({"django.db.alias": "default", "django.migration.state": "unapplied"}, 3)]),
        ],
        NAMES,
        keeps_ours=False,
    )
    assert set(page_of(found)) == {
        'django_model_inserts_total{model="order"} 2', 'django_model_updates_total{model="order"} 0',
        'django_model_deletes_total{model="order"} 0',
        'django_db_new_connections_total{alias="default",vendor="postgresql"} 4',
        'django_db_new_connection_errors_total{alias="gone",vendor="unknown"} 1',
        'django_migrations_unapplied_total{connection="default"} 3',
    }  # fmt: skip


def test_ours_stay_beside_them_only_when_asked_for_and_those_of_other_meters_always():
    ours = family("django.db.connections", [({"django.db.alias": "default"}, 4)])
    other = family("django.db.connections", [({"a": "b"}, 1)], Scope("theirs"))
    alone = family("django.business.events", [({"business.event": "x"}, 1)])
    shown = present([ours, other, alone], NAMES, keeps_ours=False)
    assert ours not in shown and other in shown and alone in shown
    assert ours in present([ours, other, alone], NAMES, keeps_ours=True)


@sizes.each("name", sorted(MEASURED))
def test_every_measured_metric_appears_under_its_name(name):
    """Neither a unit nor a second suffix is added; OpenMetrics has the same names."""
    from django_otel.requests.django_prometheus import find_instrument

    store = CellStore()
    series = find_instrument(store, name).series({"a": "b"})
    if MEASURED[name].bounds:
        series.observe(1.0)
        expected = f'{name}_count{{a="b"}} 1'
    else:
        series.add(1.0)
        expected = f'{name.removesuffix("_total")}_total{{a="b"}} 1'
    for openmetrics in (False, True):
        assert expected in page_of(store.collect(), openmetrics=openmetrics)


def test_no_two_names_meet_and_what_is_replaced_exists():
    from django_otel.metrics.catalogue import CATALOGUE

    assert not MEASURED.keys() & DERIVED.keys()
    # Those that other parts of the package have yet to measure are known by name.
    assert CATALOGUE.keys() >= REPLACED - {"django.migrations", "django.db.connection.errors"}


@pytest.mark.parametrize("names", ["otel", "django_prometheus", "both"])
def test_the_setting_decides_what_a_scrape_shows(names, settings, client):
    settings.OTEL = {**settings.OTEL, "METRICS": {"NAMES": names}, "METRICS_VIEW": {"ALLOW": "all"}}
    client.get("/hello/")
    page = client.get("/metrics").content.decode()
    has_theirs = 'django_http_requests_total_by_method_total{method="GET"}' in page
    assert (has_theirs, "http_server_request_duration_seconds_count" in page) == (
        names != "otel",
        names != "django_prometheus",
    )


def test_what_was_measured_is_shown_no_longer_when_the_setting_is_taken_back(settings, client):
    settings.OTEL = {**settings.OTEL, "METRICS": {"NAMES": "both"}, "METRICS_VIEW": {"ALLOW": "all"}}
    client.get("/hello/")
    settings.OTEL = {**settings.OTEL, "METRICS": {"NAMES": "otel"}, "METRICS_VIEW": {"ALLOW": "all"}}
    page = client.get("/metrics").content.decode()
    assert "django_http_" not in page
    assert not [found for found in runtime.current().present(runtime.collect()) if found.name in MEASURED]


def test_a_point_that_is_no_number_costs_itself_alone():
    broken = family("django.db.connections", [({"django.db.alias": "default"}, 4)])
    broken.points.append(Point((("django.db.alias", "default"),), object()))  # type: ignore[arg-type]
    found = present([broken], Names({"default": "postgresql"}, {}, {}), keeps_ours=False)
    assert page_of(found) == ['django_db_new_connections_total{alias="default",vendor="postgresql"} 4']


# --- Ways out of a request and of a statement that the comparison does not take. ---


def value(page: str, sample: str) -> float:
    for line in page.splitlines():
        if line.startswith(sample + " "):
            return float(line.rpartition(" ")[2])
    return 0.0


@pytest.fixture
def scrape(settings, client):
    settings.OTEL = {**settings.OTEL, "METRICS": {"NAMES": "both"}, "METRICS_VIEW": {"ALLOW": "all"}}
    return lambda: client.get("/metrics").content.decode()


def test_a_view_that_raises_counts_its_exception_once(scrape, client):
    client.raise_request_exception = False
    kind = 'django_http_exceptions_total_by_type_total{type="ValueError"}'
    before = value(scrape(), kind)
    client.get("/boom/")
    assert value(scrape(), kind) - before == 1


@pytest.mark.django_db
def test_batches_count_their_rows_and_errors_the_drivers_exception(scrape):
    from django.db import connection

    labels = '{alias="default",vendor="sqlite"}'
    before = scrape()
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE legacy_names (a)")
        cursor.executemany("INSERT INTO legacy_names VALUES (%s)", [["1"], ["2"], ["3"]])
        cursor.executemany("INSERT INTO legacy_names VALUES (%s)", iter([["4"], ["5"]]))
        with pytest.raises(Exception, match="no such column"):
            cursor.execute("SELECT absent FROM legacy_names")
    after = scrape()

    def grown(sample: str) -> float:
        return value(after, sample) - value(before, sample)

    assert grown(f"django_db_execute_total{labels}") == 1 + 3 + 1 + 1
    assert grown(f"django_db_execute_many_total{labels}") == 3 + 1
    assert grown('django_db_errors_total{alias="default",type="OperationalError",vendor="sqlite"}') == 1
    assert grown(f"django_db_query_duration_seconds_count{labels}") == 4
