"""`manage.py demo` as a user runs it: real processes, real receivers, and nothing left behind."""

from __future__ import annotations

import contextlib
import gzip
import html
import http.cookiejar
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from example_project.demo import report
from example_project.demo.processes import Process, ProcessFailedError, is_free, stop_all
from example_project.demo.receiver import Receiver, Tally, otlp_endpoint
from example_project.demo.visitors import Crowd, Results
from tests import services
from tests.services import free_port, run_python, wait_until

ROOT = Path(__file__).resolve().parents[2]
LONGEST_RUN_S = 120


def users_environ() -> dict[str, str]:
    """The environment of a user who just types `python manage.py demo`."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "DJANGO_")) and name not in ("DATABASE_URL", "REDIS_URL")
    }


class Demo:
    """A running `manage.py demo`, which can be found again with everything it started."""

    def __init__(self, *arguments: str, environ: Mapping[str, str] = {}) -> None:
        self.port = free_port()
        # Everything that is started inherits the mark, and every file of the run lies in the folder.
        self.mark = f"demo-{uuid.uuid4().hex}"
        self.folder = Path(tempfile.mkdtemp(prefix="demo-"))
        # The server of --services may run as a user of its own.
        self.folder.chmod(0o755)
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", "demo", "--port", str(self.port), *arguments],
            cwd=ROOT,
            env={**users_environ(), "DEMO_MARK": self.mark, "TMPDIR": str(self.folder), **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A group of its own, as a shell gives to what it starts: Ctrl-C goes to the group.
            start_new_session=True,
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self._lines.extend(iter(self.process.stdout.readline, ""))

    @property
    def output(self) -> str:
        return "".join(self._lines)

    def wait_for(self, text: str) -> str:
        """The output, once `text` stands in it."""

        def is_there() -> bool:
            assert text in self.output or self.process.poll() is None, self.output
            return text in self.output

        wait_until(is_there, 60, f"{text!r} in the demo's output")
        return self.output

    def wait(self) -> int:
        """The exit code."""
        code = self.process.wait(LONGEST_RUN_S)
        self._reader.join(60)
        return code

    def running(self) -> list[str]:
        """What still runs of all that the demo started, itself included."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes()
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                environ = (folder / "environ").read_bytes() if os.access(folder / "environ", os.R_OK) else b""
                # Servers that rewrite both to show a title still stand in their folder.
                place = (folder / "cwd").readlink()
                is_ours = self.mark.encode() in environ or str(self.folder).encode() in command
                is_ours = is_ours or place.is_relative_to(self.folder)
                # A zombie of another process is not ours; one of ours has the test as its parent.
                if is_ours and state != "Z":
                    found.append(f"{folder.name} {command.replace(bytes(1), b' ').decode(errors='replace')}")
        return found

    def pids(self, text: str) -> list[int]:
        return [int(line.split()[0]) for line in self.running() if text in line]

    def assert_nothing_is_left(self) -> None:
        wait_until(lambda: not self.running(), 60, f"the end of {self.running()}")
        assert is_free(self.port)
        assert list(self.folder.iterdir()) == []

    def table(self) -> dict[str, tuple[str, str]]:
        """The table at the end: name -> (value, remark)."""
        rows = [re.split(" {2,}", line.strip()) for line in self.output.split("---", 1)[-1].splitlines()]
        return {row[0]: (row[1].removesuffix(" ms"), "".join(row[2:])) for row in rows if len(row) > 1}

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            for line in self.running():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(line.split()[0]), signal.SIGKILL)
        self.process.wait()
        self._reader.join(60)
        if self.process.stdout is not None:
            self.process.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def demo(*arguments: str, environ: Mapping[str, str] = {}) -> Iterator[Demo]:
    started = Demo(*arguments, environ=environ)
    try:
        yield started
    finally:
        started.close()


