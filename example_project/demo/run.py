"""The demo from beginning to end."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from django.conf import settings

from example_project.demo import report
from example_project.demo.processes import Process, ProcessFailedError, StopFlag, describe_exit, free_port, stop_all
from example_project.demo.receiver import Receiver, otlp_endpoint
from example_project.demo.services import READY_FILE
from example_project.demo.visitors import Crowd

WORKERS = 2
#: The releases of the shop: visited before the servers start, and running in them.
EARLIER_RELEASE = "1.0.0"
RELEASE = "1.1.0"
#: The logger whose level is lowered, so that the page of log levels has one.
_LOGGER = "example_project.shop"
ADMIN_NAME = "admin"
SERVICES = "PostgreSQL and Valkey"
_READY_TIMEOUT_S = 40.0
#: How often a signal is looked for while a command runs.
_TICK_S = 0.1
_PROGRESS_S = 0.5
#: Where lines cannot be rewritten, they come less often.
_PROGRESS_NO_TERMINAL_S = 5.0


class StoppedEarlyError(Exception):
    """The user wants to stop before there is anything to show."""


@dataclass(frozen=True)
class Options:
    """What the user asked for. `seconds` None: until Ctrl-C. `rate` is in requests per second."""

    port: int
    seconds: float | None
    rate: float
    with_services: bool
    gateway_port: int | None = None


class Demo:
    """Owns everything the demo starts; `close()` stops it all, whatever has happened."""

    def __init__(self, options: Options, stop: StopFlag, say: Callable[[str], None]) -> None:
        self._options = options
        self._stop = stop
        self._say = say
        self._processes: list[Process] = []
        self._receiver: Receiver | None = None
        self._crowd: Crowd | None = None
        self._admin_password = secrets.token_urlsafe(9)
        # Only we may look: it holds the database and the logs.
        self._folder = Path(tempfile.mkdtemp(prefix="shop-demo-"))
        self._services_folder: Path | None = None

    def run(self) -> None:
        """Prepare, start, send visitors until it is time, print the table.

        Errors: `ProcessFailedError` when something does not start or ends too early,
        `StoppedEarlyError` when the user stops before the visitors came.
        """
        environ = self._environment()
        if self._options.with_services:
            environ |= self._start_services(environ)
        self._prepare_database(environ)
        self._visit_earlier_release(environ)
        environ["SHOP_RELEASE"] = RELEASE
        gateway_port = self._options.gateway_port or free_port()
        environ["PAYMENT_GATEWAY_URL"] = f"http://127.0.0.1:{gateway_port}"
        gateway = self._serve("payment gateway", "example_project.settings_gateway", gateway_port, environ, workers=1)
        shop = self._serve("shop", "example_project.settings", self._options.port, environ, workers=WORKERS)
        if environ.get("REDIS_URL") and find_spec("celery"):
            self._start_worker(environ)
        self._wait_until_ready(gateway, gateway_port)
        self._wait_until_ready(shop, self._options.port)
        self._print_addresses(gateway_port)

        started_s = time.monotonic()
        self._crowd = Crowd(self._options.port, self._options.rate)
        self._crowd.start()
        try:
            self._watch(started_s)
        finally:
            self._crowd.stop()
        elapsed_s = time.monotonic() - started_s
        counted = self._scrape()
        # Stopped before the spans are counted: the last of them are exported at exit.
        self._say("Stopping the shop and the gateway; they export their queues first.")
        self._stop_processes()
        tally = self._receiver.tally if self._receiver is not None else None
        self._say(report.table(report.Outcome(self._crowd.results, counted, tally, WORKERS, elapsed_s)))
        if not self._crowd.results.answered:
            raise ProcessFailedError(f"No request was answered. {shop.log_tail()}")

    def close(self) -> None:
        """Stop every process and remove every file of this run; safe to call at any time, also twice."""
        if self._crowd is not None:
            self._crowd.stop()
        self._stop_processes()
        if self._receiver is not None:
            self._receiver.stop()
            self._receiver = None
        for folder in (self._folder, self._services_folder):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)

    def _environment(self) -> dict[str, str]:
        environ = dict(os.environ)
        environ.update(
            PYTHONUNBUFFERED="1",
            DJANGO_DEBUG="0",
            DJANGO_SECRET_KEY=secrets.token_urlsafe(40),
            # Neither payments nor telemetry between our own processes go through a proxy.
            NO_PROXY=",".join(
                filter(None, (environ.get("NO_PROXY") or environ.get("no_proxy"), "127.0.0.1,localhost"))
            ),
        )
        environ["no_proxy"] = environ["NO_PROXY"]
        # Spans every second, so that the live line has something to show.
        environ.setdefault("OTEL_BSP_SCHEDULE_DELAY", "1000")
        environ["CONSOLE_PATH"] = str(self._folder / "console")
        if not environ.get("DATABASE_URL"):
            environ["DATABASE_URL"] = f"sqlite:///{self._folder / 'shop.sqlite3'}"
        protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        if protocol != "grpc":
            signals = ("traces", "metrics", "logs")
            self._receiver = Receiver({signal: otlp_endpoint(environ, signal) for signal in signals})
            self._receiver.start()
            for signal in signals:
                environ.pop(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", None)
            environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = self._receiver.endpoint
        return environ

    def _start_services(self, environ: Mapping[str, str]) -> dict[str, str]:
        self._say("Starting PostgreSQL and Valkey.")
        # A folder of their own: PostgreSQL refuses to run as root, and the user it runs as must be able to enter.
        self._services_folder = folder = Path(tempfile.mkdtemp(prefix="shop-services-"))
        command = [sys.executable, "-m", "example_project.demo.services", str(folder)]
        # It leaves a lock file in one of these two.
        private = {"TMPDIR": str(folder), "XDG_RUNTIME_DIR": str(folder)}
        services = self._start(SERVICES, command, {**environ, **private})
        ready = folder / READY_FILE
        self._wait(services, ready.exists, "did not become ready")
        addresses: dict[str, str] = json.loads(ready.read_text())
        return addresses

    def _prepare_database(self, environ: Mapping[str, str]) -> None:
        self._say("Preparing the database.")
        # Preparing is not what the demo wants to show.
        quiet = {**environ, "OTEL_SDK_DISABLED": "true", "DJANGO_SUPERUSER_PASSWORD": self._admin_password}
        self._manage(quiet, "migrate", "--verbosity", "0")
        self._manage(quiet, "shop_admin", "--username", ADMIN_NAME)

    def _visit_earlier_release(self, environ: Mapping[str, str]) -> None:
        """Have traces of an earlier release in the console, and a log level that was set: its pages compare and list.

        None of it is exported: the table counts what the visitors cause.
        """
        self._say(f"Sending some requests to release {EARLIER_RELEASE}, to compare release {RELEASE} with.")
        silent = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}
        earlier = {**environ, **silent, "SHOP_RELEASE": EARLIER_RELEASE}
        self._manage(earlier, "visit")
        self._manage(
            earlier,
            *("otel", "logs", "level", _LOGGER, "DEBUG", "--for", "1h", "--note", "a demo", "--user", ADMIN_NAME),
        )

    def _manage(self, environ: Mapping[str, str], *arguments: str) -> None:
        with subprocess.Popen(
            [sys.executable, "manage.py", *arguments],
            cwd=settings.BASE_DIR,
            env={**environ, "DJANGO_SETTINGS_MODULE": "example_project.settings"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            output = None
            while output is None:
                try:
                    output, _ = process.communicate(timeout=_TICK_S)
                except subprocess.TimeoutExpired:
                    # The signal was for us alone, or came before the command could take it.
                    if self._stop.is_set():
                        process.terminate()
        if self._stop.is_set():
            raise StoppedEarlyError
        if process.returncode:
            raise ProcessFailedError(
                f"manage.py {arguments[0]} failed ({describe_exit(process.returncode)}).\n\n{output}"
            )

    def _serve(
        self, name: str, settings_module: str, port: int, environ: Mapping[str, str], *, workers: int
    ) -> Process:
        command = [
            *(sys.executable, "-m", "gunicorn", "example_project.wsgi:application"),
            *("--config", "python:example_project.gunicorn_config"),
            *("--bind", f"127.0.0.1:{port}", "--workers", str(workers)),
        ]
        return self._start(name, command, {**environ, "DJANGO_SETTINGS_MODULE": settings_module})

    def _start_worker(self, environ: Mapping[str, str]) -> None:
        """Start what runs the shop's tasks; without Valkey a thread of the web server does."""
        program = (sys.executable, "-m", "celery", "-A", "example_project.celery_app", "worker")
        options = ("--concurrency", "2", "--loglevel", "INFO")
        variables = {**environ, "DJANGO_SETTINGS_MODULE": "example_project.settings"}
        self._start("task worker", [*program, *options], variables)

    def _start(self, name: str, command: Sequence[str], environ: Mapping[str, str]) -> Process:
        if self._stop.is_set():
            raise StoppedEarlyError
        log_path = self._folder / f"{name.replace(' ', '-')}.log"
        process = Process(name, command, environ=environ, log_path=log_path, cwd=settings.BASE_DIR)
        self._processes.append(process)
        return process

    def _wait_until_ready(self, process: Process, port: int) -> None:
        self._wait(process, lambda: fetch(port, "/readyz")[0] == 200, "did not become ready")

    def _wait(self, process: Process, is_ready: Callable[[], bool], complaint: str) -> None:
        deadline_s = time.monotonic() + _READY_TIMEOUT_S
        while not is_ready():
            process.check()
            if time.monotonic() > deadline_s:
                raise ProcessFailedError(
                    f"{process.name} {complaint} within {_READY_TIMEOUT_S:.0f} s. {process.log_tail()}"
                )
            if self._stop.wait(0.1):
                raise StoppedEarlyError

    def _print_addresses(self, gateway_port: int) -> None:
        shop = f"http://127.0.0.1:{self._options.port}"
        self._say(
            f"\n  Shop      {shop}/\n"
            f"  Numbers   {shop}/metrics\n"
            f"  Admin     {shop}/admin/   name {ADMIN_NAME}, password {self._admin_password}\n"
            f"  Console   {shop}/admin/django_otel/dashboard/   traces and figures, same name and password\n"
            f"  Tasks     {shop}/admin/django_otel/tasks/   invoices, sent after the order's page was answered\n"
            f"  Gateway   http://127.0.0.1:{gateway_port}/metrics\n"
        )
        ending = "Ctrl-C ends it." if self._options.seconds is None else f"Ends after {self._options.seconds:g} s."
        self._say(f"Visitors send up to {self._options.rate:g} requests a second. {ending}")

    def _watch(self, started_s: float) -> None:
        """Show progress until the time is over or the user stops it.

        Errors: `ProcessFailedError` when one of our processes ends meanwhile.
        """
        assert self._crowd is not None
        seconds = self._options.seconds
        terminal = sys.stdout.isatty()
        shown_s = started_s
        while True:
            elapsed_s = time.monotonic() - started_s
            left_s = _PROGRESS_S if seconds is None else min(_PROGRESS_S, seconds - elapsed_s)
            if left_s <= 0 or self._stop.wait(left_s):
                break
            for process in self._processes:
                process.check()
            now_s = time.monotonic()
            if terminal or now_s - shown_s >= _PROGRESS_NO_TERMINAL_S:
                shown_s = now_s
                self._show_progress(now_s - started_s, terminal=terminal)
        if terminal:
            self._show_progress(time.monotonic() - started_s, terminal=True)
            sys.stdout.write("\n")

    def _show_progress(self, elapsed_s: float, *, terminal: bool) -> None:
        assert self._crowd is not None
        tally = self._receiver.tally if self._receiver is not None else None
        line = report.progress_line(self._crowd.results, tally, elapsed_s, self._options.seconds)
        # \x1b[K clears what a longer line left behind.
        sys.stdout.write(f"\r{line}\x1b[K" if terminal else f"{line}\n")
        sys.stdout.flush()

    def _scrape(self) -> int | None:
        status, page = fetch(self._options.port, "/metrics")
        return report.counted_requests(page) if status == 200 else None

    def _stop_processes(self) -> None:
        # The servers first, the databases they still need at exit afterwards.
        servers = [process for process in self._processes if process.name != SERVICES]
        stop_all(servers)
        stop_all([process for process in self._processes if process not in servers])
        self._processes.clear()


def fetch(port: int, path: str) -> tuple[int, str]:
    """GET a page of 127.0.0.1: status and text; (0, "") without an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    with contextlib.closing(connection):
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException):
            return 0, ""
