"""Every panel and every example query shows data of a real Prometheus that has scraped the demo shop."""

from __future__ import annotations

import contextlib
import html
import http.server
import json
import re
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import yaml as pyyaml
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

from django_otel.metrics.catalogue import CATALOGUE
from django_otel.operations.monitoring import examples, more_boards, rules, yaml
from tests import services
from tests.operations.test_monitoring import need, panel_queries
from tests.recorded import record

#: Queries that stay empty without PostgreSQL and a broker, by what stands in them.
WITHOUT_SERVICES = {
    "django_db_pool": "SQLite has no pool",
    "django_task_queue_length": "the shop's own threads have no queue that could be asked",
}
#: Queries that stay empty in any case: none. This table only ever gets shorter.
NEVER: dict[str, str] = {}
#: How the second server is set up: everything that it exports is refused, and it has hardly a place for it.
CRAMPED = {
    "METRICS": {"EXPORTERS": ["prometheus", "otlp"], "INTERVAL_S": 1.0},
    "LOGS": {"EXPORTERS": ["otlp"]},
    # No place for a store.
    "CONSOLE": {"ENABLED": True, "PATH": "/proc/self/console"},
}
CRAMPED_ENV = {
    "OTEL_EXPORTER_OTLP_TIMEOUT": "500",
    "OTEL_BSP_MAX_QUEUE_SIZE": "4", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4", "OTEL_BSP_SCHEDULE_DELAY": "100",
    "OTEL_BLRP_MAX_QUEUE_SIZE": "4", "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE": "4", "OTEL_BLRP_SCHEDULE_DELAY": "100",
}  # fmt: skip
PATHS = (
    "/", "/order/", "/api/products/", "/slow/", "/error/", "/statement/", "/unavailable/?fail", "/wrong-statement/",
    "/database-gone/", "/cache-gone/", "/order-now/?email=ada@shop.example", "/order-now/?email=full@shop.example",
    "/nowhere/", "/delivery/", "/sales.csv",
)  # fmt: skip


@contextlib.contextmanager
def sockets(env: dict[str, str], log) -> Iterator[int]:
    """Serve the shop beside WebSockets by uvicorn; gives its port."""
    port = services.free_port()
    command = [
        sys.executable, "-m", "uvicorn", "tests.asgi_sockets:application", "--host", "127.0.0.1", "--port", str(port),
        "--log-level", "warning",
    ]  # fmt: skip
    with services.running(command, env, log):
        services.wait_until(lambda: services.is_listening(port), 60, "uvicorn")
        yield port


class Unwilling(http.server.BaseHTTPRequestHandler):
    """A receiver of OTLP that has no place for spans and records, and rejects a data point of each export."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        is_taken = self.path.endswith("/metrics")
        answer = ExportMetricsServiceResponse()
        answer.partial_success.rejected_data_points = 1
        body = answer.SerializeToString() if is_taken else b""
        self.send_response(200 if is_taken else 503)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def unwilling_receiver() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Unwilling) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def prometheus(folder: Path, ports: dict[str, int], interval: str = "500ms") -> Iterator[services.Server]:
    (folder / "rules.yml").write_text(yaml.dump(rules.build_rules()))
    config = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": "1s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]} for job, port in ports.items()
        ],
    }
    (folder / "prometheus.yml").write_text(pyyaml.safe_dump(config))
    port = services.free_port()
    command = [
        "prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with services.running(command, log=folder / "prometheus.log") as process:
        services.wait_until(lambda: services.is_listening(port), 30, "Prometheus")
        yield services.Server(f"http://127.0.0.1:{port}", process, folder / "prometheus.log")


def visit(port: int) -> None:
    """Do everything that the shop's visitors may do, and some things that they may not."""
    site = f"http://127.0.0.1:{port}"
    began = {"X-Request-Start": f"t={time.time() - 1:.3f}"}
    with requests.Session() as session:
        for path in PATHS:
            session.get(f"{site}{path}", headers=began, timeout=30)
        session.post(f"{site}/api/orders/", json={"lines": []}, timeout=30)
        # Without the token of the form.
        session.post(f"{site}/order/", data={}, timeout=30)
        form = session.get(f"{site}/admin/login/", timeout=30).text
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form)
        assert token
        data = {"username": "ada", "password": "wrong", "csrfmiddlewaretoken": token[1]}
        session.post(f"{site}/admin/login/", data=data, timeout=30)


def chat(port: int) -> None:
    from websockets.sync.client import connect

    with connect(f"ws://127.0.0.1:{port}/ws/chat/tea/") as socket:
        socket.send("hello")
        assert socket.recv(timeout=10) == "hello"


