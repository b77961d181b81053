"""One true /metrics: real worker processes, real load, a background scraper that watches every counter."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from django_otel.multiprocess import processes
from tests import services, sizes
from tests.pages import parse_openmetrics

OTEL = {
    "SERVICE_NAME": "shared",
    "SAMPLING": {"LIVE": False},
    "METRICS_VIEW": {"ALLOW": "all"},
    "REQUEST": {"EXCLUDE": ["/pid/"]},
}
KINDS = {
    "gunicorn": ("gunicorn", ()),
    "gunicorn-preload": ("gunicorn", ("--preload",)),
    "gthread": ("gunicorn-gthread", ()),
    "uvicorn": ("uvicorn", ()),
}


def samples_of(page: bytes, *types: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The samples of a page, or those of metrics of these types."""
    found = {}
    for family in text_string_to_metric_families(page.decode()):
        if types and family.type not in types:
            continue
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"duplicate series {key}"
            found[key] = sample.value
    return found


def total(samples, name, **labels):
    return sum(
        value for (found, pairs), value in samples.items() if found == name and set(labels.items()) <= set(pairs)
    )


def requests_counted(server) -> float:
    status, _, page = server.get("/metrics")
    assert status == 200, page
    return total(samples_of(page), "http_server_request_duration_seconds_count", http_route="/hello/")


class Load:
    """Clients that ask for /hello/ and a scraper that sees that no counter ever goes backwards."""

    def __init__(self, server, clients: int = 4) -> None:
        self.server = server
        self.answered = 0
        self.cut_off = 0
        self.scrapes = 0
        self.backwards: list[str] = []
        self._clients = clients
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def _ask(self) -> None:
        while not self._stop.is_set():
            try:
                status, _, _ = self.server.get("/hello/")
            except OSError:
                with self._lock:
                    self.cut_off += 1
                time.sleep(0.01)
                continue
            except Exception:
                with self._lock:
                    self.cut_off += 1
                continue
            assert status == 200
            with self._lock:
                self.answered += 1

    def _scrape(self) -> None:
        before: dict = {}
        while not self._stop.is_set():
            with contextlib.suppress(OSError, Exception):
                status, _, page = self.server.get("/metrics")
                if status == 200:
                    now = samples_of(page, "counter", "histogram")
                    self.scrapes += 1
                    for key, value in before.items():
                        if now.get(key, 0) < value - 1e-9:
                            self.backwards.append(f"{key}: {value} -> {now.get(key)}")
                    before = now
            time.sleep(0.02)

    def go_on(self, answers: int) -> None:
        """Wait for so many further answers."""
        wanted = self.answered + answers
        services.wait_until(lambda: self.answered >= wanted, what=f"{answers} answers")

    def __enter__(self):
        self._threads = [threading.Thread(target=self._ask) for _ in range(self._clients)]
        self._threads.append(threading.Thread(target=self._scrape))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                # On a busy machine no scrape may have been answered yet.
                services.wait_until(lambda: self.scrapes, what="a scrape")
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()
        assert not self.backwards, self.backwards[:5]


def workers_of(server) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(server.process.pid)], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def kill_worker(server) -> None:
    """Kill one that lives: those that were killed before are listed until the server notices."""

    def has_killed() -> bool:
        for pid in workers_of(server):
            try:
                if processes._stat(pid)[0] != "Z":
                    os.kill(pid, signal.SIGKILL)
                    return True
            except OSError:
                continue
        return False

    services.wait_until(has_killed, what="a worker that lives")


def folder_of(server) -> str:
    """The one group folder this server made."""
    root = os.path.join(server.shared, f"django-otel-{os.geteuid()}")
    groups = os.listdir(root)
    assert len(groups) == 1, groups
    return os.path.join(root, groups[0])


@contextlib.contextmanager
def serve(kind, tmp_path, workers=4, otel=OTEL, **env):
    server_kind, arguments = KINDS[kind]
    shared = str(tmp_path / "shared")
    os.makedirs(shared, exist_ok=True)
    otel = {**otel, "METRICS": {"SHARED_DIR": shared, **otel.get("METRICS", {})}}
    with services.serve(server_kind, otel, workers=workers, arguments=arguments, **env) as server:
        # The master listens before a worker can answer, which on a busy machine takes its time.
        services.wait_until(lambda: server.get("/livez", timeout_s=60)[0] == 200, what="an answer")
        server.shared = shared
        yield server


