"""Generic plans of stored statements, asked of real PostgreSQL servers: 18, 16, and 15, which has none."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from django.contrib.auth.models import Permission
from django.db import connections, models
from django.db.models import Count
from django.test import Client
from opentelemetry.trace import SpanKind

from django_otel.console import plans
from django_otel.console.plans import NotExplained, number_placeholders
from tests.console.test_console import record, request_span, stored
from tests.services import new_database, parse_database_url, start_postgres, wait_until
from tests.tracestore.test_store import provider_with

QUERIES = "/admin/django_otel/queries/"
DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
SECRET = "hunter2"


class Order(models.Model):
    """A table of the server that plans are asked of."""

    status = models.CharField(max_length=20)
    data = models.JSONField(default=dict)

    class Meta:
        app_label = "plans"
        managed = False
        db_table = "plan_order"


@pytest.fixture
def explainer(viewer):
    viewer.user_permissions.add(Permission.objects.get(codename="explain_query"))
    return viewer


@pytest.fixture
def on_server(django_db_blocker):
    """Makes the connection "plans" lead to a database with one table."""
    opened = []

    def lead_to(url, **more):
        connections.settings["plans"] = {
            **connections["default"].settings_dict, **parse_database_url(url), "ATOMIC_REQUESTS": False, **more,
        }  # fmt: skip
        opened.append("plans")
        return connections["plans"]

    with django_db_blocker.unblock():
        yield lead_to
        for alias in opened:
            connections[alias].close()
            del connections[alias]
            del connections.settings[alias]


def make_table(connection):
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE plan_order (id serial PRIMARY KEY, status varchar(20), data jsonb)")
        cursor.execute("CREATE INDEX plan_status ON plan_order (status)")


def store_query(console, statement, **attributes):
    """Store a request with this query, and return the address of its trace and the id of its span."""
    made = {}

    def build(tracer):
        known = {"db.system.name": "postgresql", "django.db.alias": "plans", "db.query.text": statement, **attributes}
        with (
            request_span(tracer),
            tracer.start_as_current_span("SELECT plan_order", kind=SpanKind.CLIENT, attributes=known) as span,
        ):
            made["id"] = f"{span.get_span_context().span_id:016x}"

    record(console, build)
    trace_id = max(stored(console), key=lambda row: row.seq).trace_id
    return f"/admin/django_otel/trace/{trace_id}/", made["id"]


def ask(page, address, span_id):
    return page.client.post(f"{address}explain/", {"span": span_id})


@pytest.mark.parametrize("version", [18, pytest.param(16, marks=pytest.mark.long)])
def test_statements_of_the_orm_have_a_plan(console, page, explainer, configure, on_server, otel_spans, version):
    """As Django wrote them and the store has them: placeholders, lists, positions, JSON; nothing is run or written."""
    with start_postgres(version=version) as server, new_database(server) as url:
        connection = on_server(url)
        make_table(connection)
        configure(SERVICE_NAME="shop")
        orders = Order.objects.using("plans")
        from django_otel import span

        with span("all of them"):
            orders.create(status="paid")
            list(orders.filter(status="paid")[:5])
            list(orders.filter(pk__in=[1, 2, 3], status__startswith="p").order_by("-pk"))
            list(orders.values("status").annotate(n=Count("pk")).filter(n__gt=0))
            list(orders.filter(data__has_key="a", data__b=1))
            list(orders.extra(where=["status LIKE 'p%%' AND id %% 2 = 0"]))
            orders.filter(status="x").exists()
        for one in otel_spans:
            if one.kind is SpanKind.CLIENT and "plan_order" in one.attributes["db.query.text"]:
                store_one(console, one)
        before = orders.count()
        shown = {}
        for row in stored(console):
            address = f"/admin/django_otel/trace/{row.trace_id}/"
            statement, span_id = statement_of(console, row.trace_id)
            answer = ask(page, address, span_id)
            shown[statement] = (answer.status_code, answer.content.decode())
        reading = {statement: each for statement, each in shown.items() if statement.startswith("SELECT")}
        assert len(reading) == 6
        for statement, (status, content) in reading.items():
            assert status == 200 and "plan_order" in content and "cost=" in content, (statement, content)
        assert any("plan_status" in content for _, content in reading.values())
        [(status, content)] = [each for statement, each in shown.items() if statement.startswith("INSERT")]
        assert status == 409 and "only read" in content
        [grouped] = [content for statement, (_, content) in reading.items() if "GROUP BY" in statement]
        assert "Group Key: status" in grouped
        assert orders.count() == before


def store_one(console, finished):
    """A copy of a finished span of this process as a request of its own."""
    tracer = provider_with(console)
    with request_span(tracer), tracer.start_as_current_span(finished.name, kind=finished.kind) as copy:
        copy.set_attributes({**finished.attributes, "django.db.alias": "plans"})
    assert console.force_flush()


def statement_of(console, trace_id):
    from django_otel.tracestore.reader import read

    with read(console.store()) as reader:
        [found] = [span for span in reader.trace(trace_id).spans if "db.query.text" in span["attributes"]]
    return found["attributes"]["db.query.text"], found["id"]


def test_the_page_of_queries_leads_to_a_plan(console, page, explainer, configure, on_server, postgres_database):
    make_table(on_server(postgres_database))
    configure(SERVICE_NAME="shop")
    store_query(console, 'SELECT "plan_order"."id" FROM "plan_order" WHERE "plan_order"."status" = %s')
    content = page(QUERIES).content.decode()
    assert "explain/?statement=1" in content
    offered = page(f"{QUERIES}explain/", statement="1").content.decode()
    assert "Show the plan" in offered and "cost=" not in offered
    answer = page.client.post(f"{QUERIES}explain/", {"statement": "1"})
    assert answer.status_code == 200
    assert "plan_status" in answer.content.decode() and "$1" in answer.content.decode()


def test_an_older_server_and_another_database_say_why(console, page, explainer, configure, on_server):
    configure(SERVICE_NAME="shop")
    address, span_id = store_query(console, "SELECT 1", **{"db.system.name": "sqlite", "django.db.alias": "default"})
    assert (
        "Plans are shown for PostgreSQL; this is sqlite." in page(f"{address}explain/", span=span_id).content.decode()
    )
    answer = ask(page, address, span_id)
    assert answer.status_code == 409 and "sqlite" in answer.content.decode()
    if not DEBIAN_15.exists():
        pytest.skip("PostgreSQL 15 is not installed: apt-get install postgresql-15")
    for url in start_debian(DEBIAN_15):
        on_server(url)
        address, span_id = store_query(console, "SELECT %s")
        answer = ask(page, address, span_id)
        assert answer.status_code == 409
        assert "Generic plans need PostgreSQL 16; the database plans runs 15." in answer.content.decode()


def start_debian(folder):
    """A server of Debian's package on a unix socket."""
    home = Path(tempfile.mkdtemp(prefix="django_otel-pg15-"))
    user = {"user": "postgres"} if os.geteuid() == 0 else {}
    if user:
        shutil.chown(home, "postgres")
    try:
        command = [str(folder / "initdb"), "-D", str(home / "data"), "-U", "postgres", "-A", "trust"]
        subprocess.run(command, check=True, capture_output=True, cwd=home, timeout=120, **user)
        server = subprocess.Popen(
            [str(folder / "postgres"), "-D", str(home / "data"), "-k", str(home), "-c", "listen_addresses="],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=home, **user,
        )  # fmt: skip
        try:
            ready = [str(folder / "pg_isready"), "-h", str(home), "-q"]
            wait_until(lambda: subprocess.run(ready, check=False).returncode == 0, 60, "PostgreSQL 15")
            yield f"postgresql://postgres:@/postgres?host={home}"
        finally:
            server.terminate()
            server.wait(60)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def test_only_a_user_with_the_permission_may_ask(console, page, viewer, configure, on_server, postgres_database):
    """Of its own; a POST needs Django's token; nothing from the browser is sent to the database."""
    make_table(on_server(postgres_database))
    configure(SERVICE_NAME="shop")
    address, span_id = store_query(console, "SELECT id FROM plan_order")
    assert "explain/" not in page(f"{address}?span={span_id}").content.decode()
    assert ask(page, address, span_id).status_code == 403
    assert page(f"{QUERIES}explain/", statement="1").status_code == 403
    viewer.user_permissions.add(Permission.objects.get(codename="explain_query"))
    assert f"{address}explain/?span={span_id}" in page(f"{address}?span={span_id}").content.decode()
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(viewer)
    assert strict.post(f"{address}explain/", {"span": span_id}).status_code == 403
    foreign = {"span": span_id, "sql": "SELECT 987654", "statement": "SELECT 987654"}
    content = page.client.post(f"{address}explain/", foreign).content.decode()
    assert "Seq Scan on plan_order" in content and "987654" not in content
    viewer.user_permissions.remove(Permission.objects.get(codename="view_console"))
    assert ask(page, address, span_id).status_code == 403


