"""Processes outside the web server: task workers, whose numbers its page shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from django_otel import conf
from django_otel.metrics.model import Family, HistogramValue, MetricType, Point
from django_otel.multiprocess import server_group
from django_otel.multiprocess.background import BackgroundReader, add_background, build_background_name
from tests import services

OTEL = {
    "SERVICE_NAME": "shared", "SAMPLING": {"LIVE": False}, "METRICS_VIEW": {"ALLOW": "all"}, "SKIP_COMMANDS": [],
}  # fmt: skip
WORK = (
    "import django, os, signal; django.setup(); import django_otel; from django_otel import runtime;"
    "{first} runtime.work_in_background(); {then} django_otel.counter('jobs.done').add(3);"
    "assert runtime.sharing().memory is not None; {end}"
)


def work(tmp_path, first: str = "", then: str = "", end: str = "", otel: dict = OTEL) -> int:
    environment = {
        **os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "TEST_SQLITE": str(tmp_path / "db.sqlite3"),
        "TEST_OTEL": json.dumps({**otel, "METRICS": {"SHARED_DIR": str(tmp_path)}}),
    }  # fmt: skip
    code = WORK.format(first=first, then=then, end=end)
    return subprocess.run([sys.executable, "-c", code], env=environment, cwd=services.ROOT, check=False).returncode


def test_numbers_of_workers_are_on_the_web_servers_page_and_outlive_them(tmp_path):
    assert work(tmp_path) == 0
    # What was counted before it was known that this is a worker comes along; a kill loses nothing.
    assert work(tmp_path, first="django_otel.counter('jobs.done').add(1);", end="os.kill(os.getpid(), 9)") == -9
    # A child of a worker is one, and so is a worker that has a service name of its own.
    child = "pid = os.fork(); pid and (os.waitpid(pid, 0), os._exit(0));"
    assert work(tmp_path, then=child, otel={**OTEL, "SERVICE_NAME": "shop-worker"}) == 0
    otel = {**OTEL, "METRICS": {"SHARED_DIR": str(tmp_path)}}
    with services.serve("gunicorn", otel, workers=2, TEST_SQLITE=str(tmp_path / "db.sqlite3")) as server:
        services.wait_until(lambda: server.get("/livez")[0] == 200, 60, "an answer")
        page = server.get("/metrics")[2]
        assert b"jobs_done_total 10\n" in page
        assert b"django_otel_shared_active 1" in page
        assert page.count(b"# TYPE jobs_done_total") == 1


def test_another_database_is_another_project(settings, monkeypatch):
    known = conf.project_identity()
    monkeypatch.setitem(settings.DATABASES["default"], "NAME", "other")
    assert conf.project_identity() != known


def test_serve_and_folder_show_workers_without_a_web_server(tmp_path):
    assert work(tmp_path) == 0
    environment = services.server_env(
        {**OTEL, "METRICS": {"SHARED_DIR": str(tmp_path)}}, TEST_SQLITE=str(tmp_path / "db.sqlite3")
    )
    code = (
        "import django; django.setup(); from django_otel import conf; from django_otel.operations import groups;"
        "found = groups.GroupFinder(conf.get_config(), None).collect();"
        "print([point.value for family in found if family.name == 'jobs.done' for point in family.points]);"
        "print([group.folder.name for group in groups.find_background(conf.get_config())])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=services.ROOT, check=True, capture_output=True, text=True
    )
    numbers, folders = done.stdout.splitlines()
    assert numbers == "[3.0]"
    assert folders.startswith("['background-")


def test_the_background_group_outlives_restarts(tmp_path):
    for name in ("background-0123456789abcdef", "1-gone", "named-x"):
        (tmp_path / name).mkdir(mode=0o700)
        os.utime(tmp_path / name, (1, 1))
    assert server_group.BACKGROUND_AGE_S > 86400
    assert sorted(server_group.sweep(tmp_path, keep="")) == ["1-gone", "background-0123456789abcdef"]
    (tmp_path / "background-0123456789abcdef").mkdir(mode=0o700)
    assert server_group.sweep(tmp_path, keep="") == []


def test_what_both_have_is_added_and_the_rest_stays():
    def family(name: str, *values: float) -> Family:
        return Family(name, MetricType.COUNTER, "", "", None, [Point((("n", n),), v) for n, v in enumerate(values)])

    histogram = Family("h", MetricType.HISTOGRAM, "s", "", None, [Point((), HistogramValue((1.0,), [1.0, 0.0], 0.5))])
    own, background = (
        [family("a", 1.0, 2.0), histogram, family("b", 1.0)],
        [family("a", 5.0), histogram, family("c", 7.0)],
    )
    found = {family.name: [point.value for point in family.points] for family in add_background(own, background)}
    assert found.keys() == {"a", "b", "c", "h"}
    assert (found["a"], found["b"], found["c"]) == ([6.0, 2.0], [1.0], [7.0])
    assert (found["h"][0].buckets, found["h"][0].sum) == ([2.0, 0.0], 1.0)
    assert own[0].points[0].value == 1.0
    assert add_background(own, []) is own


def test_without_a_folder_there_is_nothing_to_add(tmp_path):
    assert BackgroundReader(build_background_name("x"), [tmp_path]).collect() == []
    parent = tmp_path / f"django-otel-{os.geteuid()}"
    (parent / build_background_name("x")).mkdir(parents=True, mode=0o755)
    # One that others may write to is not read.
    (parent / build_background_name("x")).chmod(0o777)
    assert BackgroundReader(build_background_name("x"), [tmp_path]).collect() == []


def test_after_new_settings_too_a_worker_leaves_the_metrics_of_processes_to_the_web_server(tmp_path):
    end = (
        "runtime.restart(); django_otel.counter('jobs.done').add(1);"
        "assert runtime.current().config.runtime and not runtime.sharing().shows_processes"
    )
    assert work(tmp_path, end=end, otel={**OTEL, "RUNTIME": True}) == 0