@pytest.mark.parametrize("kind", sizes.few(["gunicorn-preload", "gunicorn", "gthread", "uvicorn"], 4))
def test_every_scrape_shows_what_all_workers_have_counted(kind, tmp_path):
    with serve(kind, tmp_path) as server:
        with Load(server) as load:
            load.go_on(300)
            services.wait_until(lambda: load.scrapes >= 10, what="ten scrapes")
        counted = requests_counted(server)
        # On a slow machine a client gives up after its request was counted; otherwise this is equality.
        assert load.answered <= counted <= load.answered + load.cut_off
        assert [requests_counted(server) for _ in range(12)] == [counted] * 12
        samples = samples_of(server.get("/metrics")[2])
        assert total(samples, "http_server_active_requests") == 0
        assert total(samples, "django_otel_shared_active") == 1
        assert sum(name == "target_info" for name, _ in samples) == 1


@pytest.mark.parametrize("kind", ["gthread", "gunicorn", "gunicorn-preload"])
@pytest.mark.long
def test_nothing_is_lost_when_workers_are_killed_under_load(kind, tmp_path):
    with serve(kind, tmp_path) as server:
        with Load(server) as load:
            for _ in range(4):
                load.go_on(100)
                kill_worker(server)
            load.go_on(200)
        counted = requests_counted(server)
        # A request may have been counted and then cut off before its answer arrived.
        assert load.answered <= counted <= load.answered + load.cut_off
        samples = samples_of(server.get("/metrics")[2])
        assert total(samples, "http_server_active_requests") == 0
        slots = [name for name in os.listdir(folder_of(server)) if name.endswith(".cells")]
        assert len(slots) <= 5, slots


@pytest.mark.long
def test_nothing_is_lost_when_uvicorn_workers_are_killed_under_load(tmp_path):
    with serve("uvicorn", tmp_path) as server:
        with Load(server) as load:
            for _ in range(2):
                load.go_on(100)
                victims = []
                for pid in workers_of(server):
                    # One that was killed before may be gone by now.
                    with contextlib.suppress(OSError):
                        if b"spawn_main" in services.Path(f"/proc/{pid}/cmdline").read_bytes():
                            victims.append(pid)
                os.kill(victims[0], signal.SIGKILL)
            load.go_on(100)
        counted = requests_counted(server)
        assert load.answered <= counted <= load.answered + load.cut_off


def test_counters_go_on_over_a_graceful_restart_and_recycling(tmp_path):
    with serve("gunicorn", tmp_path, workers=2) as server:
        with Load(server, clients=3) as load:
            for _ in range(2):
                load.go_on(100)
                before = set(workers_of(server))
                server.process.send_signal(signal.SIGHUP)
                services.wait_until(lambda before=before: not before & set(workers_of(server)), what="other workers")
            load.go_on(100)
        assert load.answered <= requests_counted(server) <= load.answered + load.cut_off


@pytest.mark.long
def test_counters_go_on_over_max_requests(tmp_path):
    KINDS["recycling"] = ("gunicorn", ("--max-requests", "40"))
    with serve("recycling", tmp_path, workers=2) as server:
        with Load(server, clients=3) as load:
            services.wait_until(lambda: load.answered > 200, 60, "200 answers, so several recycled workers")
        assert load.answered <= requests_counted(server) <= load.answered + load.cut_off
        assert len([name for name in os.listdir(folder_of(server)) if name.endswith(".cells")]) <= 4


def test_a_new_master_begins_at_zero_and_two_deployments_do_not_mix(tmp_path):
    with serve("gunicorn", tmp_path, workers=2) as one:
        for _ in range(5):
            one.get("/hello/")
        with services.serve("gunicorn", {**OTEL, "METRICS": {"SHARED_DIR": one.shared}}, workers=2) as other:
            for _ in range(3):
                other.get("/hello/")
            assert requests_counted(other) == 3
            assert requests_counted(one) == 5
        for pid in workers_of(one):
            os.kill(pid, signal.SIGKILL)
        one.process.kill()
    with serve("gunicorn", tmp_path, workers=2) as again:
        again.get("/hello/")
        assert requests_counted(again) == 1


