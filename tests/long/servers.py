"""Every server, with real processes and real load: is the scrape true, whatever happens to the workers?

    python tests/long/servers.py                       every server that is installed, about fifteen minutes
    python tests/long/servers.py --short --seconds 240 what CI runs
    python tests/long/servers.py gunicorn uwsgi        only servers whose name begins so

    pip install gunicorn gevent uvicorn uvicorn-worker granian uwsgi

Each scenario compares what clients were answered with what `/metrics` counted:
equal, plus at most the requests that were cut off after they were counted. A
background scraper fails the scenario when any counter goes backwards. At rest
`http.server.active_requests` is 0, `target_info` stands there once, no series
twice, and there are no more slots than processes lived at once.

Prints a table (counted / answered / cut off); the exit code is 1 when a
scenario failed, else 0. Servers that are not installed are skipped with a line.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests import services  # noqa: E402
from tests.multiprocess.test_shared_servers import samples_of, total  # noqa: E402

WORKERS = 3
OTEL = {"SERVICE_NAME": "long", "SAMPLING": {"LIVE": False}, "METRICS_VIEW": {"ALLOW": "all"}}
_SLOTS_SPARE = 2
#: How long a server may be without a worker that answers, on a machine with little time for it.
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Kind:
    """A server: how it is started and what it can do."""

    command: Callable[[int], list[str]]
    needs: tuple[str, ...]
    #: Arguments with which workers are replaced after so many requests (or seconds).
    recycling: tuple[str, ...] = ()
    recycling_s: float = 3.0
    has_hup: bool = True
    has_workers: bool = True
    #: What a worker's command line contains, where the master has other children as well.
    worker_mark: bytes = b""
    #: What stops a single worker in good order; None where the master takes that for a fault or does not replace it.
    stop_worker: int | None = signal.SIGTERM
    #: Seconds until a killed worker has a successor.
    respawn_s: float = 1.5


def _gunicorn(worker_class: str, *extra: str) -> Callable[[int], list[str]]:
    application = "tests.asgi:application" if "." in worker_class else "tests.wsgi:application"
    threads = "4" if worker_class == "gthread" else "1"

    def command(port: int) -> list[str]:
        return [
            sys.executable, "-m", "gunicorn", application, "--bind", f"127.0.0.1:{port}", "--workers", str(WORKERS),
            "--worker-class", worker_class, "--threads", threads, "--graceful-timeout", "5", *extra,
        ]  # fmt: skip

    return command


def _uvicorn(port: int) -> list[str]:
    return [
        sys.executable, "-m", "uvicorn", "tests.asgi:application", "--host", "127.0.0.1", "--port", str(port),
        "--workers", str(WORKERS), "--log-level", "warning",
    ]  # fmt: skip


def _granian(interface: str) -> Callable[[int], list[str]]:
    def command(port: int) -> list[str]:
        module = "tests.wsgi" if interface == "wsgi" else "tests.asgi"
        return [
            sys.executable, "-m", "granian", "--interface", interface, "--host", "127.0.0.1", "--port", str(port),
            "--workers", str(WORKERS), "--respawn-failed-workers", "--respawn-interval", "0.2", f"{module}:application",
        ]  # fmt: skip

    return command


def _uwsgi(*extra: str) -> Callable[[int], list[str]]:
    def command(port: int) -> list[str]:
        return [
            services.find_uwsgi() or "uwsgi", "--http-socket", f"127.0.0.1:{port}", "--master", "--processes",
            str(WORKERS),
            "--die-on-term", "--need-app", "--module", "tests.wsgi:application", "--home", sys.prefix,
            "--pythonpath", str(ROOT), "--disable-logging", *extra,
        ]  # fmt: skip

    return command


def _runserver(port: int) -> list[str]:
    return [sys.executable, "-m", "django", "runserver", f"127.0.0.1:{port}"]


_RECYCLE = ("--max-requests", "15")
#: uWSGI lets a worker live for a minute before it recycles it.
_RECYCLE_UWSGI = (*_RECYCLE, "--min-worker-lifetime", "1")

KINDS: dict[str, Kind] = {}
for _class in ("sync", "gthread", "gevent"):
    for _suffix, _extra in (("", ()), ("-preload", ("--preload",))):
        KINDS[f"gunicorn-{_class}{_suffix}"] = Kind(
            _gunicorn(_class, *_extra), ("gunicorn", "gevent") if _class == "gevent" else ("gunicorn",), _RECYCLE
        )
KINDS["gunicorn-uvicorn"] = Kind(
    _gunicorn("uvicorn_worker.UvicornWorker"), ("gunicorn", "uvicorn", "uvicorn_worker"), _RECYCLE, respawn_s=2.5
)
KINDS["uvicorn"] = Kind(
    _uvicorn, ("uvicorn",), ("--limit-max-requests", "150"), worker_mark=b"spawn_main", respawn_s=2.5, recycling_s=5
)
for _interface in ("asgi", "wsgi"):
    # Its --workers-lifetime is a minute at least: too long for this script.
    KINDS[f"granian-{_interface}"] = Kind(
        _granian(_interface), ("granian",), worker_mark=b"spawn_main", stop_worker=None, respawn_s=3
    )
KINDS["uwsgi"] = Kind(_uwsgi(), ("uwsgi",), _RECYCLE_UWSGI, stop_worker=None)
KINDS["uwsgi-threads"] = Kind(
    _uwsgi("--enable-threads", "--threads", "4"), ("uwsgi",), _RECYCLE_UWSGI, stop_worker=None
)
KINDS["uwsgi-lazy"] = Kind(_uwsgi("--enable-threads", "--lazy-apps"), ("uwsgi",), _RECYCLE_UWSGI, stop_worker=None)
KINDS["runserver"] = Kind(_runserver, (), has_hup=False, has_workers=False)

#: One of each family.
SHORT = ("gunicorn-gthread-preload", "gunicorn-uvicorn", "uvicorn", "granian-asgi", "uwsgi-threads", "runserver")


def find_missing(kind: Kind) -> list[str]:
    """The packages this server needs that are not installed."""
    return [
        name
        for name in kind.needs
        if (services.find_uwsgi() if name == "uwsgi" else importlib.util.find_spec(name)) is None
    ]


class Failure(Exception):
    """A check of a scenario did not hold; the text says which."""


# --- A running server, and clients. ---


@dataclass
class Site:
    """A server under test, with everything its clients were ever answered."""

    kind: Kind
    server: services.Server
    shared: Path
    answered: int = 0
    cut_off: int = 0
    backwards: list[str] = field(default_factory=list)

    def page(self) -> dict:
        """The scrape, parsed; fails on a duplicate series."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline_s:
            with contextlib.suppress(OSError, services.http.client.HTTPException):
                status, _, page = self.server.get("/metrics", timeout_s=5)
                if status == 200:
                    return samples_of(page)
            time.sleep(0.25)
        raise Failure(f"/metrics did not answer within {_PATIENCE_S:g} s")

    def counted(self) -> int:
        return int(total(self.page(), "http_server_request_duration_seconds_count", http_route="/hello/"))

    def workers(self) -> list[int]:
        if not self.kind.has_workers:
            return []
        found = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.server.process.pid)], capture_output=True, text=True, check=False
        )
        pids = []
        for pid in map(int, found.stdout.split()):
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if command and self.kind.worker_mark in command:
                    pids.append(pid)
        return pids

    @contextlib.contextmanager
    def load(self, clients: int = 4) -> Iterator[None]:
        """Clients ask for /hello/ and a scraper watches every counter."""
        stop, lock = threading.Event(), threading.Lock()
        threads = [threading.Thread(target=self._ask, args=(stop, lock)) for _ in range(clients)]
        threads.append(threading.Thread(target=self._scrape, args=(stop,)))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def _ask(self, stop: threading.Event, lock: threading.Lock) -> None:
        while not stop.is_set():
            try:
                is_answered = self.server.get("/hello/", timeout_s=5)[0] == 200
            except (OSError, services.http.client.HTTPException):
                is_answered = False
            with lock:
                self.answered += is_answered
                self.cut_off += not is_answered
            if not is_answered:
                time.sleep(0.02)

    def _scrape(self, stop: threading.Event) -> None:
        before: dict = {}
        while not stop.is_set():
            try:
                status, _, page = self.server.get("/metrics", timeout_s=5)
                now = samples_of(page, "counter", "histogram") if status == 200 else None
            except AssertionError as error:
                self.backwards.append(str(error))
                continue
            except Exception:
                # Cut off, perhaps in the middle of the page.
                now = None
            if now is not None:
                for key, value in before.items():
                    if now.get(key, 0) < value - 1e-9:
                        self.backwards.append(f"{key}: {value} -> {now.get(key)}")
                before = now
            time.sleep(0.03)

    def verify(self) -> None:
        """Everything that must hold at rest. Errors: `Failure`."""
        page = self.page()
        counted = int(total(page, "http_server_request_duration_seconds_count", http_route="/hello/"))
        if not self.answered <= counted <= self.answered + self.cut_off:
            raise Failure(f"counted {counted}, answered {self.answered}, cut off {self.cut_off}")
        if self.backwards:
            raise Failure(f"backwards: {self.backwards[0]} ({len(self.backwards)} in all)")
        for _ in range(2 * WORKERS):
            page = self.page()
            again = int(total(page, "http_server_request_duration_seconds_count", http_route="/hello/"))
            if again != counted:
                raise Failure(f"two scrapes at rest differ: {counted} and {again}")
        # A request whose client has given up may still wait in the listening socket for its worker.
        deadline_s = time.monotonic() + 5
        while (active := total(page, "http_server_active_requests")) and time.monotonic() < deadline_s:
            time.sleep(0.2)
            page = self.page()
        if active:
            raise Failure(f"active_requests is {active} at rest")
        if sum(name == "target_info" for name, _ in page) != 1:
            raise Failure("target_info does not stand there once")
        if total(page, "django_otel_shared_active") != 1:
            raise Failure("numbers are not shared")
        slots = list(self.shared.glob("*/*/*.cells"))
        # A graceful restart has both generations alive for a moment.
        if len(slots) > 2 * WORKERS + _SLOTS_SPARE:
            raise Failure(f"{len(slots)} slots for {WORKERS} workers")


