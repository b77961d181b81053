"""Management commands are measured, in every way to end, and never with an argument."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time

import pytest
from django.core.management import CommandError, call_command
from django.core.management.base import BaseCommand
from django.db import connections
from opentelemetry.trace import StatusCode

from django_otel import runtime
from django_otel.instrumentation import commands, migrations
from tests.services import run_program, serve, server_env, wait_until

NAME = {"django.command.name": "end_as"}


@pytest.fixture
def is_on(settings):
    settings.OTEL = {"COMMANDS": True}


def count(otel_metrics, outcome: str) -> int:
    return otel_metrics.value("django.command.duration", {**NAME, "django.command.outcome": outcome}).count


@pytest.mark.usefixtures("is_on")
def test_a_command_has_a_span_a_duration_and_a_last_success(otel_spans, otel_metrics):
    before_s = time.time()
    call_command("end_as", "well", text="private words")
    span = otel_spans.one("manage.py end_as")
    assert dict(span.attributes) == NAME
    assert span.kind.name == "INTERNAL" and span.status.status_code is StatusCode.UNSET
    assert (count(otel_metrics, "succeeded"), count(otel_metrics, "failed")) == (1, 0)
    assert before_s <= otel_metrics.value("django.command.last_success", NAME) <= time.time()


@pytest.mark.usefixtures("is_on")
@pytest.mark.parametrize("end", ["exit_well", "exit_none"])
def test_an_exit_without_a_code_is_a_success(otel_spans, otel_metrics, end):
    with pytest.raises(SystemExit):
        call_command("end_as", end)
    assert otel_spans.one("manage.py end_as").status.status_code is StatusCode.UNSET
    assert (count(otel_metrics, "succeeded"), count(otel_metrics, "failed")) == (1, 0)


@pytest.mark.usefixtures("is_on")
@pytest.mark.parametrize(
    ("end", "kind", "name"),
    [
        ("error", CommandError, "django.core.management.base.CommandError"),
        ("fault", ValueError, "ValueError"),
        ("exit", SystemExit, "SystemExit"),
        ("exit_text", SystemExit, "SystemExit"),
        ("interrupt", KeyboardInterrupt, "KeyboardInterrupt"),
    ],
)
def test_a_failure_is_recorded_without_arguments_and_goes_on(otel_spans, otel_metrics, end, kind, name):
    call_command("end_as", "well")
    last = otel_metrics.value("django.command.last_success", NAME)
    otel_spans.clear()
    with pytest.raises(kind):
        call_command("end_as", end, text="ann-from-accounting")
    span = otel_spans.one("manage.py end_as")
    assert span.attributes["error.type"] == name
    assert span.status.status_code is StatusCode.ERROR
    assert [event.attributes["exception.type"] for event in span.events] == (
        [name] if kind in (CommandError, ValueError) else []
    )
    assert "accounting" not in span.to_json()
    assert count(otel_metrics, "failed") == 1
    assert otel_metrics.value("django.command.last_success", NAME) == last
    # Nothing stays current.
    call_command("end_as", "well")
    assert otel_spans.named("manage.py end_as")[-1].parent is None


@pytest.mark.usefixtures("is_on")
@pytest.mark.parametrize(("end", "inner"), [("nested", "succeeded"), ("nested_error", "failed")])
def test_a_command_inside_a_command_counts_for_itself(otel_spans, otel_metrics, end, inner):
    call_command("end_as", end)
    child, parent = otel_spans.named("manage.py end_as")
    assert child.parent.span_id == parent.context.span_id
    assert parent.status.status_code is StatusCode.UNSET
    assert count(otel_metrics, "succeeded") + count(otel_metrics, "failed") == 2
    assert count(otel_metrics, inner) >= 1


class Loose(BaseCommand):
    """A command of no app."""

    requires_system_checks = ()

    def handle(self, *args, **options):
        pass


@pytest.mark.usefixtures("is_on")
def test_only_registered_commands_become_labels(otel_metrics):
    call_command(Loose())
    assert otel_metrics.series("django.command.last_success") == [{"django.command.name": "_other"}]


def test_a_fault_of_ours_does_not_reach_the_command(settings, monkeypatch, otel_spans):
    settings.OTEL = {"COMMANDS": True}

    def fail(*args, **kwargs):
        raise RuntimeError("telemetry is broken")

    monkeypatch.setattr(commands._Run, "_count", fail)
    call_command("end_as", "well")
    assert otel_spans.one("manage.py end_as")
    monkeypatch.setattr(commands, "_Run", fail)
    call_command("end_as", "well")


@pytest.mark.parametrize(
    "otel", [{}, {"COMMANDS": True, "SKIP_COMMANDS": ["end_as"]}, {"COMMANDS": ["other"]}, {"COMMANDS": []}]
)
def test_other_commands_are_left_alone(settings, otel_spans, otel_metrics, otel):
    settings.OTEL = otel
    call_command("end_as", "well")
    assert not otel_spans.named("manage.py end_as")
    assert otel_metrics.series("django.command.duration") == []
    if not otel.get("COMMANDS"):
        assert BaseCommand.execute is commands._plain_execute


def test_named_commands_are_measured(settings, otel_spans):
    settings.OTEL = {"COMMANDS": ["end_as"]}
    call_command("end_as", "well")
    assert otel_spans.one("manage.py end_as")


@pytest.mark.usefixtures("is_on")
def test_what_runs_until_it_is_stopped_has_no_span(otel_spans):
    call_command("otel", "config", stdout=io.StringIO())
    assert not otel_spans.named("manage.py otel")


# --- In processes of their own, beside a server. ---


def run(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    return run_program([sys.executable, "manage.py", *arguments], env)


def page_of(server) -> str:
    return server.get("/metrics", {"Authorization": "Bearer s3cret"})[2].decode()


def value(page: str, line: str) -> float | None:
    found = re.search(rf"(?m)^{re.escape(line)} (\S+)$", page)
    return None if found is None else float(found[1])


def test_the_server_shows_commands_that_ended_long_ago(tmp_path):
    otel = {"COMMANDS": True, "METRICS_VIEW": {"TOKEN": "s3cret"}, "METRICS": {"SHARED_DIR": str(tmp_path)}}
    sqlite = str(tmp_path / "db.sqlite3")
    with serve("gunicorn", otel, workers=2, migrate=True, TEST_SQLITE=sqlite) as server:
        wait_until(lambda: server.get("/hello/")[0] == 200, 60, "an answer")
        env = server_env(otel, TEST_SQLITE=sqlite)
        before_s = time.time()
        assert [run(env, "end_as", end, "--count-users").returncode for end in ("well", "well", "error")] == [0, 0, 1]
        after_s = time.time()
        page = page_of(server)
        for outcome, number in (("succeeded", 2), ("failed", 1)):
            labels = f'django_command_name="end_as",django_command_outcome="{outcome}"'
            assert value(page, f"django_command_duration_seconds_count{{{labels}}}") == number
        last_s = value(page, 'django_command_last_success_seconds{django_command_name="end_as"}')
        assert last_s is not None and before_s <= last_s <= after_s
        # Another process takes the slots: what was is still there, and what only a living one has is not.
        assert run(env, "end_as", "error").returncode == 1
        page = page_of(server)
        assert value(page, 'django_command_last_success_seconds{django_command_name="end_as"}') == last_s

        # Migrations, of the database that has any.
        migrated = 'django_migrations{django_db_alias="default",django_migration_state="unapplied"}'
        assert value(page, migrated) == 0
        assert value(page, migrated.replace("unapplied", "applied")) > 20
        assert 'django_db_alias="other",django_migration' not in page


def test_skipped_and_quiet_commands_end_as_before(tmp_path, receiver):
    endpoint = {"TRACES": {"ENDPOINT": receiver.url}, "METRICS": {"EXPORTERS": ["otlp"], "ENDPOINT": receiver.url}}
    for otel, expected in (
        ({"COMMANDS": True, **endpoint}, 1),
        ({"COMMANDS": True, "SKIP_COMMANDS": ["end_as"], **endpoint}, 0),
    ):
        receiver.requests.clear()
        env = server_env(otel, TEST_SQLITE=str(tmp_path / "db.sqlite3"))
        assert run(env, "end_as", "fault", "--text", "hunter2hunter2").returncode == 1
        assert [span.name for _, span in receiver.spans()] == ["manage.py end_as"] * expected
        names = [metric.name for _, _, metric in receiver.metrics()]
        assert ("django.command.duration" in names) is bool(expected)


@pytest.mark.django_db
def test_unapplied_migrations_are_counted(otel_metrics, django_assert_num_queries):
    from django.db.migrations.recorder import MigrationRecorder

    labels = {"django.db.alias": "default"}
    migrations.counts.forget()
    applied = otel_metrics.value("django.migrations", {**labels, "django.migration.state": "applied"})
    assert applied > 20
    assert otel_metrics.value("django.migrations", {**labels, "django.migration.state": "unapplied"}) == 0
    recorder = MigrationRecorder(connections["default"])
    recorder.record_unapplied("auth", "0012_alter_user_first_name_max_length")
    migrations.counts.forget()
    with django_assert_num_queries(0):
        otel_metrics.value("django.migrations", {**labels, "django.migration.state": "applied"})
    assert otel_metrics.value("django.migrations", {**labels, "django.migration.state": "unapplied"}) == 1
    assert otel_metrics.value("django.migrations", {**labels, "django.migration.state": "applied"}) == applied - 1
    migrations.counts.forget()


def test_a_database_that_cannot_be_asked_is_left_out(monkeypatch):
    def fail(alias):
        raise ConnectionError("down")

    monkeypatch.setattr(migrations, "_count", fail)
    assert migrations.count_all(["default"]) == []
    assert runtime.current().enabled