@pytest.mark.parametrize("preload", ["--preload", ""])
@pytest.mark.long
def test_otlp_over_all_instances_adds_up_to_the_requests_answered(tmp_path, receiver, preload):
    otel = {
        **OTEL,
        "TRACES": {"ENDPOINT": receiver.url},
        "METRICS": {"EXPORTERS": ["prometheus", "otlp"], "INTERVAL_S": 0.3},
    }
    KINDS["recycling"] = ("gunicorn", ("--max-requests", "30", *preload.split()))
    with serve("recycling", tmp_path, workers=2, otel=otel) as server:
        with Load(server, clients=2) as load:
            services.wait_until(lambda: load.answered > 150, 60, "150 answers, so several recycled workers")
    latest: dict = {}
    for resource, _, metric in receiver.metrics():
        if metric.name == "http.server.request.duration":
            for point in metric.histogram.data_points:
                attributes = services.attributes_of(point)
                if attributes.get("http.route") == "/hello/":
                    latest[resource["service.instance.id"]] = point.count
    assert load.answered <= sum(latest.values()) <= load.answered + load.cut_off
    assert len(latest) >= 3


def test_a_folder_that_cannot_be_used_falls_back_and_says_so(tmp_path):
    shared = tmp_path / "shared"
    (shared / f"django-otel-{os.geteuid()}").mkdir(parents=True)
    (shared / f"django-otel-{os.geteuid()}").chmod(0o777)
    with serve("gunicorn", tmp_path, workers=1) as server:
        server.get("/hello/")
        assert requests_counted(server) == 1
        assert total(samples_of(server.get("/metrics")[2]), "django_otel_shared_active") == 0
        assert "expected 700" in server.log
        (shared / f"django-otel-{os.geteuid()}").chmod(0o700)
        services.wait_until(
            lambda: total(samples_of(server.get("/metrics")[2]), "django_otel_shared_active") == 1, what="recovery"
        )
        assert requests_counted(server) == 1


def test_a_folder_deleted_beneath_the_server_is_made_anew_with_what_the_living_counted(tmp_path):
    with serve("gunicorn", tmp_path, workers=2) as server:
        for _ in range(20):
            server.get("/hello/")
        services.delete_in_use(folder_of(server))
        for _ in range(5):
            assert server.get("/hello/")[0] == 200
        services.wait_until(lambda: requests_counted(server) == 25, 60, "all 25 requests")


def test_sdk_instruments_of_several_workers_add_up(tmp_path):
    with serve("gunicorn", tmp_path, workers=3) as server:
        for _ in range(30):
            server.get("/sdk-count/")

        def counted():
            return total(samples_of(server.get("/metrics")[2]), "sdk_counted_total")

        services.wait_until(lambda: counted() == 30, 60, "30 over three workers")
        stopped = workers_of(server)[0]
        os.kill(stopped, signal.SIGTERM)
        services.wait_until(lambda: stopped not in workers_of(server), 60, "the graceful stop")
        services.wait_until(lambda: counted() == 30, 60, "30 after it")


def test_exemplars_of_all_workers_are_shown(tmp_path):
    with serve("gunicorn", tmp_path, workers=2) as server:
        for _ in range(10):
            server.get("/hello/")
        page = server.get("/metrics", {"accept": "application/openmetrics-text; version=1.0.0"})[2].decode()
    assert re.search(r'_bucket\{[^}]*\} \d+ # \{[^}]*trace_id="[0-9a-f]{32}"', page)


@pytest.mark.long
def test_exemplars_of_a_projects_histogram_are_the_newest_of_all_workers(tmp_path):
    """Each bucket's is that of its last request, whichever worker served it, also after the worker was killed."""

    def shown(server) -> dict[float, tuple[str, float]]:
        page = server.get("/metrics", {"accept": "application/openmetrics-text; version=1.0.0"})[2]
        found = parse_openmetrics(page).exemplars
        return {
            one.value: (one.labels["trace_id"], float(one.timestamp))
            for (name, _), one in found.items()
            if name == "shop_wait_seconds_bucket"
        }

    times: dict[float, float] = {}
    with serve("gunicorn", tmp_path, workers=3) as server:
        for number in range(30):
            # Few enough at once: a bucket that is replaced all the time keeps its exemplar for half a second.
            value = float(number % 3 * 7)
            trace_id = server.get(f"/own-histogram/?s={value}")[2].decode()
            if number < 15:
                assert shown(server)[value][0] == trace_id
            if number == 20:
                kill_worker(server)
            for found, (_, at_s) in shown(server).items():
                assert at_s >= times.get(found, 0.0)
                times[found] = at_s
    assert sorted(times) == [0.0, 7.0, 14.0]
