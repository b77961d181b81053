"""What consoles inside of an application add to a request: django_otel, django-orbit, django-silk, debug toolbar.

    python3 -m benchmarks.consoles [--rounds 9] [--publish]

Each has a virtual environment of its own, made by pip, and is switched on as its documentation says, with its
defaults: everything is recorded, in the SQLite file of the application, which they share with the view; ours writes
into a file of its own. All serve the same two views in process through Django's WSGI handler: a JSON view, and a page
of 10 queries and a template. Counted per request, and shown as the difference to bare Django:

- instructions until the response is closed (callgrind), and with what a thread of ours does afterwards;
- CPU time of the process, all threads, user and system, until everything is stored; blocks of all are interleaved in
  one run, and the median of the rounds is shown;
- statements on the connection of the application's database.

Instructions repeat to about 1 %, CPU times depend on the machine. Needs valgrind, pip and the package index.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import callgrind, publication
from benchmarks.instructions import NEW_PROJECT
from benchmarks.peers import environments

CASES = {"JSON view": "/json/", "10 queries and a template": "/page/"}
_PATHS = list(CASES.values())
#: Requests of a block whose CPU time is taken, before anything is measured, and of the two loops that are subtracted.
BLOCK = 40
WARM_UP = 60
FEW, MANY = 3, 9
_TEMPLATE = """<!doctype html><html><head><title>{{ title }}</title></head><body><h1>{{ title|upper }}</h1>
<ul>{% for product in products %}<li>{{ product.name }}: {{ product.price }}</li>{% endfor %}</ul></body></html>"""
#: Spans that wait while only the request is counted.
_QUEUE = 100_000


class Subject:
    """Bare Django; the others add themselves to its settings. `environment` is the virtual environment."""

    title = "bare Django"
    environment = "bare"
    distribution = ""

    def settings(self, folder: Path) -> dict[str, Any]:
        return {}

    def urls(self) -> list[Any]:
        return []

    def ready(self) -> None:
        """Called after `django.setup()`."""

    def flush(self) -> None:
        """Store everything that waits."""


class DjangoOtel(Subject):
    title = "django_otel, console on"
    environment = distribution = "django-otel"
    is_on = True

    def settings(self, folder: Path) -> dict[str, Any]:
        return {
            "apps": ["django_otel"],
            "first": ["django_otel.middleware.OTelMiddleware"],
            # No thread reads the sampling policy: it does nothing on the path of a request.
            "OTEL": {
                "SERVICE_NAME": "measured",
                "SAMPLING": {"LIVE": False},
                "CONSOLE": {"ENABLED": self.is_on, "PATH": str(folder / "console")},
            },
        }

    def ready(self) -> None:
        from django_otel import runtime

        self._console = runtime.current().console
        if self._console is not None:
            # The thread works when it is asked to, so that request and thread are counted apart.
            worker = self._console.worker
            worker._queue_size = worker._batch_size = _QUEUE  # noqa: SLF001 (measures the inside)
            worker._delay_s = 3600.0  # noqa: SLF001 (measures the inside)

    def flush(self) -> None:
        if self._console is not None:
            self._console.force_flush(60_000)


class DjangoOtelWithout(DjangoOtel):
    title = "django_otel, console off"
    is_on = False


class Orbit(Subject):
    title = environment = distribution = "django-orbit"

    def settings(self, folder: Path) -> dict[str, Any]:
        return {"apps": ["orbit"], "first": ["orbit.middleware.OrbitMiddleware"]}

    def urls(self) -> list[Any]:
        return [("orbit/", "orbit.urls")]


class Silk(Subject):
    title = environment = distribution = "django-silk"

    def settings(self, folder: Path) -> dict[str, Any]:
        return {"apps": ["silk"], "first": ["silk.middleware.SilkyMiddleware"]}

    def urls(self) -> list[Any]:
        return [("silk/", "silk.urls")]


class Toolbar(Subject):
    title = environment = distribution = "django-debug-toolbar"

    def settings(self, folder: Path) -> dict[str, Any]:
        return {
            "apps": ["django.contrib.staticfiles", "debug_toolbar"],
            "first": ["debug_toolbar.middleware.DebugToolbarMiddleware"],
            "DEBUG_TOOLBAR_CONFIG": {"SHOW_TOOLBAR_CALLBACK": "benchmarks.consoles.show_toolbar"},
        }

    def urls(self) -> list[Any]:
        return [("__debug__/", "debug_toolbar.urls")]


SUBJECTS: dict[str, type[Subject]] = {
    "bare": Subject,
    "ours": DjangoOtel,
    "ours-without": DjangoOtelWithout,
    "orbit": Orbit,
    "silk": Silk,
    "toolbar": Toolbar,
}


def show_toolbar(request: object) -> bool:
    return True


# --- The measured process. ---


def configure(subject: Subject, folder: Path) -> None:
    """Django with the middleware of a new project, and the subject."""
    import django
    from django.conf import settings

    given = subject.settings(folder)
    apps = ["admin", "contenttypes", "auth", "sessions", "messages"]
    settings.configure(
        SECRET_KEY="only for measuring",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="benchmarks.consoles_urls",
        MIDDLEWARE=[*given.pop("first", ()), *NEW_PROJECT],
        INSTALLED_APPS=[*(f"django.contrib.{app}" for app in apps), "benchmarks.peers.shop", *given.pop("apps", ())],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": str(folder / "shop.sqlite3"),
                # As a site that takes traffic has it: without, each request would open one.
                "CONN_MAX_AGE": None,
            }
        },
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "OPTIONS": {
                    "loaders": [
                        (
                            "django.template.loaders.cached.Loader",
                            [
                                ("django.template.loaders.locmem.Loader", {"products.html": _TEMPLATE}),
                                "django.template.loaders.app_directories.Loader",
                            ],
                        )
                    ],
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ],
                },
            }
        ],
        STATIC_URL="/static/",
        MEDIA_ROOT=str(folder),
        LOGGING={"version": 1, "loggers": {"django.request": {"level": "CRITICAL"}}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        **given,
    )
    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0, run_syncdb=True)
    from benchmarks.peers.shop.models import Product

    Product.objects.bulk_create(Product(name=f"Product {number}", price=number) for number in range(10))


def request_loop() -> Callable[[str, int], None]:
    """Return what sends so many requests for a path."""
    from django.core.wsgi import get_wsgi_application

    application = get_wsgi_application()
    environ = {
        "wsgi.version": (1, 0), "wsgi.url_scheme": "http", "wsgi.errors": sys.stderr, "wsgi.multithread": False,
        "wsgi.multiprocess": True, "wsgi.run_once": False, "REQUEST_METHOD": "GET", "SCRIPT_NAME": "",
        "QUERY_STRING": "page=1", "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "8000", "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "shop.example:8000", "HTTP_ACCEPT": "text/html,application/json",
        "HTTP_USER_AGENT": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    }  # fmt: skip

    def start_response(status: str, headers: object, exc_info: object = None) -> Callable[[bytes], object]:
        assert status.startswith("200"), status
        return print

    def loop(path: str, times: int) -> None:
        for _ in range(times):
            response = application({**environ, "PATH_INFO": path, "wsgi.input": io.BytesIO(b"")}, start_response)
            for _chunk in response:
                pass
            response.close()  # type: ignore[attr-defined]

    return loop


def statements(loop: Callable[[str, int], None], path: str) -> float:
    """Statements that one request runs on the application's connection, transactions included."""
    from django.db import connection

    connection.ensure_connection()
    seen: list[str] = []
    connection.connection.set_trace_callback(seen.append)
    loop(path, BLOCK)
    connection.connection.set_trace_callback(None)
    return len(seen) / BLOCK