def test_a_slow_plan_ends_after_the_timeout(
    console, page, explainer, configure, on_server, postgres_database, monkeypatch
):
    """Functions that the planner runs are stopped; the transaction writes nothing."""
    connection = on_server(postgres_database)
    make_table(connection)
    with connection.cursor() as cursor:
        cursor.execute("CREATE FUNCTION slow() RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN "
                       "PERFORM pg_sleep(60); RETURN 1; END $$")  # fmt: skip
        cursor.execute("CREATE FUNCTION writing() RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN "
                       "INSERT INTO plan_order (status) VALUES ('x'); RETURN 1; END $$")  # fmt: skip
    configure(SERVICE_NAME="shop")
    monkeypatch.setattr(plans, "TIMEOUT_MS", 200)
    answer = ask(page, *store_query(console, "SELECT id FROM plan_order WHERE id = slow()"))
    assert answer.status_code == 409 and "statement timeout" in answer.content.decode()
    answer = ask(page, *store_query(console, "SELECT id FROM plan_order WHERE id = writing()"))
    assert answer.status_code == 409
    assert Order.objects.using("plans").count() == 0


def test_errors_are_plain_and_hold_no_secret(console, page, explainer, configure, on_server, postgres_database):
    configure(SERVICE_NAME="shop")
    on_server(postgres_database)
    answer = ask(page, *store_query(console, "SELECT id FROM no_such_table"))
    content = answer.content.decode()
    assert answer.status_code == 409
    assert "The database refused it: relation &quot;no_such_table&quot; does not exist" in content
    assert "Traceback" not in content
    connections["plans"].close()
    connections["plans"].settings_dict.update(HOST="/no/such/folder", PASSWORD=SECRET)
    content = ask(page, *store_query(console, "SELECT 1")).content.decode()
    assert "The database plans cannot be reached (OperationalError)." in content
    assert SECRET not in content and "/no/such/folder" not in content