def assert_good_table(run: Demo, *, had_visitors_only: bool = True) -> None:
    table = run.table()
    sent, counted = int(table["Requests sent"][0]), int(table["Requests /metrics counted"][0])
    # How many depends on the machine.
    assert sent > 4, run.output
    if had_visitors_only:
        assert 0 < counted <= sent, run.output
        # Whichever worker answers the scrape.
        assert "every request that was answered" in table["Requests /metrics counted"][1]
    services_named = dict(re.findall(r"([a-z-]+) (\d+)", table["Spans exported"][1]))
    assert sum(map(int, services_named.values())) == int(table["Spans exported"][0])
    assert set(services_named) == {"shop", "payment-gateway"}
    # One span for each request at least: the ratio is 1.
    assert int(services_named["shop"]) >= sent
    assert int(table["Traces over both services"][0]) > 0
    assert float(table["Error rate"][0].rstrip("%")) < 30
    assert 0 < int(table["Latency p50"][0]) <= int(table["Latency p95"][0])
    assert "Exports not accepted" not in table


SEND_INVOICE = "example_project.shop.tasks.send_invoice"


def assert_invoices_are_shown(admin: Admin, backend: str) -> None:
    """The console's page of tasks shows runs and failures, and the trace of one the request that sent it."""

    def find_rows() -> list[str]:
        page, _ = admin.get("/admin/django_otel/tasks/")
        rows = [row for row in page.split("<tr") if SEND_INVOICE in row]
        shown = " ".join(rows)
        return rows if "succeeded" in shown and "MailboxFullError" in page and backend in shown else []

    rows = wait_until(find_rows, 60, "an invoice and a failure on the page of tasks")
    trace = next(filter(None, (re.search(r"/admin/django_otel/trace/[0-9a-f]{32}/", row) for row in rows)))

    def is_whole() -> bool:
        # Each process writes its own part.
        page, _ = admin.get(trace.group())
        page = html.unescape(page)
        requests_found = re.search(r"POST /(api/orders|order|orders/<uuid:key>/pay)/", page)
        return bool(requests_found) and f"send {SEND_INVOICE}" in page and f"process {SEND_INVOICE}" in page

    wait_until(is_whole, 60, "the request and its task on the page of the trace")


def requests_counted(run: Demo) -> int:
    page = requests.get(f"http://127.0.0.1:{run.port}/metrics", timeout=60).text
    return report.counted_requests(page)


def shop_instances(spans: list[tuple[dict, Span]]) -> int:
    """How many processes of the shop have sent spans."""
    return len({found["service.instance.id"] for found, _ in spans if found["service.name"] == "shop"})


def press_ctrl_c(run: Demo) -> None:
    """As a terminal does, which sends it to the whole group; people press it twice."""
    os.killpg(run.process.pid, signal.SIGINT)
    time.sleep(0.2)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(run.process.pid, signal.SIGINT)