@contextlib.contextmanager
def start(kind: Kind, folder: Path, *extra: str) -> Iterator[Site]:
    """The test project behind this server, its shared folder in `folder`."""
    shared = folder / "shared"
    shared.mkdir(exist_ok=True)
    otel = {**OTEL, "METRICS": {"SHARED_DIR": str(shared)}}
    # A settings module of its own, so that the reloader can be made to reload without touching the checkout.
    (folder / "long_settings.py").write_text("from tests.settings import *\n\nDEBUG = True\n")
    environment = services.server_env(otel, TEST_SQLITE=str(folder / "db.sqlite3"), PYTHONUNBUFFERED="1")
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT)])
    if not kind.has_workers:
        environment["DJANGO_SETTINGS_MODULE"] = "long_settings"
    port = services.free_port()
    log = folder / f"{port}.log"
    with services.running([*kind.command(port), *extra], environment, log) as process:
        site = Site(kind, services.Server(f"http://127.0.0.1:{port}", process, log), shared)

        def is_up() -> bool:
            if process.poll() is not None:
                raise Failure(f"the server ended at once: {site.server.log[-500:]}")
            with contextlib.suppress(OSError, services.http.client.HTTPException):
                return bool(site.server.get("/livez")[0] == 200)
            return False

        services.wait_until(is_up, 30, "an answer")
        yield site