@pytest.mark.heavy
def test_what_is_not_there_is_not_found(console, page, explainer):
    for address in ("/admin/django_otel/trace/" + "ab" * 16 + "/", "/admin/django_otel/trace/\u202e<x>/"):
        for span_id in ("", "x", "0" * 16, "'" * 900):
            assert page(f"{address}explain/", span=span_id).status_code == 404
            assert ask(page, address, span_id).status_code == 404
    for number in ("", "x", "-1", "9" * 40, "1; SELECT 1", "\u0661"):
        assert page(f"{QUERIES}explain/", statement=number).status_code == 404
        assert page.client.post(f"{QUERIES}explain/", {"statement": number}).status_code == 404


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ('SELECT "a"."id" FROM "a" WHERE x = %s AND y IN (%s) LIMIT ?',
         'SELECT "a"."id" FROM "a" WHERE x = $1 AND y IN ($2) LIMIT $3'),
        ("SELECT 1 FROM t WHERE data ? %s AND d ?| %s AND a = ?",
         "SELECT $1 FROM t WHERE data ? $2 AND d ?| $3 AND a = $4"),
        ("SELECT a, b FROM t GROUP BY ?, ? HAVING ? > ?", "SELECT a, b FROM t GROUP BY 1, 2 HAVING $1 > $2"),
        ("SELECT a FROM t WHERE at > now() - INTERVAL ?", "SELECT a FROM t WHERE at > now() -  $1::interval"),
        ("SELECT x %% ? FROM t WHERE a = 'it''s'", "SELECT x % $1 FROM t WHERE a = $2"),
        ("SELECT $2, $1, $2, %(a)s, %(a)s", "SELECT $1, $2, $1, $3, $3"),
        ("WITH x AS (SELECT ? || ?) SELECT * FROM x FOR NO KEY UPDATE;",
         "WITH x AS (SELECT $1 || $2) SELECT * FROM x FOR NO KEY UPDATE"),
        ('SELECT "update"."into" FROM "update"', 'SELECT "update"."into" FROM "update"'),
    ],
)  # fmt: skip
def test_placeholders_are_numbered(statement, expected):
    assert number_placeholders(statement) == expected


@pytest.mark.parametrize(
    "statement",
    [
        "", "UPDATE t SET a = ?", "DELETE FROM t", "INSERT INTO t VALUES (?)", "SELECT a INTO b FROM c",
        "WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x", "WITH x AS (UPDATE t SET a = 1) SELECT 1",
        "SELECT 1; DROP TABLE t", "SELECT 1;;SELECT 2", "DO $$ BEGIN END $$", "COMMIT", "SET ROLE x", "CALL f()",
        "SELECT a FROM t WHERE b = 'it\\'; DROP TABLE t; --'", "SELECT \"a", "SELECT a /* ; */ ; DROP TABLE t",
        "SELECT a FROM t ...", f"SELECT {'a, ' * 4000} b", "SELECT [redacted] FROM t", "\x00", "ANALYZE",
        "COPY t TO PROGRAM 'x'", "EXPLAIN SELECT 1",
        "MERGE INTO t USING s ON true WHEN MATCHED THEN DELETE",
    ],
)  # fmt: skip
def test_other_statements_are_refused(statement):
    try:
        numbered = number_placeholders(statement)
    except NotExplained:
        return
    # A doubtful string ends the text: what is left is one statement that reads.
    assert numbered.startswith("SELECT") and ";" not in numbered and "DROP" not in numbered