@pytest.mark.parametrize("way", ["Ctrl-C", pytest.param("--seconds", marks=pytest.mark.long)])
def test_the_demo_ends_with_a_true_table(way: str, receiver: services.Receiver) -> None:
    """The table's spans are those that a receiver of the user's own got, and one trace goes through both services."""
    arguments = ("--seconds", "5") if way == "--seconds" else ()
    with demo(*arguments, environ={"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}) as run:
        if way == "Ctrl-C":
            wait_until(lambda: Counter(span.name for _, span in receiver.spans())["POST /charges/"] > 3, 60, "charges")
            wait_until(lambda: len(receiver.spans()) > 200, 60, "spans")
            wait_until(lambda: shop_instances(receiver.spans()) == 2, 60, "spans of both workers")
            wait_until(lambda: len(run.pids("gunicorn")) == 5, 60, "five processes of gunicorn")
            press_ctrl_c(run)
        assert run.wait() == 0, run.output
        assert "Traceback" not in run.output
        assert_good_table(run)
        assert f"http://127.0.0.1:{run.port}/metrics" in run.output
        assert f"http://127.0.0.1:{run.port}/admin/" in run.output
        run.assert_nothing_is_left()

    received = receiver.spans()
    by_service = Counter(resource["service.name"] for resource, _ in received)
    table = run.table()
    assert table["Spans exported"][0] == str(len(received))
    assert table["Spans exported"][1] == ", ".join(f"{name} {count}" for name, count in sorted(by_service.items()))
    instances = {(resource["service.name"], resource["service.instance.id"]) for resource, _ in received}
    assert Counter(name for name, _ in instances) == {"shop": 2, "payment-gateway": 1}

    spans = {span.span_id: (resource["service.name"], span) for resource, span in received}
    assert len(spans) == len(received), "a span was exported twice"
    crossed = 0
    for service, span in list(spans.values()):
        if service == "payment-gateway" and span.name == "POST /charges/":
            names = [(service, span.name)]
            trace_id = span.trace_id
            while span.parent_span_id:
                service, span = spans[span.parent_span_id]
                names.append((service, span.name))
                assert span.trace_id == trace_id
            assert names[1:3] == [("shop", "POST"), ("shop", "charge_payment")]
            assert names[3] in [("shop", "process_order"), ("shop", "retry_payment")]
            assert names[4][1] in ("POST /api/orders/", "POST /order/", "POST /orders/<uuid:key>/pay/")
            assert len(names) == 5
            assert span.kind == Span.SPAN_KIND_SERVER
            crossed += 1
    assert crossed >= int(table["Traces over both services"][0]) > 0


@pytest.mark.long
def test_the_demo_runs_on_postgresql_and_valkey_before_a_strict_collector(rotel: services.Rotel) -> None:
    """`--services` starts and stops both; a collector that refuses what is not right accepts every export."""
    arguments = ("--services", "--rate", "30")
    with demo(*arguments, environ={"OTEL_EXPORTER_OTLP_ENDPOINT": rotel.http_url}) as run:
        output = run.wait_for("Visitors send")
        assert run.pids("postgres"), run.running()
        assert run.pids("valkey"), run.running()
        assert run.pids("celery"), run.running()
        assert_invoices_are_shown(Admin.of(run, output), backend="celery")
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.wait() == 0, run.output
        assert_good_table(run, had_visitors_only=False)
        run.assert_nothing_is_left()
    log = wait_until(lambda: "process_order" in rotel.log and rotel.log, 60, "a span in the collector's log")
    for name in ("charge_payment", "validate_inventory", "payment_captured", "payment-gateway"):
        assert name in log
    assert "postgresql" in log
    assert "redis" in log


@pytest.mark.long
@pytest.mark.parametrize("way", ["SIGTERM", "SIGHUP"])
def test_the_demo_stops_everything_it_started_when_it_is_told_to(way: str) -> None:
    """Without --seconds it runs until then, and shows its table all the same."""
    with demo() as run:
        run.wait_for("Visitors send")
        wait_until(lambda: len(run.pids("gunicorn")) == 5, 60, "five processes of gunicorn")
        wait_until(lambda: requests_counted(run) > 0, 60, "a request")
        run.process.send_signal(getattr(signal, way))
        assert run.wait() == 0, run.output
        assert int(run.table()["Requests sent"][0]) > 0
        assert "Traceback" not in run.output
        run.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("after", "arguments"), [("Preparing", ()), pytest.param("Starting", ("--services",), marks=pytest.mark.long)]
)
def test_ctrl_c_while_the_demo_is_still_preparing_leaves_nothing(after: str, arguments: tuple[str, ...]) -> None:
    """Then there is nothing to show, and the exit code says so. A database that does not answer is never prepared."""
    with (
        services.start_black_hole() as hole,
        demo(*arguments, environ={"DATABASE_URL": hole.replace("http://", "postgresql://me@") + "/shop"}) as run,
    ):
        run.wait_for(after)
        time.sleep(0.3)
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.wait() == 130, run.output
        assert "Traceback" not in run.output
        run.assert_nothing_is_left()


def test_a_signal_for_the_demo_alone_ends_it_while_a_database_does_not_answer() -> None:
    """The command that waits for the database is not told by the system."""
    with (
        services.start_black_hole() as hole,
        demo(environ={"DATABASE_URL": hole.replace("http://", "postgresql://me@") + "/shop"}) as run,
    ):
        run.wait_for("Preparing")
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 130, run.output
        run.assert_nothing_is_left()


@pytest.mark.long
@pytest.mark.parametrize("victim", ["payment-gateway", "shop"])
def test_a_child_that_dies_ends_the_demo_with_its_log(victim: str) -> None:
    """Also the workers of a gunicorn that was killed are gone."""
    with demo("--seconds", "60") as run:
        run.wait_for("Visitors send")
        workers = "1" if victim == "payment-gateway" else "2"
        masters = run.pids(f"--workers {workers}")
        os.kill(min(masters), signal.SIGKILL)
        assert run.wait() == 1, run.output
        assert f"{victim.replace('-', ' ')} ended (killed by SIGKILL). The end of its log:" in run.output
        assert "Booting worker" in run.output
        run.assert_nothing_is_left()


@pytest.mark.long
def test_a_server_that_cannot_start_is_shown_with_its_log() -> None:
    """A worker class that does not exist stands for everything that can be wrong."""
    with demo("--seconds", "5", environ={"GUNICORN_CMD_ARGS": "--worker-class no.such.worker"}) as run:
        assert run.wait() == 1, run.output
        assert "The end of its log:" in run.output
        assert "no.such.worker" in run.output
        run.assert_nothing_is_left()


def test_a_database_that_does_not_answer_is_shown() -> None:
    """Its password is not."""
    url = f"postgresql://me:hunter2@127.0.0.1:{free_port()}/shop"
    with demo("--seconds", "5", environ={"DATABASE_URL": url}) as run:
        assert run.wait() == 1, run.output
        assert "manage.py migrate failed" in run.output
        assert "hunter2" not in run.output
        run.assert_nothing_is_left()


def test_a_port_in_use_is_refused_at_once() -> None:
    """With the option that helps."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = subprocess.run(
            [sys.executable, "manage.py", "demo", "--port", str(taken.getsockname()[1])],
            cwd=ROOT,
            env=users_environ(),
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert "choose another one with --port" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--rate", "0"), pytest.param(("--rate", "1e9"), marks=pytest.mark.long),
        pytest.param(("--seconds", "-1"), marks=pytest.mark.long), ("--port", "70000"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(arguments: tuple[str, str]) -> None:
    """By argparse, whose exit code is 2 elsewhere and 1 with Django's commands."""
    code = "import runpy; runpy.run_path('manage.py', run_name='__main__')"
    done = run_python(code, users_environ(), argv=("manage.py", "demo", *arguments), check=False)
    assert done.returncode != 0
    assert f"argument {arguments[0]}: expected" in done.stderr


# --- The sampling ratio, turned in the admin. ---


class Admin:
    """A user signed in to the admin of a running shop."""

    def __init__(self, base_url: str, password: str) -> None:
        self._base_url = base_url
        self._browser = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        )
        page, _ = self.post("/admin/login/", {"username": "admin", "password": password, "next": "/admin/"})
        assert "Log out" in page

    @classmethod
    def of(cls, run: Demo, output: str) -> Admin:
        """Return one who uses the password that the demo has printed."""
        password = re.search(r"password (\S+)", output)
        assert password, output
        return cls(f"http://127.0.0.1:{run.port}", password.group(1))

    def get(self, path: str) -> tuple[str, str]:
        """The page's text and its address after redirects."""
        with self._browser.open(self._base_url + path, timeout=60) as answer:
            return answer.read().decode(), urllib.parse.urlsplit(answer.url).path

    def post(self, path: str, fields: Mapping[str, str]) -> tuple[str, str]:
        """Send the form that stands on a page; follow where it leads."""
        page, path = self.get(path)
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)
        assert token, page
        body = urllib.parse.urlencode({**fields, "csrfmiddlewaretoken": token.group(1)}).encode()
        with self._browser.open(self._base_url + path, body, timeout=60) as answer:
            return answer.read().decode(), urllib.parse.urlsplit(answer.url).path

    def set_ratio(self, ratio: str) -> None:
        fields = {"enabled": "on", "ratio": ratio, "expires_at_0": "", "expires_at_1": "", "note": "a test"}
        page, _ = self.post("/admin/django_otel/samplingpolicy/", fields)
        assert "errornote" not in page, page
        wait_until(
            lambda: re.search(r"All \d+ processes apply version", self.get("/admin/django_otel/samplingpolicy/")[0]),
            60,
            "the ratio in every process",
        )


