"""A real Prometheus server scrapes real servers, and what it has to say about our pages."""

from __future__ import annotations

import contextlib
import http.server
import json
import math
import re
import shutil
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from django_otel.metrics import exposition, negotiation
from django_otel.metrics.attributes import build_attributes
from django_otel.metrics.model import OWN_SCOPE, Exemplar, ExponentialValue, Family, HistogramValue, MetricType, Point
from tests import services, sizes
from tests.pages import lint

pytestmark = pytest.mark.debian

TOKEN = "schlüssel"
RESOURCE = {"service.name": "hostile", "empty": ""}


@pytest.fixture(autouse=True)
def _installed():
    """Prometheus and promtool come from one Debian package."""
    if shutil.which("prometheus") is None or shutil.which("promtool") is None:
        services.missing("needs Prometheus: apt-get install --no-install-recommends prometheus")


@dataclass
class Prometheus:
    """A running Prometheus."""

    url: str
    log_path: Path

    def is_ready(self) -> bool:
        # It listens before it can answer.
        with contextlib.suppress(OSError):
            return bool(urllib.request.urlopen(f"{self.url}/-/ready", timeout=5).status == 200)
        return False

    def api(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def value(self, query: str) -> float | None:
        """The one value of an instant query; None while there is none."""
        result = self.api("query", query=query)["result"]
        return float(result[0]["value"][1]) if result else None

    def targets(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.api("targets")["activeTargets"]
        return found

    def answered(self) -> list[dict[str, Any]]:
        """The targets but those that have not answered yet, or the last time not within half a second."""
        return [t for t in self.targets() if t["health"] != "unknown" and "deadline" not in t["lastError"]]

    def complaints(self) -> list[str]:
        return [line for line in self.log_path.read_text().splitlines() if re.search(r"level=(warn|error)", line)]


@contextlib.contextmanager
def start_prometheus(folder: Path, jobs: list[str]) -> Iterator[Prometheus]:
    """Prometheus with these scrape jobs (YAML), twice a second."""
    port = services.free_port()
    config = folder / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 500ms, scrape_timeout: 500ms}\nscrape_configs:\n" + "".join(jobs), encoding="utf-8"
    )
    command = [
        "prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage", "--log.level=debug",
    ]  # fmt: skip
    with services.running(command, log=folder / "prometheus.log") as process:
        prometheus = Prometheus(f"http://127.0.0.1:{port}", folder / "prometheus.log")
        services.wait_until(lambda: prometheus.is_ready() or process.poll() is not None, 30, "Prometheus")
        assert process.poll() is None, prometheus.log_path.read_text()
        yield prometheus


def job(name: str, url: str, token: str | None = None) -> str:
    lines = [f"- job_name: {name}", f"  static_configs: [{{targets: ['{urllib.parse.urlsplit(url).netloc}']}}]"]
    if token is not None:
        lines.append(f"  authorization: {{credentials: '{token}'}}")
    return "\n".join(lines) + "\n"


def assert_all_up(prometheus: Prometheus, count: int) -> None:
    """Every target has been scraped, is up, and neither API nor log knows a fault."""

    def scraped_after(seen: dict[str, str]) -> list[dict[str, Any]] | None:
        found = [t for t in prometheus.answered() if t["lastScrape"] != seen.get(t["scrapePool"])]
        return found if len(found) == count else None

    first = services.wait_until(lambda: scraped_after({}), 60, "the first scrape")
    # Several scrapes: what is wrong with the second (duplicates, order) must show as well.
    seen = {target["scrapePool"]: target["lastScrape"] for target in first}
    second = services.wait_until(lambda: scraped_after(seen), 60, "a second scrape")
    assert [(t["scrapePool"], t["health"], t["lastError"]) for t in second if t["health"] != "up"] == []
    assert prometheus.complaints() == []


