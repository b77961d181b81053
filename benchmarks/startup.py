"""What a process takes to start: bare Django, with django_otel, and with the official instrumentation.

    python -m benchmarks.startup [--rounds 21] [--no-count] [--publish]

A process for each figure, and the processes of all contenders in turn, round after
round, so that a noisy machine disturbs all alike. Two moments are taken: after
`django.setup()`, from before `import django`, and after the first request, which
has then loaded the handler, the middleware and whatever an instrumentation puts
off until it is needed. The project has the admin; psycopg2, redis and requests are
installed and not imported by it.

"official" is DjangoInstrumentor with the SDK's providers and the
PrometheusMetricReader, as its documentation sets it up; "with OTLP" has an OTLP
exporter for spans as well, which has nothing to send before the end. Memory is
what belongs to the process alone (private pages). Byte code is made before the
first round, in a folder of its own, so that all alike load and none compiles.

Instructions are counted by valgrind's callgrind, where that is installed; they
repeat to about 1 %.

Needs opentelemetry-exporter-prometheus and opentelemetry-instrumentation-django.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import callgrind, publication

BARE, OURS, OFFICIAL = "bare Django", "django_otel", "official instrumentation"
CONTENDERS = (BARE, OURS, f"{OURS}, with OTLP", OFFICIAL, f"{OFFICIAL}, with OTLP")
MOMENTS = {"setup": "`django.setup()`", "first": "the first request answered"}
#: Nothing listens there; nothing is sent while it is measured.
_ENDPOINT = "http://127.0.0.1:9"
_URLCONF = "startup_urls"
_SHARED = "BENCHMARK_SHARED_DIR"
Figures = dict[str, float]


# --- The measured process. ---


def set_up(contender: str) -> None:
    """All that a project's process does before it has a handler."""
    import django
    from django.conf import settings

    apps = [f"django.contrib.{name}" for name in ("admin", "auth", "contenttypes", "sessions", "messages")]
    middleware = [
        "django.middleware.security.SecurityMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ]
    more: dict[str, object] = {}
    if contender.startswith(OURS):
        apps.append("django_otel")
        middleware.insert(0, "django_otel.middleware.OTelMiddleware")
        # A folder of its own: what other projects have left in the shared one is looked through at the start.
        otel: dict[str, object] = {"SERVICE_NAME": "shop", "METRICS": {"SHARED_DIR": os.environ[_SHARED]}}
        if "OTLP" in contender:
            otel["TRACES"] = {"ENDPOINT": f"{_ENDPOINT}/v1/traces"}
        more = {"OTEL": otel}
    settings.configure(
        SECRET_KEY="benchmark",
        ALLOWED_HOSTS=["testserver"],
        INSTALLED_APPS=apps,
        MIDDLEWARE=middleware,
        ROOT_URLCONF=_URLCONF,
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        **more,
    )
    if contender.startswith(OFFICIAL):
        _set_up_official(with_otlp="OTLP" in contender)
    django.setup()


def _set_up_official(*, with_otlp: bool) -> None:
    from opentelemetry import metrics, trace
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.instrumentation.django import DjangoInstrumentor
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

    resource = Resource.create({"service.name": "shop"})
    provider = TracerProvider(resource=resource)
    if with_otlp:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{_ENDPOINT}/v1/traces")))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider(resource=resource, metric_readers=[PrometheusMetricReader()]))
    DjangoInstrumentor().instrument()


def answer_first() -> None:
    """Make the handler and answer one request. Errors: `RuntimeError` for any other answer than that of the view."""
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpRequest, JsonResponse
    from django.urls import path

    def view(request: HttpRequest) -> JsonResponse:
        return JsonResponse({"answer": 42})

    urlconf = ModuleType(_URLCONF)
    urlconf.urlpatterns = [path("first/", view)]  # type: ignore[attr-defined]
    sys.modules[_URLCONF] = urlconf
    from io import BytesIO

    environ = {
        "REQUEST_METHOD": "GET", "PATH_INFO": "/first/", "SCRIPT_NAME": "", "QUERY_STRING": "",
        "wsgi.url_scheme": "http",
        "SERVER_NAME": "testserver", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": "127.0.0.1",
        "wsgi.input": BytesIO(), "wsgi.errors": sys.stderr,
    }  # fmt: skip
    statuses: list[str] = []
    application: Any = get_wsgi_application()
    response = application(environ, lambda status, headers, *more: statuses.append(status))
    body = b"".join(response)
    response.close()
    if statuses != ["200 OK"] or json.loads(body) != {"answer": 42}:
        raise RuntimeError(f"the first request was answered {statuses} {body!r}")


def private_mib() -> float:
    """Memory that belongs to this process alone, in MiB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def measure(contender: str) -> None:
    figures: dict[str, Figures] = {}
    steps = {"setup": lambda: set_up(contender), "first": answer_first}
    begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
    for moment, step in steps.items():
        step()
        cpu_s, wall_s = time.process_time() - begun_cpu_s, time.perf_counter() - begun_s
        figures[moment] = {"cpu_ms": cpu_s * 1e3, "wall_ms": wall_s * 1e3, "mib": private_mib()}
    print(json.dumps(figures))
    sys.stdout.flush()
    # What an exporter would do at the end is not part of the start, and nothing listens there.
    os._exit(0)


def count(contender: str, moment: str) -> None:
    def run() -> None:
        set_up(contender)
        if moment == "first":
            answer_first()

    print(json.dumps(callgrind.count(run) / 1e6))
    sys.stdout.flush()
    os._exit(0)


# --- Around it. ---


def environment(folder: str) -> dict[str, str]:
    environ = {
        name: value
        for name, value in os.environ.items()
        if name != "PYTHONDONTWRITEBYTECODE" and not name.startswith("OTEL_")
    }
    shared = Path(folder, "shared")
    shared.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {**environ, "PYTHONPYCACHEPREFIX": folder, "PYTHONHASHSEED": "0", _SHARED: str(shared)}


def run(contender: str, folder: str) -> dict[str, Figures]:
    command = [sys.executable, __file__, "--measure", contender]
    done = subprocess.run(command, env=environment(folder), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{contender} failed:\n{done.stderr}")
    found: dict[str, Figures] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_counted(contender: str, moment: str, folder: str) -> float:
    """Million instructions."""
    with tempfile.TemporaryDirectory() as dumps:
        command = callgrind.command([sys.executable, __file__, "--measure", contender, "--count", moment], dumps)
        environ = callgrind.environment(environment(folder), dumps)
        done = subprocess.run(command, env=environ, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{contender} failed:\n{done.stderr}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def compare(rounds: int, *, counts: bool, contenders: Sequence[str] = CONTENDERS) -> dict[str, Any]:
    """By moment and contender: medians of what it adds to bare Django, and the median share of the official's."""
    with tempfile.TemporaryDirectory() as folder:
        for contender in contenders:
            run(contender, folder)
        found: list[dict[str, dict[str, Figures]]] = []
        for number in range(rounds):
            order = contenders if number % 2 else contenders[::-1]
            found.append({contender: run(contender, folder) for contender in order})
        result = {moment: summarise([_of_moment(each, moment) for each in found]) for moment in MOMENTS}
        for moment in MOMENTS if counts else ():
            counted = {contender: run_counted(contender, moment, folder) for contender in contenders}
            for contender, figures in summarise([{each: {"mi": value} for each, value in counted.items()}]).items():
                result[moment][contender].update(figures)
    return result


def _of_moment(found: Mapping[str, Mapping[str, Figures]], moment: str) -> dict[str, Figures]:
    return {contender: figures[moment] for contender, figures in found.items()}


def summarise(rounds: Sequence[Mapping[str, Figures]]) -> dict[str, Figures]:
    """Medians over the rounds: of bare Django what it takes, of all others what they add, and `share_*`.

    A share is what is added as a part of what the official instrumentation adds in the same round.
    """
    result: dict[str, Figures] = {}
    for contender in sorted(rounds[0], key=CONTENDERS.index):
        figures: Figures = {}
        for key in rounds[0][contender]:
            added = [each[contender][key] - (0.0 if contender == BARE else each[BARE][key]) for each in rounds]
            figures[key] = round(statistics.median(added), 2)
            if contender != BARE:
                official = [each[OFFICIAL][key] - each[BARE][key] for each in rounds]
                shares = [ours / theirs for ours, theirs in zip(added, official, strict=True) if theirs > 0]
                figures[f"share_{key}"] = round(statistics.median(shares), 2) if shares else float("nan")
        result[contender] = figures
    return result


def text_of(result: Mapping[str, Mapping[str, Figures]]) -> str:
    """The figures as Markdown."""
    parts = []
    for moment, title in MOMENTS.items():
        rows = []
        has_counts = "mi" in result[moment][BARE]
        keys = {"cpu_ms": "ms of CPU", "mib": "MiB", **({"mi": "million instructions"} if has_counts else {})}
        for contender, figures in result[moment].items():
            name = f"**{contender}**" if contender.startswith(OURS) else contender
            cells = []
            for key in keys:
                value = f"{figures[key]:.1f}" if key == "mib" else f"{figures[key]:.0f}"
                share = figures.get(f"share_{key}")
                cells.append(value if share is None else f"+{value} ({share:.2f})")
            rows.append([name, *cells])
        parts.append(publication.table([f"Up to {title}", *keys.values()], rows))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--no-count", action="store_true", help="leave the count of instructions out")
    parser.add_argument("--publish", action="store_true", help="put the figures into docs/ and benchmarks/results.json")
    parser.add_argument("--measure", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--count", choices=tuple(MOMENTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        if options.count:
            count(options.measure, options.count)
        measure(options.measure)
        return
    obstacle = callgrind.why_not()
    if obstacle and not options.no_count:
        print(obstacle)
    result = compare(options.rounds, counts=not (obstacle or options.no_count))
    print(text_of(result))
    if options.publish:
        data = {"machine": publication.machine(), "rounds": options.rounds, "results": result}
        publication.publish("startup", data, text_of(result))


if __name__ == "__main__":
    main()