# --- Scenarios. Each works on a running site, or starts what it needs. ---


def steady(site: Site) -> None:
    with site.load():
        time.sleep(1.5)
    if site.cut_off:
        raise Failure(f"{site.cut_off} requests were not answered by a server at peace")


def graceful(site: Site) -> None:
    """Workers are told to go, one after another, under load."""
    number = site.kind.stop_worker
    assert number is not None
    with site.load():
        for _ in range(2):
            time.sleep(0.4)
            for pid in site.workers()[:1]:
                os.kill(pid, number)
            time.sleep(site.kind.respawn_s)


def hup(site: Site) -> None:
    with site.load(3):
        for _ in range(2):
            time.sleep(0.5)
            site.server.process.send_signal(signal.SIGHUP)
            time.sleep(site.kind.respawn_s)
            # A server that is told again while it still reloads may end up without workers for a while.
            site.page()
    # The old generation may still be ending requests whose clients were cut off.
    time.sleep(2)


def foreign_instruments(site: Site) -> None:
    """Counted through the SDK an instant before the workers are told to go: their last snapshot has it."""
    before = total(site.page(), "sdk_counted_total")
    answered = 0
    for _ in range(30):
        with contextlib.suppress(OSError, services.http.client.HTTPException):
            answered += site.server.get("/sdk-count/", timeout_s=5)[0] == 200
    if site.kind.has_hup:
        site.server.process.send_signal(signal.SIGHUP)
    elif site.kind.stop_worker is not None:
        for pid in site.workers():
            os.kill(pid, site.kind.stop_worker)
    time.sleep(site.kind.respawn_s + 1)
    site.page()
    time.sleep(2)
    counted = total(site.page(), "sdk_counted_total") - before
    if counted != answered:
        raise Failure(f"{counted:g} counted through the SDK, {answered} answered")