def test_prometheus_scrapes_gunicorn_and_uvicorn(tmp_path):
    """Up without a complaint, with a token that is not ASCII; counts and an exemplar can be queried."""
    otel = {
        "SERVICE_NAME": "shop",
        "SAMPLING": {"LIVE": False},
        "METRICS_VIEW": {"ALLOW": "token", "TOKEN": TOKEN},
    }
    with contextlib.ExitStack() as stack:
        served = {kind: stack.enter_context(services.serve(kind, otel)) for kind in ("gunicorn", "uvicorn")}
        trace_ids = {}
        for number, (kind, server) in enumerate(served.items(), start=3):
            for _ in range(number):
                trace_ids[kind] = json.loads(server.get("/json/")[2])["trace_id"]
            assert server.get("/boom/")[0] == 500
            assert server.get("/metrics")[0] == 401
        jobs = [job(kind, server.url, TOKEN) for kind, server in served.items()]
        prometheus = stack.enter_context(start_prometheus(tmp_path, jobs))
        assert_all_up(prometheus, len(served))
        for number, kind in enumerate(served, start=3):
            name = f'http_server_request_duration_seconds_count{{job="{kind}",http_route="/json/"}}'
            services.wait_until(lambda name=name: prometheus.value(name), 60, name)
            assert prometheus.value(name) == number
            assert prometheus.value(f'target_info{{job="{kind}",service_name="shop"}}') == 1
            quantile = f'histogram_quantile(0.5, http_server_request_duration_seconds_bucket{{job="{kind}"}})'
            assert prometheus.value(quantile) > 0
            # Neither the refused request for /metrics nor the scrapes are on the page.
            assert prometheus.value(f'count(http_server_request_duration_seconds_count{{job="{kind}"}})') == 2
            exemplars = prometheus.api(
                "query_exemplars",
                query=f'http_server_request_duration_seconds_bucket{{job="{kind}",http_route="/json/"}}',
                start=str(time.time() - 300),
                end=str(time.time() + 60),
            )
            shown = {exemplar["labels"]["trace_id"] for series in exemplars for exemplar in series["exemplars"]}
            assert trace_ids[kind] in shown
        metadata = prometheus.api("metadata", metric="http_server_request_duration_seconds")
        [entry] = metadata["http_server_request_duration_seconds"]
        assert (entry["type"], entry["unit"]) == ("histogram", "seconds")


def test_a_scrape_with_the_wrong_token_is_down(tmp_path):
    """So the test above would see a target that does not answer."""
    otel = {"SERVICE_NAME": "shop", "METRICS_VIEW": {"ALLOW": "token", "TOKEN": TOKEN}}
    with (
        services.serve("gunicorn", otel) as server,
        start_prometheus(tmp_path, [job("shop", server.url, "wrong")]) as prometheus,
    ):
        (target,) = services.wait_until(prometheus.answered, 60, "the refusal")
        assert target["health"] == "down"
        assert "401" in target["lastError"]


def hostile_families() -> list[Family]:
    """Everything that has ever broken a page, and what we refuse to show."""
    texts = [
        'quote"',
        "back\\slash",
        "new\nline",
        "\r\t\x0b\x85\u2028",
        "nul\0",
        "lone\ud800",
        "größe ☃ 𐍈",
        "{}#=,",
        "\\n",
    ]

    def attributes(**items: object) -> Any:
        return build_attributes(items)

    return [
        Family("labels", MetricType.GAUGE, "", "\n".join(texts), OWN_SCOPE, [
            Point(attributes(text=text, number=number), number) for number, text in enumerate(texts)
        ]),
        Family("numbers", MetricType.GAUGE, "1", "", OWN_SCOPE, [
            Point(attributes(k=str(number)), value)
            for number, value in enumerate((math.nan, math.inf, -math.inf, 10**400, 1e-320, -0.0, 2**70))
        ]),
        Family("clash", MetricType.COUNTER, "", "Clash.", OWN_SCOPE, [
            Point((("a.b", "x"),), 1), Point((("a_b", "x"),), 2), Point((), 3), Point((("k", ""),), 4),
        ]),
        Family("bad", MetricType.COUNTER, "", "Bad.", OWN_SCOPE, [Point((), math.nan), Point((("k", "v"),), 1)]),
        Family("e", MetricType.EXPONENTIAL_HISTOGRAM, "s", "E.", OWN_SCOPE, [
            Point(attributes(k="a"), ExponentialValue(20, 1, 1 << 20, [1] * 160, 0, [], 300.0, 161)),
            Point(attributes(k="b"), ExponentialValue(3, 0, -20, [1, 0, 2], 5, [4], -1.0, 7)),
        ]),
        Family("h", MetricType.HISTOGRAM, "By", "H.", OWN_SCOPE, [
            Point(attributes(le="mine", k="a"), HistogramValue((0.5, 1e6, 1e12), [1, 2, 3, 4], 5.5),
                  [Exemplar(0.25, time.time(), 0xABC, 0xDEF)]),
            Point(attributes(k="b"), HistogramValue((2.0, 1.0), [1, 1, 1], 3.0)),
            Point(attributes(k="c"), HistogramValue((), [9], math.nan)),
        ]),
        Family("clash", MetricType.GAUGE, "", "Another type.", OWN_SCOPE, [Point((), 1)]),
        Family("clash_total", MetricType.GAUGE, "", "Another family.", OWN_SCOPE, [Point((), 1)]),
        Family("target_info", MetricType.GAUGE, "", "Not the resource.", OWN_SCOPE, [Point((), 1)]),
    ]  # fmt: skip