def work(name: str) -> None:
    """Answer commands, a line of JSON each, on standard input: a path and what is measured."""
    subject = SUBJECTS[name]()
    with tempfile.TemporaryDirectory(prefix="consoles-") as place:
        configure(subject, Path(place))
        loop = request_loop()
        subject.ready()
        for path in _PATHS:
            loop(path, WARM_UP)
        subject.flush()
        for line in sys.stdin:
            what, path = json.loads(line)
            print(json.dumps(measure(subject, loop, what, path)), flush=True)


def measure(subject: Subject, loop: Callable[[str, int], None], what: str, path: str) -> float:
    """Return instructions of a request ("request"), with what is left for later ("all"), CPU in us, or statements."""
    if what == "cpu":
        began_s = time.process_time()
        loop(path, BLOCK)
        subject.flush()
        return (time.process_time() - began_s) / BLOCK * 1e6
    if what == "statements":
        return statements(loop, path)

    def run(times: int) -> None:
        loop(path, times)
        if what == "all":
            subject.flush()

    counted = callgrind.count_each(run, FEW, MANY, repeats=2)
    subject.flush()
    return counted


# --- Around it. ---


class Worker:
    """A measured process; with a folder it runs under callgrind."""

    def __init__(self, name: str, python: Path, folder: str = "") -> None:
        command = [str(python), "-m", "benchmarks.consoles", "--work", name]
        environ: dict[str, str] = {**os.environ, "PYTHONHASHSEED": "0"}
        if folder:
            environ = callgrind.environment(environ, folder)
            command = callgrind.command(command, folder)
        self._process = subprocess.Popen(
            command, cwd=environments.ROOT, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, what: str, path: str) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([what, path]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}.")
        return float(json.loads(line))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


