"""Every snippet of the README and of docs/ is run or parsed, in a project made as the README says."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import tomllib
import urllib.parse
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from prometheus_client.parser import text_string_to_metric_families

import django_otel
from django_otel.config.parse import parse
from django_otel.config.schema import Config, walk
from django_otel.metrics.catalogue import CATALOGUE
from django_otel.sampling.policy import Rule
from tests import services, sizes
from tests.services import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = ROOT / "docs"
#: Every page in words, by its path. docs/settings.md is generated and has tests of its own.
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
    if path.name != "settings.md"
}
#: Those whose links are followed: every page for readers and contributors.
LINKED_PAGES = {
    **PAGES,
    **{
        name: (ROOT / name).read_text(encoding="utf-8")
        for name in (
            "CONTRIBUTING.md",
            "SECURITY.md",
            "docs/settings.md",
            "benchmarks/README.md",
            "tests/field/README.md",
        )
    },
}
ARCHITECTURE = PAGES["docs/architecture.md"]
CHANGELOG = PAGES["CHANGELOG.md"]
METRICS = PAGES["docs/metrics.md"]
#: The pages whose code is tested here; that of docs/deploy.md is in test_deploy.py.
TESTED_PAGES = {
    name: PAGES[name]
    for name in (
        "README.md", "docs/api.md", "docs/business.md", "docs/export.md", "docs/libraries.md", "docs/logs.md",
        "docs/metrics.md", "docs/privacy.md", "docs/tasks.md", "docs/testing.md", "docs/troubleshooting.md",
    )
}  # fmt: skip
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

SNIPPETS = {
    name: (language, body)
    for page in TESTED_PAGES.values()
    for name, language, body in re.findall(
        r"^<!-- snippet: ([\w-]+) -->\n```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL
    )
}
TOKEN = "tell-nobody-4711"
#: What the snippets read from the environment, as a user would have set it.
USERS_VARIABLES = {
    "SHOP_METRICS_TOKEN": TOKEN,
    "GRAFANA_CLOUD_INSTANCE_ID": "123456",
    "GRAFANA_CLOUD_TOKEN": "glc_key",
}


def snippet(name: str, language: str) -> str:
    found_language, body = SNIPPETS[name]
    assert found_language == language
    return body


def settings_of(name: str) -> dict:
    """The OTEL dict of a snippet."""
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in USERS_VARIABLES.items():
            patch.setenv(variable, value)
        exec(snippet(name, "python"), names)
    return names["OTEL"]


# --- A project as the README leaves it. ---

SPLICE = """
for _name, _before in (("INSTALLED_APPS", _apps), ("MIDDLEWARE", _middleware)):
    globals()[_name] = [_entry for _given in globals()[_name] for _entry in (_before if _given is ... else [_given])]
"""
#: The application of the README's examples, around them.
ORDERS = {
    "orders/__init__.py": "",
    "orders/models.py": """
from django.db import models

class Order(models.Model):
    status = models.CharField(max_length=20, default="placed")
    items = models.IntegerField(default=1)
    total = models.IntegerField(default=0)
""",
    "orders/work.py": """
import logging

def check_stock(order):
    assert order.items

def charge(order):
    order.status = "paid"
    order.save(update_fields=["status"])
    logging.getLogger("orders").warning("the stock is low after order %s", order.pk)
""",
    "orders/views.py": """
from django.shortcuts import get_object_or_404, render
from orders.checkout import process_order
from orders.models import Order

def pay(request, pk):
    order = get_object_or_404(Order, pk=pk)
    process_order(order)
    return render(request, "cart.html", {"order": order})