def render_hostile(is_openmetrics: bool) -> bytes:
    return exposition.render(hostile_families(), openmetrics=is_openmetrics, resource_attributes=RESOURCE)


@contextlib.contextmanager
def serve_page(is_openmetrics: bool, build: Callable[[], bytes] | None = None) -> Iterator[str]:
    """A server with the hostile page in one format, or with what `build` gives; gives its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = build() if build is not None else render_hostile(is_openmetrics)
            page = negotiation.compress(page)
            wanted = negotiation.Format.OPENMETRICS if is_openmetrics else negotiation.Format.TEXT
            self.send_response(200)
            self.send_header("Content-Type", wanted.content_type)
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_prometheus_reads_a_hostile_page_whole(tmp_path):
    """In both formats: every label as it was meant, sums of what collided, no complaint."""
    with (
        serve_page(True) as newer,
        serve_page(False) as older,
        start_prometheus(tmp_path, [job("newer", newer), job("older", older)]) as prometheus,
    ):
        assert_all_up(prometheus, 2)
        for name in ("newer", "older"):
            series = prometheus.api("query", query=f'labels{{job="{name}"}}')["result"]
            shown = {entry["metric"]["text"]: float(entry["value"][1]) for entry in series}
            assert len(shown) == 9
            assert shown['quote"'] == 0 and shown["back\\slash"] == 1 and shown["new\nline"] == 2
            assert shown["nul\ufffd"] == 4 and shown["größe ☃ 𐍈"] == 6 and shown["\\n"] == 8
            assert prometheus.value(f'clash_total{{job="{name}",a_b="x"}}') == 3
            assert prometheus.value(f'clash_total{{job="{name}",a_b=""}}') == 7
            assert prometheus.value(f'bad_total{{job="{name}",k="v"}}') == 1
            assert prometheus.value(f'e_seconds_bucket{{job="{name}",k="a",le="+Inf"}}') == 161
            assert prometheus.value(f'e_seconds_bucket{{job="{name}",k="b",le="+Inf"}}') == 7
            assert prometheus.value(f'h_bytes_bucket{{job="{name}",exported_le="mine",le="1e+06"}}') == 3
            assert prometheus.value(f'h_bytes_bucket{{job="{name}",k="c",le="+Inf"}}') == 9
            assert prometheus.value(f'numbers_ratio{{job="{name}",k="3"}}') == math.inf
            assert prometheus.value(f'target_info{{job="{name}",service_name="hostile"}}') == 1
            assert prometheus.value(f'count(target_info{{job="{name}"}})') == 1


@pytest.mark.parametrize(
    "page", sizes.few([b'x{k="a\nb"} 1\n# EOF\n', b'x{k="v"} 1\n', b'x{k="v",k="w"} +Inf\n# TYPE\n'], 3)
)
def test_prometheus_rejects_a_bad_page(tmp_path, page):
    """The judge judges: a raw newline, a missing end, half a line of metadata."""
    with (
        serve_page(True, lambda: page) as url,
        start_prometheus(tmp_path, [job("bad", url)]) as prometheus,
    ):
        (target,) = services.wait_until(prometheus.answered, 60, "the rejection")
        assert target["health"] == "down"
        assert target["lastError"]


def test_promtool_accepts_what_a_server_shows():
    """The older format, after real requests."""
    otel = {"SERVICE_NAME": "shop", "SAMPLING": {"LIVE": False}, "METRICS_VIEW": {"ALLOW": "all"}}
    with services.serve("gunicorn", otel, migrate=True) as server:
        for path in ("/hello/", "/orders/7/", "/nowhere", "/boom/", "/queries/"):
            server.get(path)
        status, _, page = server.get("/metrics")
        assert status == 200
        assert lint(page) == ""