Figures = dict[str, dict[str, dict[str, float]]]


def run_all(pythons: Mapping[str, Path], rounds: int) -> Figures:
    """Return the figures by subject, path and what was measured."""
    found: Figures = {name: {path: {} for path in _PATHS} for name in SUBJECTS}
    for name in SUBJECTS:
        print(f"counting instructions of {name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            worker = Worker(name, pythons[name], folder)
            for path in _PATHS:
                for what in ("request", "all"):
                    found[name][path][what] = worker.ask(what, path)
            worker.close()
    print("taking CPU times", file=sys.stderr, flush=True)
    workers = {name: Worker(name, pythons[name]) for name in SUBJECTS}
    for path in _PATHS:
        times: dict[str, list[float]] = {name: [] for name in SUBJECTS}
        for _ in range(rounds):
            for name, worker in workers.items():
                times[name].append(worker.ask("cpu", path))
        for name, worker in workers.items():
            found[name][path]["cpu"] = statistics.median(times[name])
            found[name][path]["statements"] = worker.ask("statements", path)
    for worker in workers.values():
        worker.close()
    return found


def report(found: Figures, versions: Mapping[str, str]) -> str:
    """Return the tables, Markdown."""
    parts = []
    for title, path in CASES.items():
        bare = found["bare"][path]
        rows = []
        for name, subject in SUBJECTS.items():
            each = found[name][path]
            more = {what: each[what] - bare[what] for what in each} if name != "bare" else each
            sign = "" if name == "bare" else "+"
            rows.append(
                [
                    f"{subject.title} {versions.get(name, '')}".strip(),
                    f"{sign}{more['request'] / 1000:,.0f}", f"{sign}{more['all'] / 1000:,.0f}",
                    f"{sign}{more['cpu'] / 1000:.2f}", f"{sign}{more['statements']:.0f}",
                ]
            )  # fmt: skip
        head = [title, "kI until the response is closed", "kI until it is stored", "CPU ms", "statements"]
        parts.append(publication.table(head, rows))
    return "\n\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cache", type=Path, default=environments.ROOT / ".cache" / "benchmarks")
    parser.add_argument("--publish", action="store_true", help="put the figures into docs/performance.md")
    parser.add_argument("--work", choices=SUBJECTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work)
        return 0
    if why := callgrind.why_not():
        print(why)
        return 1
    pythons = {name: environments.build(subject.environment, options.cache) for name, subject in SUBJECTS.items()}
    versions = {
        name: environments.versions(pythons[name]).get(subject.distribution, "") for name, subject in SUBJECTS.items()
    }
    found = run_all(pythons, options.rounds)
    text = report(found, versions)
    print(text)
    if options.publish:
        publication.publish("consoles", {"figures": found, "versions": versions, **publication.machine()}, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