@pytest.mark.long
def test_the_ratio_turned_in_the_admin_changes_what_every_worker_exports(receiver: services.Receiver) -> None:
    """0 stops the traces of all processes, 1 brings them back; no process restarts, every request is counted."""

    with demo("--rate", "40", environ={"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}) as run:
        output = run.wait_for("Visitors send")
        admin = Admin.of(run, output)
        assert_invoices_are_shown(admin, backend="django")
        wait_until(
            lambda: len({r["service.instance.id"] for r, _ in receiver.spans()}) == 3, 60, "spans of all processes"
        )

        admin.set_ratio("0")
        quiet_from_ns = time.time_ns()
        counted_before = max(requests_counted(run) for _ in range(6))
        time.sleep(4)
        wait_until(lambda: requests_counted(run) > counted_before, 60, "further requests")
        quiet_until_ns = time.time_ns()

        admin.set_ratio("1")
        loud_from_ns = time.time_ns()
        wait_until(
            lambda: (
                len(
                    {
                        resource["service.instance.id"]
                        for resource, span in receiver.spans()
                        if span.start_time_unix_nano > loud_from_ns and resource["service.name"] == "shop"
                    }
                )
                == 2
            ),
            60,
            "spans of both workers",
        )
        os.killpg(run.process.pid, signal.SIGINT)
        assert run.wait() == 0, run.output

    roots = [span for _, span in receiver.spans() if not span.parent_span_id]
    quiet = [span.name for span in roots if quiet_from_ns < span.start_time_unix_nano < quiet_until_ns]
    assert quiet == []
    assert [span for span in roots if span.start_time_unix_nano < quiet_from_ns]


# --- The demo's own parts. ---


def test_a_metrics_page_is_read_as_prometheus_reads_it() -> None:
    """Only the counts of the request histogram add up to requests."""
    page = (
        "# TYPE http_server_request_duration_seconds histogram\n"
        'http_server_request_duration_seconds_bucket{http_route="/",le="1"} 7\n'
        'http_server_request_duration_seconds_count{http_route="/a \\"b\\" } 3"} 7\n'
        'http_server_request_duration_seconds_count{http_route="/c"} 2.0 1700000000\n'
        'http_server_request_body_size_bytes_count{http_route="/c"} 50\n'
    )
    assert report.counted_requests(page) == 9
    assert report.counted_requests("") == 0


def test_percentiles_are_nearest_ranks() -> None:
    """Of a hundred values the 95th percentile is the 95th."""
    results = Results(latencies_s=[n / 100 for n in range(100, 0, -1)])
    assert results.percentile_s(0.5) == 0.5
    assert results.percentile_s(0.95) == 0.95
    assert Results(latencies_s=[3.0]).percentile_s(0.5) == 3.0
    assert Results().percentile_s(0.95) == 0.0


@pytest.mark.parametrize(
    ("counted", "words"),
    [
        (3, "every request that was answered"),
        (1, "2 fewer than were answered"),
        (4, "1 more"),
        (None, "did not answer"),
    ],
)
def test_the_table_says_how_far_the_numbers_agree(counted: int | None, words: str) -> None:
    """Without a claim when they are equal."""
    results = Results(latencies_s=[0.1, 0.2, 0.3], statuses=Counter({200: 2, 500: 1}), unanswered=1)
    text = report.table(report.Outcome(results, counted, Tally(spans=Counter(shop=5)), workers=2, elapsed_s=5))
    assert words in text
    assert "50.0%  2 of 4" in text


def export_of(*services_named: str) -> bytes:
    request = ExportTraceServiceRequest()
    for name in services_named:
        group = request.resource_spans.add()
        attribute = group.resource.attributes.add()
        attribute.key, attribute.value.string_value = "service.name", name
        group.scope_spans.add().spans.add().trace_id = b"t" * 16
    return request.SerializeToString()


@contextlib.contextmanager
def started_receiver(**forward_to: str) -> Iterator[Receiver]:
    made = Receiver(forward_to)
    made.start()
    try:
        yield made
    finally:
        made.stop()


def test_the_receiver_counts_what_it_could_read_and_no_more() -> None:
    """Plain and gzipped exports count; garbage is refused."""
    with started_receiver() as receiver:
        url = f"{receiver.endpoint}/v1/traces"
        assert requests.post(url, export_of("shop", "payment-gateway"), timeout=5).status_code == 200
        zipped = gzip.compress(export_of("shop"))
        assert requests.post(url, zipped, headers={"Content-Encoding": "gzip"}, timeout=5).status_code == 200
        assert requests.post(url, b"\xff\xff\xff", timeout=5).status_code == 400
        assert requests.post(url, b"no", headers={"Content-Encoding": "gzip"}, timeout=5).status_code == 400
        assert requests.post(f"{receiver.endpoint}/v2/traces", b"", timeout=5).status_code == 404
        assert receiver.tally.spans == {"shop": 2, "payment-gateway": 1}
        assert receiver.tally.crossing_traces == 1
        assert receiver.tally.rejected == 2


def test_the_receiver_hands_on_with_headers_and_counts_only_what_was_accepted(receiver: services.Receiver) -> None:
    """A user's endpoint that is down makes the exporter try again."""
    with started_receiver(traces=f"{receiver.url}/v1/traces") as between:
        url = f"{between.endpoint}/v1/traces"
        answer = requests.post(url, export_of("shop"), headers={"x-team": "tea"}, timeout=5)
        assert answer.status_code == 200
        assert [headers["x-team"] for _, headers, _ in receiver.requests] == ["tea"]
        assert [resource["service.name"] for resource, _ in receiver.spans()] == ["shop"]
        receiver.status = 403
        assert requests.post(url, export_of("shop"), timeout=5).status_code == 403
        between.forward_to["traces"] = f"http://127.0.0.1:{free_port()}/v1/traces"
        assert requests.post(url, export_of("shop"), timeout=5).status_code == 503
        assert between.tally.spans == {"shop": 1}
        assert between.tally.rejected == 2


def test_endpoints_follow_the_specification() -> None:
    """The endpoint of a signal is taken as it is, the general one is a base."""
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318/", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://l/in"}
    assert otlp_endpoint(environ, "traces") == "http://c:4318/v1/traces"
    assert otlp_endpoint(environ, "logs") == "http://l/in"
    assert otlp_endpoint({}, "traces") is None


def test_visitors_keep_to_the_rate_and_stop_at_once() -> None:
    """At 50 a second at most, whatever the number of visitors."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        port = listener.getsockname()[1]
        stop = threading.Event()

        def answer_all() -> None:
            while not stop.is_set():
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

        server = threading.Thread(target=answer_all)
        server.start()
        crowd = Crowd(port, 50.0, seed=random.Random(1).randrange(1000))
        began_s = time.monotonic()
        crowd.start()
        wait_until(lambda: crowd.results.sent >= 100, 60, "a hundred requests")
        crowd.stop()
        took_s = time.monotonic() - began_s
        stop.set()
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        server.join()
    assert crowd.results.sent <= 50 * took_s + 1
    assert crowd.results.unanswered == 0


@pytest.mark.process
def test_stopping_kills_a_child_that_does_not_listen_and_its_children(tmp_path: Path, monkeypatch) -> None:
    """SIGTERM is ignored by parent and child here."""
    monkeypatch.setattr("example_project.demo.processes._TERMINATE_S", 0.5)
    script = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = os.fork()\n"
        "if child: open(sys.argv[1], 'w').write(str(child))\n"
        "time.sleep(60)\n"
    )
    pid_path = tmp_path / "pid"
    process = Process(
        "stubborn",
        [sys.executable, "-c", script, str(pid_path)],
        environ=os.environ,
        log_path=tmp_path / "log",
        cwd=tmp_path,
    )
    wait_until(lambda: pid_path.exists() and pid_path.read_text(), 60, "the child")
    stop_all([process])
    child = int(pid_path.read_text())
    # An orphan is reaped by the process that adopts it, a moment later.
    wait_until(lambda: not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text(), 30)
    with pytest.raises(ProcessFailedError, match="killed by SIGKILL"):
        process.check()