""",
}


class Project:
    """A Django project in a folder, used through processes of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def environ(self, **more: str) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("OTEL_", "TEST_", "PYTEST_")) and name not in ("DJANGO_SETTINGS_MODULE", "CI")
        }
        return {**kept, **USERS_VARIABLES, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1", **more}

    def run(self, *arguments: str, status: int | None = 0, **environ: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        done = services.run_program(command, self.environ(**environ), cwd=self.folder, timeout_s=180)
        assert status is None or done.returncode == status, done.stdout + done.stderr
        return done

    def manage(self, *arguments: str, status: int | None = 0, **environ: str) -> subprocess.CompletedProcess[str]:
        code = "import runpy; runpy.run_path('manage.py', run_name='__main__')"
        done = services.run_python(
            code, self.environ(**environ), argv=("manage.py", *arguments), cwd=self.folder, timeout_s=180, check=False
        )
        assert status is None or done.returncode == status, done.stdout + done.stderr
        return done

    @contextlib.contextmanager
    def serve(self, *command: str, port: int, **environ: str):
        log = self.folder / f"server-{port}.log"
        with (
            pytest.MonkeyPatch.context() as patch,
            log.open("wb") as output,
        ):
            patch.chdir(self.folder)
            words, env = [sys.executable, *command], self.environ(**environ)
            process = services.fork_program(words, env, log, self.folder) or subprocess.Popen(
                words, cwd=self.folder, env=env, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )
            try:
                services.wait_until(
                    lambda: services.is_listening(port) or process.poll() is not None, 30, f"{command}\n"
                )
                assert process.poll() is None, log.read_text()
                yield services.Server(f"http://127.0.0.1:{port}", process, log)
            finally:
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def write(self, path: str, text: str) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    def append(self, path: str, text: str) -> None:
        self.write(path, (self.folder / path).read_text(encoding="utf-8") + text)


def start_project(folder: Path) -> Project:
    """What `startproject` makes, and the README's lines."""
    project = Project(folder)
    project.run("-m", "django", "startproject", "shop", ".")
    project.append("shop/settings.py", "\n_apps, _middleware = INSTALLED_APPS, MIDDLEWARE\n")
    project.append("shop/settings.py", snippet("add-settings", "python") + SPLICE)
    project.append("shop/urls.py", "\n_urls = urlpatterns\n" + snippet("add-urls", "python"))
    project.append(
        "shop/urls.py", "\nurlpatterns = [e for given in urlpatterns for e in (_urls if given is ... else [given])]\n"
    )
    return project


@pytest.fixture(scope="module")
def new_project(tmp_path_factory):
    """A project with the README's lines and nothing else."""
    project = start_project(tmp_path_factory.mktemp("new"))
    project.manage("migrate", "--verbosity", "0")
    return project


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The same with the application of the README's examples; `TRY` in the environment replaces OTEL."""
    project = start_project(tmp_path_factory.mktemp("shop"))
    for path, text in ORDERS.items():
        project.write(path, text)
    # What the example calls and does not show.
    project.write("orders/checkout.py", "from orders.work import *\n" + snippet("api", "python"))
    project.write("orders/otel.py", snippet("business", "python"))
    project.write("orders/templates/cart.html", snippet("template", "html"))
    project.append(
        "shop/settings.py",
        """
import json, os
INSTALLED_APPS += ["orders"]
if "TRY" in os.environ:
    OTEL = json.loads(os.environ["TRY"])
    DEBUG = False
    ALLOWED_HOSTS = ["127.0.0.1"]
SECURE_SSL_REDIRECT = "REDIRECT" in os.environ
# The tests post without a form.
MIDDLEWARE.remove("django.middleware.csrf.CsrfViewMiddleware")
""",
    )
    project.append(
        "shop/urls.py",
        """
from orders import views
urlpatterns += [path("orders/<int:pk>/pay/", views.pay)]
""",
    )
    project.manage("migrate", "--run-syncdb", "--verbosity", "0")
    return project


def test_rules_name_tasks():
    rules = settings_of("task_rules")["SAMPLING"]["RULES"]
    assert [Rule.from_settings(rule).is_for_tasks for rule in rules] == [True, True]


def test_a_carried_task_continues_its_senders_trace(otel_spans):
    names: dict = {}
    exec(snippet("carried_task", "python"), names)

    class Queue:
        def enqueue(self, task, *arguments):
            self.task, self.arguments = task, arguments

    queue = Queue()
    with django_otel.span("order"):
        names["place_order"](queue, 7)
    queue.task(*queue.arguments)
    task = otel_spans.one("process send_invoice")
    assert task.parent.span_id == otel_spans.one("order").context.span_id


def test_a_task_of_huey_continues_its_senders_trace(settings, otel_spans):
    pytest.importorskip("huey")
    settings.HUEY = {"huey_class": "huey.MemoryHuey", "name": "shop", "immediate": False}
    names: dict = {}
    exec(snippet("huey_task", "python"), names)
    from huey.contrib.djhuey import HUEY

    with django_otel.span("order"):
        names["place_order"](7)
    # As a consumer does, in which nothing of the sender is current.
    worker = threading.Thread(target=lambda: HUEY.execute(HUEY.dequeue()))
    worker.start()
    worker.join()
    task = otel_spans.one("process send_invoice")
    assert task.parent.span_id == otel_spans.one("order").context.span_id


# Channels closes old connections after a message, also those that another test left in the thread.
@pytest.mark.heavy
@pytest.mark.django_db
async def test_a_message_of_a_channels_layer_continues_its_senders_trace(settings, otel_spans):
    pytest.importorskip("channels")
    from channels.testing import WebsocketCommunicator

    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
    names: dict = {}
    exec(snippet("channels_message", "python"), names)
    browser = WebsocketCommunicator(names["Orders"].as_asgi(), "/orders/")
    assert (await browser.connect())[0]
    with django_otel.span("order"):
        await names["announce"](7)
    assert await browser.receive_json_from(timeout=60) == {"number": 7}
    await browser.disconnect()
    message = otel_spans.one("process order.paid")
    assert message.parent.span_id == otel_spans.one("order").context.span_id


def test_every_block_of_code_is_a_snippet_that_a_test_uses():
    """A block without a name would not be tested, nor one whose name no test has."""
    named = set(re.findall(r"^<!-- snippet: ([\w-]+) -->$", "\n".join(TESTED_PAGES.values()), re.MULTILINE))
    assert named == set(SNIPPETS)
    for name, page in TESTED_PAGES.items():
        assert page.count("\n```") == 2 * page.count("<!-- snippet: "), name
    source = Path(__file__).read_text(encoding="utf-8")
    unused = [name for name in SNIPPETS if not re.search(rf'"{name}"', source)]
    assert unused == []


# --- The two commands. ---


def test_there_are_exactly_two_set_up_commands():
    """One runs the demo, one the tests; nothing else in the README makes an environment or installs."""
    start = "python3 -m venv .venv && .venv/bin/pip install -q -e "
    assert snippet("run-demo", "sh") == f"{start}'.[demo]' && .venv/bin/python manage.py demo\n"
    assert snippet("run-tests", "sh") == f"{start}'.[test]' && .venv/bin/python -m pytest\n"
    assert [name for name, (language, _) in SNIPPETS.items() if language in ("sh", "bash", "console", "shell")] == [
        "run-demo",
        "run-tests",
    ]
    assert len(re.findall(r"pip install|-m venv", README)) == 4
    assert {"demo", "test"} <= set(PYPROJECT["project"]["optional-dependencies"])


def test_what_the_demo_is_said_to_take_it_takes():
    """The options the README names."""
    done = Project(ROOT).manage("demo", "--help")
    for option in ("--seconds", "--port", "--rate", "--services"):
        assert f"`{option}" in README and option in done.stdout


# --- Adding it to a project. ---


def test_the_requirement_names_this_distribution():
    requirement = Requirement(snippet("requirement", "text").strip())
    assert requirement.name == PYPROJECT["project"]["name"]


def test_a_project_with_the_lines_is_silent_and_measured(new_project):
    """No collector, no warning, no query for the probes; a request is counted and the page answers."""
    for arguments in (("check",), ("check", "--database", "default"), ("makemigrations", "--check")):
        done = new_project.manage(*arguments)
        assert done.stderr == "", arguments
        assert done.stdout in ("System check identified no issues (0 silenced).\n", "No changes detected\n")
    port = services.free_port()
    with new_project.serve("manage.py", "runserver", "--noreload", f"127.0.0.1:{port}", port=port) as server:
        for path in ("/admin/login/", "/admin/login/", "/nowhere"):
            server.get(path)
        assert [server.get(path)[0] for path in ("/livez", "/readyz")] == [200, 200]
        status, _, page = server.get("/metrics")
        log = server.log
    assert status == 200
    counts = {
        sample.labels["http_route"]: sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
        if sample.name == "http_server_request_duration_seconds_count"
    }
    assert counts == {"/admin/login/": 2, "<unmatched>": 1}
    assert "target_info{" in page.decode() and 'service_name="shop"' in page.decode()
    # runserver's own line names the address of the request's trace, and of nothing else.
    trace = rf"  http://127\.0\.0\.1:{port}/admin/django_otel/trace/[0-9a-f]{{32}}/$"
    assert len(re.findall(trace, log, re.MULTILINE)) == 3, log
    log = re.sub(trace, "", log, flags=re.MULTILINE)
    for word in ("otel", "Traceback", "telemetry"):
        assert word not in log.lower() if word.islower() else word not in log, log


def test_without_its_table_the_settings_apply(tmp_path):
    """Nothing is migrated; requests are served and the check says what to run."""
    project = start_project(tmp_path)
    port = services.free_port()
    with project.serve("-m", "gunicorn", "shop.wsgi", "--bind", f"127.0.0.1:{port}", port=port) as server:
        assert server.get("/nowhere")[0] == 404
        assert b'http_route="<unmatched>"' in server.get("/metrics")[2]
    assert "W008" in project.manage("check", "--database", "default").stderr


def test_a_faulty_dict_is_an_error_of_check_and_the_server_still_serves(shop):
    """Named with the nearest key; `/metrics` and `/readyz` say 503 with ids alone."""
    faulty = json.dumps({"SERVICE_NAME": "shop", "SAMPLING": {"SAMPLE_RATE": 0.5}})
    done = shop.manage("check", status=1, TRY=faulty)
    assert "django_otel.E001" in done.stderr and 'OTEL["SAMPLING"]["RATIO"]' in done.stderr
    port = services.free_port()
    with shop.serve("-m", "gunicorn", "shop.wsgi", "--bind", f"127.0.0.1:{port}", port=port, TRY=faulty) as server:
        assert server.get("/nowhere")[0] == 404
        for path in ("/metrics", "/readyz"):
            status, _, body = server.get(path)
            assert (status, b"E001" in body, b"SAMPLE_RATE" in body) == (503, True, False)


# --- /metrics and Prometheus. ---


def queries() -> list[str]:
    blocks = re.split(r"^#.*\n", snippet("promql", "promql"), flags=re.MULTILINE)
    return [block.strip() for block in blocks if block.strip()]


def test_the_queries_are_promql_over_metrics_that_exist():
    promql = pytest.importorskip("promql_parser", reason="promql-parser has no wheel here")
    known = set()
    for row in re.findall(r"^\| `[\w.]+` \| `(\w+)` \| (\w+)", METRICS, re.MULTILINE):
        name, kind = row
        known |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    assert len(queries()) >= 4
    for query in queries():
        promql.parse(query)
        names = set(re.findall(r"\b((?:http|django|db)_\w+?)(?=[\[{])", query))
        assert names and names <= known, query


@contextlib.contextmanager
def served_shop(shop, otel, **environ):
    """The shop under the command that the README gives: several processes, one /metrics."""
    [command] = [text for text in re.findall(r"`(gunicorn [^`]+)`", README) if "--threads" in text]
    program, *arguments = command.split()
    port = services.free_port()
    with shop.serve(
        "-m", program, *arguments, "--bind", f"127.0.0.1:{port}", port=port, TRY=json.dumps(otel), **environ
    ) as server:
        yield server


def create_orders(shop) -> None:
    """Order 7, which can be paid, and order 8, which fails."""
    script = "from orders.models import Order; Order(7, items=2, total=40).save(); Order(8, items=0).save()"
    shop.manage("shell", "--no-imports", "-c", script)


def test_the_page_asks_for_the_token(shop):
    """401 with a sentence without it, the page with it."""
    with served_shop(shop, settings_of("metrics-token")) as server:
        status, headers, body = server.get("/metrics")
        assert (status, headers["www-authenticate"][:6]) == (401, "Bearer")
        assert b"Authorization: Bearer" in body
        assert server.get("/metrics", {"Authorization": f"Bearer {TOKEN}"})[0] == 200
    with served_shop(shop, {"SERVICE_NAME": "shop"}) as server:
        status, _, body = server.get("/metrics")
        assert status == 403 and b'OTEL["METRICS_VIEW"]["TOKEN"]' in body


@pytest.mark.parametrize("name", ["health", "production"])
def test_the_settings_for_probes_and_production_are_valid(name):
    from django_otel.config.parse import parse

    assert parse(settings_of(name), {}).health.ready[:2] == ("config", "databases")


def test_nothing_stands_in_a_scrapers_way(shop):
    """Neither ALLOWED_HOSTS nor the redirect to HTTPS, which hold for every other page."""
    otel = {"SERVICE_NAME": "shop", "METRICS_VIEW": {"ALLOW": "all"}}
    with served_shop(shop, otel, REDIRECT="1") as server:
        assert server.get("/metrics", {"Host": "shop.internal"})[0] == 200
        assert server.get("/livez", {"Host": "10.0.0.7"})[0] == 200
        assert server.get("/admin/login/")[0] == 301


def test_the_scrape_configuration_is_complete():
    [job] = yaml.safe_load(snippet("prometheus", "yaml"))["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    assert job["authorization"]["type"] == "Bearer"
    [target] = job["static_configs"][0]["targets"]
    assert f"`{target.partition(':')[0]}`" in METRICS


@pytest.mark.debian
@pytest.mark.long
def test_a_real_prometheus_scrapes_with_that_configuration_and_answers_the_queries(shop, tmp_path):
    """The README's file with the address, the token's place and the pace of a test."""
    if not shutil.which("prometheus"):
        services.missing("Prometheus is not installed. Run: apt-get install prometheus")
    create_orders(shop)
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    with served_shop(shop, settings_of("metrics-token")) as server:
        config = yaml.safe_load(snippet("prometheus", "yaml"))
        config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms"}
        config["scrape_configs"][0]["authorization"]["credentials_file"] = str(token_file)
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [urllib.parse.urlsplit(server.url).netloc]
        config_path = tmp_path / "prometheus.yml"
        config_path.write_text(yaml.safe_dump(config))
        port = services.free_port()
        command = [
            "prometheus", f"--config.file={config_path}", f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage",
        ]  # fmt: skip

        def value(query: str) -> float | None:
            status, _, body = prometheus.get(f"/api/v1/query?{urllib.parse.urlencode({'query': query})}")
            assert status == 200, body
            result = json.loads(body)["data"]["result"]
            return float(result[0]["value"][1]) if result else None

        with services.running(command, log=tmp_path / "prometheus.log") as process:
            prometheus = services.Server(f"http://127.0.0.1:{port}", process, tmp_path / "prometheus.log")
            services.wait_until(lambda: services.is_listening(port), 30, "Prometheus")

            def answers() -> bool:
                # A rate wants growth between two scrapes.
                assert server.request("POST", "/orders/7/pay/", b"")[0] == 200
                assert server.request("POST", "/orders/8/pay/", b"")[0] == 500
                return all(found is not None and found == found for found in map(value, queries()))

            services.wait_until(answers, 60, "an answer to every query")
            # A scrape may come between the two of a pair, which is less and less of the whole.
            services.wait_until(lambda: answers() and abs(value(queries()[1]) - 0.5) < 0.2, 60, "half of them failed")


# --- What is measured. ---


def test_the_metric_table_is_the_catalogue():
    """Run `python docs/build_readme.py` after a change of the catalogue."""
    spec = importlib.util.spec_from_file_location("build_readme", ROOT / "docs" / "build_readme.py")
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    assert builder.fill(README, builder.build_short_table()) == README
    assert builder.build_page(METRICS) == METRICS
    between = METRICS.split(builder.BEGIN)[1].split(builder.END)[0]
    assert re.findall(r"^\| `([\w.]+)` \|", between, re.MULTILINE) == list(CATALOGUE)


def test_the_names_in_the_table_are_those_on_the_page(shop):
    """As a served page shows them, for everything this shop has."""
    create_orders(shop)
    rows = dict(re.findall(r"^\| `([\w.]+)` \| `(\w+)` \|", METRICS, re.MULTILINE))
    with served_shop(shop, {"SERVICE_NAME": "shop", "METRICS_VIEW": {"ALLOW": "all"}}) as server:
        # As a proxy says when it received the request.
        received = {"X-Request-Start": f"t={time.time():.3f}"}
        assert server.request("POST", "/orders/7/pay/", b"x=1", headers=received)[0] == 200
        page = server.get("/metrics")[2].decode()
    shown = set(re.findall(r"^# TYPE (\w+)", page, re.MULTILINE))
    wanted = {
        rows[name]
        for name in CATALOGUE
        if name.startswith(("http.", "db.", "django.request.queries", "django.db.connections", "django_otel.sampling"))
    }
    assert wanted <= shown
    assert {"orders_total", "order_value", "charge_payment_seconds", "orders_waiting", "banner_views_total"} <= shown


# --- The examples of the API, in the project's own pytest. ---

MORE_TESTS = """
import json
import os
import queue
import re

import pytest
from django.test import override_settings

from django_otel import signals
from django_otel.base import guard
from orders.models import Order

heard = []


@pytest.fixture(autouse=True)
def nothing_is_contained():
    guard.reset()
    yield
    # A test without a database: the callback of orders.waiting wants one.
    assert {place for place in guard.fault_counts() if not place.startswith("the callback of")} == set()


@pytest.mark.django_db
def test_tree(client, otel_spans):
    order = Order.objects.create(items=2, total=40)
    client.post(f"/orders/{order.pk}/pay/")
    assert str(otel_spans.tree()) == os.environ["TREE"]


@pytest.mark.django_db
def test_template(client, otel_spans, otel_metrics):
    order = Order.objects.create(items=2, total=40)
    answer = client.post(f"/orders/{order.pk}/pay/")
    server = otel_spans.one("POST /orders/<int:pk>/pay/")
    trace_id = f"{server.context.trace_id:032x}"
    page = answer.content.decode()
    assert f'<meta name="traceparent" content="00-{trace_id}-' in page
    assert f"This request's trace {trace_id}" in page
    assert "no-store" in answer.headers["Cache-Control"]
    rendered = otel_spans.one("cart.render")
    assert dict(rendered.attributes) == {"items": 2, "cart.currency": "EUR"}
    assert [(e.name, dict(e.attributes)) for e in rendered.events] == [("banner.shown", {"banner": "spring"})]
    assert otel_metrics.value("banner.views", banner="spring") == 1


@pytest.mark.django_db
def test_api(client, otel_spans, otel_metrics):
    order = Order.objects.create(items=2, total=40)
    client.post(f"/orders/{order.pk}/pay/")
    whole = otel_spans.one("process_order")
    assert whole.attributes["order.id"] == order.pk
    assert [(e.name, e.attributes["amount"]) for e in whole.events] == [("payment_captured", 40)]
    assert otel_spans.one("validate_inventory").attributes["items"] == 2
    value = otel_metrics.value("order.value")
    assert (value.count, value.sum, value.bounds) == (1, 40, (10, 50, 100, 500))
    assert otel_metrics.value("charge_payment", provider="acme").count == 1
    assert otel_metrics.value("orders.waiting") == 0


def test_queue(otel_spans):
    names = {"send_invoice": lambda order: None}
    exec(os.environ["QUEUE"], names)
    messages = queue.Queue()
    with names["span"]("place"):
        names["enqueue"](messages, Order(pk=7))
    names["work"](json.loads(json.dumps(messages.get())))
    place, work = otel_spans.one("place"), otel_spans.one("send_invoice")
    assert work.context.trace_id == place.context.trace_id
    assert work.parent.span_id == place.context.span_id
    assert work.attributes["order"] == 7


def check_events(otel_spans, otel_metrics):
    order = Order.objects.create(total=40)
    order.status = "paid"
    order.save()
    placed, paid = otel_spans.one("order.placed"), otel_spans.one("order.paid")
    assert placed.attributes["business.total"] == 40
    assert placed.attributes["django.transaction.outcome"] == "autocommit"
    assert (paid.attributes["business.from"], paid.attributes["business.to"]) == ("placed", "paid")
    for name in ("order.placed", "order.paid"):
        assert otel_metrics.value("django.business.events", business__event=name) == 1


@pytest.mark.django_db(transaction=True)
def test_business(otel_spans, otel_metrics):
    check_events(otel_spans, otel_metrics)


@pytest.mark.django_db(transaction=True)
def test_business_settings(otel_spans, otel_metrics):
    from django_otel import business
    from orders import otel

    business.unregister(Order)
    try:
        Order.objects.create(total=40)
        assert otel_spans.named("order.placed") == []
        otel_spans.clear()
        with override_settings(OTEL=json.loads(os.environ["BUSINESS"])):
            check_events(otel_spans, otel_metrics)
    finally:
        business.register(Order)(otel.OrderEvents)


@pytest.mark.django_db(transaction=True)
def test_business_bulk(otel_spans, otel_metrics):
    names = {"notify": heard.append}
    exec(os.environ["BULK"], names)
    names["import_orders"]([Order(total=1), Order(total=2)])
    assert otel_metrics.value("django.business.events", business__event="order.placed") == 2
    assert otel_spans.one("order.placed").attributes["business.channel"] == "import"
    assert heard == ["2 orders placed"]


def test_privacy(client, otel_spans, otel_metrics):
    traceparent = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    with override_settings(OTEL=json.loads(os.environ["PRIVACY"])):
        client.get("/health/db")
        client.get("/nowhere/?iban=DE02&page=2", headers={
            "x-tenant": "acme", "authorization": "Bearer geheim", "accept-language": "de", "traceparent": traceparent,
            "x-other": "unseen",
        })
    [found] = otel_spans
    assert found.attributes["url.query"] == "iban=[redacted]&page=2"
    assert found.attributes["http.request.header.x-tenant"] == ("acme",)
    assert found.attributes["http.request.header.accept-language"] == ("de",)
    assert "geheim" not in found.to_json() and "unseen" not in found.to_json()
    assert found.context.trace_id != int("a" * 32, 16)
    assert found.links[0].context.trace_id == int("a" * 32, 16)
    assert otel_metrics.value("http.server.request.duration").count == 1


def test_defaults_tell_nothing(client, otel_spans):
    client.get("/nowhere/?q=unseen", headers={"x-other": "unseen", "user-agent": "seen"})
    [found] = otel_spans
    assert "unseen" not in found.to_json()
    layers = {name for name in found.attributes if name.startswith("django.layer.")}
    assert set(found.attributes) - layers == {
        "http.request.method", "url.path", "url.scheme", "network.protocol.version", "server.address", "server.port",
        "user_agent.original", "http.response.status_code",
    }
"""


def test_the_examples_run_in_the_project(shop):
    """The README's own tests, and ours of its other snippets, by pytest in the project."""
    shop.write("tests/test_paying.py", snippet("testing", "python"))
    shop.write("tests/test_more.py", MORE_TESTS)
    shop.write(
        "pytest.ini",
        "[pytest]\nDJANGO_SETTINGS_MODULE = shop.settings\npythonpath = .\nfilterwarnings = error\n"
        "asyncio_default_fixture_loop_scope = function\n",
    )
    is_installed = bool(importlib.metadata.entry_points(group="pytest11", name="django_otel.testing"))
    done = shop.run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly",
        *(() if is_installed else ("-p", "django_otel.testing")), "tests",
        status=None,
        TREE=snippet("tree", "text").strip(),
        QUEUE=snippet("queue", "python"),
        BULK=snippet("business-bulk", "python"),
        BUSINESS=json.dumps(settings_of("business-settings")),
        PRIVACY=json.dumps(settings_of("privacy")),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    expected = len(re.findall(r"^def test_", snippet("testing", "python") + MORE_TESTS, re.MULTILINE))
    assert f"{expected} passed" in done.stdout


# --- Sending. ---


@pytest.mark.parametrize(
    ("name", "traces_url", "headers", "others"),
    sizes.few(
        [
            ("jaeger", "http://localhost:4318/v1/traces", {}, ()),
            ("tempo", "http://tempo:4318/v1/traces", {"X-Scope-OrgID": "shop-team"}, ()),
            ("datadog", "http://localhost:4318/v1/traces", {}, ("metrics",)),
            (
                "grafana-cloud",
                "https://otlp-gateway-prod-eu-west-2.grafana.net/otlp/v1/traces",
                {"Authorization": "Basic MTIzNDU2OmdsY19rZXk="},
                ("metrics", "logs"),
            ),
            ("collector-settings", "http://localhost:4318/v1/traces", {}, ("metrics", "logs")),
        ],
        3,
    ),
)
def test_the_settings_for_a_backend_send_to_it(shop, receiver, name, traces_url, headers, others):
    """Right addresses and headers, and with a receiver in its place everything arrives, as the doctor sees it."""
    otel = settings_of(name)
    config = parse(otel, {})
    assert config.traces.endpoint == traces_url
    assert config.traces.exporters == ("otlp",)
    for signal in ("metrics", "logs"):
        part = getattr(config, signal)
        assert ("otlp" in part.exporters) == (signal in others)
        if signal in others:
            assert part.endpoint == traces_url.removesuffix("traces") + signal
            assert part.headers == config.traces.headers
    otel["TRACES"]["ENDPOINT"] = receiver.url
    report = json.loads(shop.manage("otel", "doctor", "--format", "json", TRY=json.dumps(otel)).stdout)
    assert report["healthy"]
    arrived = {path for path, _, message in receiver.requests if message.ByteSize()}
    assert arrived == {f"/v1/{signal}" for signal in ("traces", *others)}
    wanted = {header.lower(): value for header, value in headers.items()}
    assert all(wanted.items() <= sent.items() for _, sent, _ in receiver.requests)


def test_send_test_prints_the_trace_and_where_to_look_at_it(shop, receiver):
    otel = settings_of("jaeger")
    otel["TRACES"]["ENDPOINT"] = receiver.url
    done = shop.manage("otel", "send-test", TRY=json.dumps(otel))
    [trace_id] = {span.trace_id.hex() for _, span in receiver.spans()}
    assert f"http://localhost:16686/trace/{trace_id}" in done.stdout


def test_the_collectors_file_is_whole():
    """Every part of a pipeline is defined, everything defined is used, and keys come from the environment."""
    text = snippet("collector", "yaml")
    config = yaml.safe_load(text)
    pipelines = config["service"]["pipelines"]
    assert set(pipelines) == {"traces", "metrics", "logs"}
    for kind in ("receivers", "processors", "exporters"):
        used = {part for pipeline in pipelines.values() for part in pipeline[kind]}
        assert used == set(config[kind])
    assert config["service"]["extensions"] == list(config["extensions"])
    authenticators = {
        exporter["auth"]["authenticator"] for exporter in config["exporters"].values() if "auth" in exporter
    }
    assert authenticators <= set(config["extensions"])
    assert set(re.findall(r"\$\{env:(\w+)\}", text)) == {
        "GRAFANA_CLOUD_INSTANCE_ID",
        "GRAFANA_CLOUD_TOKEN",
        "DD_API_KEY",
    }
    # What the application sends to is where the Collector listens; Grafana Cloud is one place in both snippets.
    listens = config["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
    assert settings_of("collector-settings")["TRACES"]["ENDPOINT"] == f"http://{listens}"
    assert (
        config["exporters"]["otlp_http/grafana_cloud"]["endpoint"] == settings_of("grafana-cloud")["TRACES"]["ENDPOINT"]
    )


def test_the_agent_listens_where_the_application_sends():
    agent = yaml.safe_load(snippet("datadog-agent", "yaml"))
    listens = agent["otlp_config"]["receiver"]["protocols"]["http"]["endpoint"]
    datadog = settings_of("datadog")
    assert datadog["TRACES"]["ENDPOINT"] == f"http://{listens}"
    assert parse(datadog, {}).metrics.temporality == "delta"


# --- Logs, libraries, troubleshooting. ---


def test_log_lines_carry_the_trace_and_only_warnings_are_exported(shop, receiver):
    names: dict = {}
    exec(snippet("logs", "python"), names)
    otel = names["OTEL"]
    otel["TRACES"]["ENDPOINT"] = receiver.url
    script = f"""
import django, logging, os
from django.conf import settings
os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
settings.LOGGING = {names["LOGGING"]!r}
django.setup()
import django_otel
logger = logging.getLogger("shop")
logger.info("outside")
with django_otel.span("work"):
    logger.info("inside")
    logger.warning("look")
    print(django_otel.current_trace_id())
"""
    done = shop.run("-c", script, TRY=json.dumps(otel))
    trace_id = done.stdout.strip()
    assert re.fullmatch(r"[0-9a-f]{32}", trace_id)
    assert done.stderr.splitlines() == [
        "INFO shop trace=0 outside",
        f"INFO shop trace={trace_id} inside",
        f"WARNING shop trace={trace_id} look",
    ]
    [(_, record)] = receiver.logs()
    assert (record.body.string_value, record.trace_id.hex()) == ("look", trace_id)


def test_the_named_libraries_are_switched_on(shop):
    done = shop.manage("otel", "doctor", "--format", "json", TRY=json.dumps(settings_of("libraries")))
    outcomes = {item["subject"]: item["outcome"] for item in json.loads(done.stdout)["findings"]}
    for name in settings_of("libraries")["INSTRUMENT"]:
        assert outcomes[f"instrumentor {name}"] == "ok", done.stdout


def test_fastapi_beside_django_is_traced(shop, receiver):
    """The README's asgi.py under the README's uvicorn."""
    shop.write("shop/asgi.py", snippet("fastapi", "python"))
    otel = {
        "SERVICE_NAME": "shop",
        "INSTRUMENT": ["fastapi"],
        "TRACES": {"ENDPOINT": receiver.url, "BATCH": {"DELAY_S": 0.1}},
    }
    [target] = re.findall(r"`uvicorn ([\w.:]+)`", README)
    port = services.free_port()
    with shop.serve("-m", "uvicorn", target, "--port", str(port), port=port, TRY=json.dumps(otel)) as server:
        assert server.get("/api/ping")[2] == b'"pong"'
        assert server.get("/admin/login/")[0] == 200
    names = {span.name for _, span in receiver.spans() if span.kind == 2}
    assert names == {"GET /api/ping", "GET /admin/login/"}


def test_the_doctor_says_what_the_readme_shows(shop):
    """Nothing listens there; the port, the versions and the user differ."""

    def words(text):
        return re.sub(r"\d+(\.\d+)+\w*|/\S+/django-otel-\d+", "N", text).split()

    port = services.free_port()
    otel = {"SERVICE_NAME": "shop", "TRACES": {"ENDPOINT": f"http://localhost:{port}"}}
    done = shop.manage("otel", "doctor", "--timeout", "2", status=1, TRY=json.dumps(otel))
    assert words(done.stdout.replace(str(port), "4318")) == words(snippet("doctor", "text")), done.stdout


def test_the_subcommands_named_are_those_there_are(shop):
    help_text = shop.manage("otel").stdout
    for name in set(re.findall(r"`manage\.py otel ([\w-]+)", "\n".join(PAGES.values()))):
        assert re.search(rf"^\s+{name}\b", help_text, re.MULTILINE), name


def test_a_processor_of_structlog_adds_the_trace(shop):
    pytest.importorskip("structlog", reason="structlog is in the extra test")
    script = f"""
import django, os
os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
django.setup()
{snippet("structlog", "python")}
structlog.get_logger().info("outside")
with django_otel.span("work"):
    structlog.get_logger().info("inside", order=7)
    print(django_otel.current_trace_id())
"""
    outside, inside, trace_id = shop.run("-c", script, TRY="{}").stdout.splitlines()
    assert json.loads(outside) == {"event": "outside", "level": "info", "trace_id": None}
    assert json.loads(inside) == {"event": "inside", "level": "info", "order": 7, "trace_id": trace_id}
    assert len(trace_id) == 32


# --- Words that must be true. ---

SECTIONS = {dotted.rsplit(".", 1)[0] for dotted, _ in walk(Config) if "." in dotted}
KEYS = {dotted for dotted, _ in walk(Config)}
#: Upper-case words in code that are no keys of OTEL.
OTHER_WORDS = {
    "BASE_DIR", "COVERAGE_PROCESS_START", "MAILERS", "CONSUMER", "MIN_S", "PRODUCER",
    "FETCH_PEERS", "FOLDER", "LANGUAGE_CODE", "LC_MESSAGES", "LOCALE_PATHS",
    "DD_API_KEY", "GRAFANA_CLOUD_TOKEN", "JAEGER_ENDPOINT",
    "PERCENT", "ROUTE", "THRESHOLD",
    "IGNORE_EXCEPTIONS", "PATH",
    "BACKEND", "ENGINE", "ELASTIC_APM", "SANITIZE_FIELD_NAMES", "TRANSACTIONS_IGNORE_PATTERNS",
    "TRANSACTION_SAMPLE_RATE", "PROMETHEUS_LATENCY_BUCKETS", "PROMETHEUS_METRIC_NAMESPACE",
    "REQUESTS_CA_BUNDLE", "SCRIPT_NAME",
    "PROMETHEUS_MULTIPROC_DIR", "SIG_DFL",
    "ALLOWED_HOSTS", "ATOMIC_REQUESTS", "DEBUG", "GET", "HGET", "INSTALLED_APPS", "LOGGING", "MIDDLEWARE", "OTEL",
    "SECRET_KEY", "SECURE_SSL_REDIRECT", "SELECT", "COPY", "COMMIT", "ROLLBACK", "BEGIN", "FETCH",
    "MIN_S", "TIME_BUDGET", "MEDIA_URL", "STATIC_URL",
}  # fmt: skip


@sizes.each("page", PAGES)
def test_every_key_that_is_named_exists(page):
    """`SECTION.KEY`, `SECTION` and the keys of every dict; W and E numbers are those of the checks."""
    # Without blocks of code, and what the changelog says of redaction, which quotes texts of strangers.
    prose = re.sub(r"^```.*?^```$|^- Redaction .*?(?=^\S)", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    for text in re.findall(r"`([^`\n]+)`", prose):
        for word in re.findall(r"(?<![\w.])[A-Z][A-Z_]+(?:\.[A-Z][A-Z_]+)*(?![\w.])", text):
            if word.startswith("OTEL_") or word in OTHER_WORDS:
                continue
            assert word in KEYS | SECTIONS, f"{word} in {text!r}"
    for check_id in re.findall(r"\b([EW]0\d\d)\b", PAGES[page]):
        assert f"`{check_id}`" in (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")


@sizes.each("page", LINKED_PAGES)
def test_links_lead_somewhere(page):
    """To a file of the repository, or to a heading of a page."""
    here = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", LINKED_PAGES[page]):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        found = (here / path) if path else ROOT / page
        assert found.exists(), target
        if anchor and found.is_file():
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target


def test_the_links_leave_with_the_source():
    """What the README shows is committed, not only on this machine."""
    tracked = subprocess.run(
        ["git", "ls-files", "docs", "CHANGELOG.md"], cwd=ROOT, capture_output=True, text=True
    ).stdout
    if not tracked:
        pytest.skip("this is no git checkout")
    for target in re.findall(r"\]\((docs/[^)#\s]+)", README):
        assert target in tracked.splitlines(), target


def test_versions_are_those_of_pyproject():
    project = PYPROJECT["project"]
    assert "version" in project["dynamic"]
    assert f"version {django_otel.__version__}" in README
    pythons = [
        tuple(map(int, found.split(".")))
        for entry in project["classifiers"]
        for found in re.findall(r"^Programming Language :: Python :: (\d+\.\d+)$", entry)
    ]
    lowest, highest = (".".join(map(str, pick(pythons))) for pick in (min, max))
    assert f"Python {lowest} to {highest}" in re.sub(r"\s+", " ", README)
    assert project["requires-python"] == f">={lowest}"
    [django] = [Requirement(text) for text in project["dependencies"] if text.startswith("django")]
    low, high = re.search(r"Django (\d+\.\d+) to\s+(\d+\.\d+)", README).groups()
    assert django.specifier.contains(f"{low}.0") and django.specifier.contains(f"{high}.0")
    major, minor = map(int, high.split("."))
    assert not django.specifier.contains(f"{major}.{minor + 1}.0")
    assert not django.specifier.contains("5.1.9")


def test_the_changelog_begins_with_this_version():
    """Unreleased changes may stand above it."""
    headings = re.findall(r"^## \[(.+?)\]", CHANGELOG, re.MULTILINE)
    assert [heading for heading in headings if heading != "Unreleased"][0] == django_otel.__version__
    assert set(re.findall(r"^### (.+)$", CHANGELOG, re.MULTILINE)) <= {
        "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Known limits",
    }  # fmt: skip


def test_the_files_that_the_architecture_page_names_exist():
    """Paths are from the package's folder, or from the repository's."""
    named = set(re.findall(r"`((?:[\w./]+/)?[\w]+\.(?:py|html|md))`", ARCHITECTURE))
    assert len(named) > 15
    for name in named:
        assert (ROOT / "django_otel" / name).is_file() or (ROOT / name).is_file(), name


@pytest.mark.heavy
def test_every_module_is_on_the_architecture_page():
    """The tables are made from docstrings; a new module has one, and the page is built again."""
    spec = importlib.util.spec_from_file_location("build_architecture", ROOT / "docs" / "build_architecture.py")
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    builder.summary = functools.cache(builder.summary)
    assert builder.build() in ARCHITECTURE
    for path in (ROOT / "django_otel").rglob("*.py"):
        name = str(path.relative_to(ROOT / "django_otel"))
        assert path.stem == "__init__" or "migrations/" in name or f"`{name}`" in ARCHITECTURE, name
        assert path.stem == "__init__" or "migrations/" in name or builder.summary(path), name


def test_the_names_that_the_architecture_page_calls_exist():
    """`module.function` and `Class.method` of the code, so that a reader who searches for them finds them."""
    sources = {
        path.parent.name if path.stem == "__init__" else path.stem: path.read_text(encoding="utf-8")
        for path in (ROOT / "django_otel").rglob("*.py")
    }
    named = set(re.findall(r"`(\w+)\.(\w+)\(\)`", ARCHITECTURE))
    assert len(named) > 10
    for owner, name in named:
        places = [sources.get(owner, ""), *(text for text in sources.values() if re.search(rf"class {owner}\b", text))]
        assert any(re.search(rf"(def|class) {name}\b", text) for text in places), f"{owner}.{name}()"