def kill_idle(site: Site) -> None:
    for pid in site.workers():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    time.sleep(site.kind.respawn_s)
    site.verify()
    with site.load(2):
        time.sleep(0.5)


def kill_under_load(site: Site) -> None:
    with site.load():
        for _ in range(3):
            time.sleep(0.5)
            for pid in site.workers()[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(site.kind.respawn_s / 2)
        time.sleep(site.kind.respawn_s)


def reload_code(site: Site) -> None:
    """runserver's reloader: a settings module is saved, the server process is replaced."""
    module = site.shared.parent / "long_settings.py"
    for number in range(2):
        with site.load(2):
            time.sleep(0.5)
            module.write_text(module.read_text() + f"\n# {number}\n")
            time.sleep(3)


def recycling(kind: Kind, folder: Path) -> Site:
    with start(kind, folder, *kind.recycling) as site:
        before = set(site.workers())
        with site.load(3):
            time.sleep(kind.recycling_s)
        time.sleep(kind.respawn_s)
        site.verify()
        if before == set(site.workers()):
            raise Failure("no worker was recycled")
        return site


def crash_and_restart(kind: Kind, folder: Path) -> Site:
    """The master and its workers are killed; the next one begins at zero and leaves nothing of the old behind."""
    with start(kind, folder) as site:
        with site.load(2):
            time.sleep(0.6)
        site.verify()
        os.killpg(site.server.process.pid, signal.SIGKILL)
        site.server.process.wait(60)
    with start(kind, folder) as again:
        if again.counted() != 0:
            raise Failure(f"a new master begins at {again.counted()}")
        with again.load(2):
            time.sleep(0.6)
        again.verify()
        return again


def two_deployments(kind: Kind, folder: Path) -> Site:
    with start(kind, folder) as one, start(kind, folder) as other:
        with one.load(2):
            time.sleep(0.4)
            with other.load(1):
                time.sleep(0.6)
        # The folder holds both groups.
        one.shared = other.shared = folder / "nowhere"
        other.verify()
        one.verify()
        return one


def scenarios_on_one_site(kind: Kind) -> list[Callable[[Site], None]]:
    found: list[Callable[[Site], None]] = [steady]
    if kind.has_workers:
        if kind.stop_worker is not None:
            found.append(graceful)
        if kind.has_hup:
            found += [hup, foreign_instruments]
        found += [kill_idle, kill_under_load]
    else:
        found.append(reload_code)
    return found


@dataclass
class Row:
    server: str
    scenario: str
    outcome: str
    numbers: str = ""


def run_kind(name: str, kind: Kind, is_short: bool, end_s: float) -> Iterator[Row]:
    """Every scenario of one server."""
    folder = Path(tempfile.mkdtemp(prefix="django_otel-long-"))
    try:
        try:
            with start(kind, folder) as site:
                for scenario in scenarios_on_one_site(kind):
                    if time.monotonic() > end_s:
                        return
                    answered, cut_off = site.answered, site.cut_off
                    outcome = "ok"
                    try:
                        scenario(site)
                        site.verify()
                    except (Failure, AssertionError) as failure:
                        outcome = f"FAILED: {failure}"
                    numbers = f"{site.answered - answered} / {site.cut_off - cut_off}"
                    yield Row(name, scenario.__name__, outcome, numbers)
                    if outcome != "ok":
                        site.backwards.clear()
                        tail = site.server.log[-1500:]
                        print(f"--- the end of {name}'s log ---\n{tail}\n---", file=sys.stderr)
        except (Failure, AssertionError) as failure:
            yield Row(name, "start", f"FAILED: {failure}")
            return
        alone: list[Callable[[Kind, Path], Site]] = [crash_and_restart, two_deployments]
        if kind.recycling:
            alone.insert(0, recycling)
        for scenario_alone in alone[: 1 if is_short else None]:
            if time.monotonic() > end_s:
                return
            own = Path(tempfile.mkdtemp(dir=folder))
            try:
                site = scenario_alone(kind, own)
                yield Row(name, scenario_alone.__name__, "ok", f"{site.answered} / {site.cut_off}")
            except (Failure, AssertionError) as failure:
                yield Row(name, scenario_alone.__name__, f"FAILED: {failure}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only servers whose name begins so")
    parser.add_argument("--short", action="store_true", help="one of each family, fewer scenarios")
    parser.add_argument("--seconds", type=float, default=3600, help="begin no further scenario after this time")
    parser.add_argument("--require", action="store_true", help="fail when a server is not installed")
    parser.add_argument("--list", action="store_true", help="print the servers and end")
    options = parser.parse_args(arguments)
    names = [name for name in KINDS if not options.names or name.startswith(tuple(options.names))]
    if options.short:
        names = [name for name in names if name in SHORT]
    if options.list:
        print("\n".join(names))
        return 0
    begun_s = time.monotonic()
    rows: list[Row] = []
    for name in names:
        missing = find_missing(KINDS[name])
        if missing:
            rows.append(Row(name, "-", f"skipped: {', '.join(missing)} not installed"))
            print(f"{name:26} {rows[-1].outcome}", flush=True)
            continue
        if time.monotonic() - begun_s > options.seconds:
            rows.append(Row(name, "-", f"skipped: {options.seconds:g} s are over"))
            print(f"{name:26} {rows[-1].outcome}", flush=True)
            continue
        for row in run_kind(name, KINDS[name], options.short, begun_s + options.seconds):
            rows.append(row)
            print(f"{row.server:26} {row.scenario:20} {row.numbers:>16}  {row.outcome}", flush=True)
    failed = [row for row in rows if row.outcome.startswith("FAILED")]
    skipped = [row for row in rows if row.outcome.startswith("skipped")]
    print(
        f"{len(rows) - len(failed) - len(skipped)} passed, {len(failed)} failed, {len(skipped)} servers skipped, "
        f"{time.monotonic() - begun_s:.0f} s (answered / cut off in each row)"
    )
    return 1 if failed or (skipped and options.require) else 0


if __name__ == "__main__":
    sys.exit(main())