def all_queries(silent: dict[str, str]) -> set[tuple[str, str, str]]:
    """Every panel's and every example's query, as Grafana sends it."""
    found = set(panel_queries()) | {
        ("catalogue", f"{metric.name}: {example.title}", re.sub(r"\[\d+[mhd]\]", "[1m]", example.query))
        for metric in CATALOGUE.values()
        for example in examples.find_examples(metric)
    }
    for name in silent:
        assert any(name in expr for _, _, expr in found), name
    return {query for query in found if not any(name in query[2] for name in silent)}


@contextlib.contextmanager
def serve_shop(
    folder: Path, extra: dict[str, str], most_series: int = 3
) -> Iterator[tuple[dict[str, int], dict[str, str]]]:
    """The demo by two servers; with a broker in `extra`, a worker of Celery as well.

    Gives their ports by job, and the environment of the first. `most_series` is the limit of the second.
    """
    with contextlib.ExitStack() as stack:
        folders = [folder / name for name in ("shop", "sockets")]
        for each in folders:
            each.mkdir()
        env = record.prepare(folders[0], {}, extra)
        if "REDIS_URL" in extra:
            worker = [sys.executable, "-m", "celery", "-A", "example_project.celery_app", "worker", "-c", "1"]
            stack.enter_context(services.running(worker, env, folder / "worker.log"))
        port = stack.enter_context(
            record.serve(env, folder / "shop.log", "--workers", "2", "--worker-class", "gthread", "--threads", "4")
        )
        receiver = stack.enter_context(unwilling_receiver())
        otel = {**CRAMPED, "METRICS": {**CRAMPED["METRICS"], "CARDINALITY_LIMIT": most_series}}
        cramped = record.prepare(folders[1], otel, {**CRAMPED_ENV, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver})
        other = stack.enter_context(sockets(cramped, folder / "sockets.log"))
        yield {"shop": port, "sockets": other}, env


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.long)], ids=["sqlite", "services"])
def shop(request, tmp_path) -> Iterator[tuple[dict[str, int], dict[str, str], dict[str, str]]]:
    """The demo with SQLite and threads, or with PostgreSQL, Valkey and Celery; and what stays empty."""
    with contextlib.ExitStack() as stack:
        extra, silent = {}, {**NEVER, **WITHOUT_SERVICES}
        if request.param:
            postgres, silent = request.getfixturevalue("postgres_database"), NEVER
            extra = {"DATABASE_URL": postgres, "REDIS_URL": stack.enter_context(services.start_valkey())}
        ports, env = stack.enter_context(serve_shop(tmp_path, extra))
        yield ports, env, silent


@pytest.mark.debian
@pytest.mark.long
def test_every_query_shows_data_of_a_real_prometheus(shop, tmp_path):
    """Scraped every half second; asked until there is data behind each query."""
    need("prometheus")
    pytest.importorskip("websockets")
    ports, env, silent = shop
    open_queries = all_queries(silent)
    with prometheus(tmp_path, ports) as running:

        def has_data(expr: str) -> bool:
            status, _, body = running.get(f"/api/v1/query?{urllib.parse.urlencode({'query': expr})}")
            assert status == 200, body
            return any(float(row["value"][1]) == float(row["value"][1]) for row in json.loads(body)["data"]["result"])

        def all_answered() -> bool:
            record.manage(env, "restock")
            for port in ports.values():
                visit(port)
            chat(ports["sockets"])
            spoil_a_slot(tmp_path)
            open_queries.difference_update({query for query in open_queries if has_data(query[2])})
            return not open_queries

        try:
            services.wait_until(all_answered, 120, "data behind every query")
        except AssertionError:
            pytest.fail(f"no data: {sorted(open_queries)}")
        services.wait_until(lambda: has_data("job_route:http_server_requests:rate5m"), 30, "the recording rules")


def spoil_a_slot(folder) -> None:
    """Leave a file among those of the workers that no worker has written."""
    for cells in folder.rglob("0.cells"):
        for name in ("63.lock", "63.cells", "63.keys"):
            (cells.parent / name).write_bytes(b"x" * 4096)


@pytest.mark.parametrize("board", more_boards.ALL_DASHBOARDS, ids=lambda board: board.topic)
def test_the_docs_have_a_picture_of_each_panel(board):
    """Drawn again by `python -m tests.recorded.pictures`."""
    picture = (services.ROOT / "docs" / "images" / f"dashboard-{board.topic}.svg").read_text(encoding="utf-8")
    assert [panel.title for panel in board.panels if f">{html.escape(panel.title)}<" not in picture] == []
