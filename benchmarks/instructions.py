"""Instructions that django_otel adds per request and per query, counted by callgrind.

    python benchmarks/instructions.py [--check] [--plain] [--case NAME ...] [--requests N] [--layouts N]

One bare and one instrumented process drive the same Django views in process, by
calling the WSGI or ASGI handler; start-up and warm-up are not counted. The
figures repeat to about 1 % on any machine, loaded or not, which no time does.
One per cent of a request is a tenth of what is added to it: where the
interpreter's objects lie in memory decides which names want the same entry of
its method cache, and so how often Django's classes are searched for them. So
each case is counted in several processes that differ in nothing but what they
allocate first (`--layouts`), and the mean is shown: without these searches on
both sides ("kI", which differs between layouts by half a thousand), and with
them ("with misses", which differs by several).

Everything present is on with its defaults: span and metrics of requests and
queries, exemplars, a batch processor (whose thread does not run meanwhile) in
front of an exporter that does nothing. Threads that work by the clock sleep meanwhile; what
they cost per second stands in the comparison with the peers.

`--check` compares with the targets and fails when one is exceeded by more than
15 %, with misses by twice that; without valgrind it says so and succeeds. `--plain` puts a provider of
another tool in front, so that the plain API path is taken. `--console` keeps
recent traces for the admin as well (the writing thread does not run meanwhile).
`--otel '{"REQUEST": {"TIME_BUDGET": false}}'` counts with these settings on top,
so that a layer is compared on and off.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import io
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import callgrind

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

#: A target may be exceeded by this share before `--check` fails.
TOLERANCE = 0.15
#: Tells a counted process its layout, and how many texts more it then makes before everything else.
_LAYOUT = "BENCHMARK_LAYOUT"
_LAYOUT_STEP = 997
#: Settings on top of those below, as JSON.
_OTEL = "BENCHMARK_OTEL"
#: How long threads are given to start, in seconds.
_SETTLE_S = 1.0
#: Requests before any is counted: the interpreter adapts to them, and tries again and again where it has failed.
_WARM_UP = 500
_TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0"


#: The middleware of a new Django project.
NEW_PROJECT = (
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
)


@dataclass(frozen=True, slots=True)
class Case:
    """One view at one sampling ratio. Targets are thousand instructions added per request."""

    name: str
    path: str
    ratio: float
    target_ki: float | None = None
    plain_target_ki: float | None = None
    traceparent_flag: str = ""
    is_async: bool = False
    #: How many requests are counted; the shares of 10 % need many.
    times: float = 1
    #: Whether spans are held back in case the request ends in an error; here none does.
    keeps_errors: bool = False
    #: So many sampling rules by path that do not match, and one by route that does not.
    path_rules: int = 0
    has_route_rule: bool = False
    #: Whether equal queries are counted, DATABASE.N_PLUS_ONE.
    watches: bool = True
    #: Whether the time of the request is divided over its layers, REQUEST.TIME_BUDGET.
    has_budget: bool = True


CASES = (
    Case("JSON view, unsampled", "/json/", 0.0, 30, 220),
    Case("JSON view, 10 % sampled", "/json/", 0.1, 40, None, times=8),
    Case("JSON view, all sampled", "/json/", 1.0, 85, 480),
    Case("JSON view, tail keeping, nothing kept", "/json/", 0.0, 85, keeps_errors=True),
    Case("JSON view, 50 rules, unsampled", "/json/", 0.0, 34, path_rules=50),
    Case("JSON view, a rule by route, unsampled", "/json/", 0.0, has_route_rule=True),
    Case("JSON view, no time budget, unsampled", "/json/", 0.0, has_budget=False),
    Case("1 query, unsampled", "/queries/1/", 0.0),
    Case("1 query, all sampled", "/queries/1/", 1.0),
    Case("10 queries, unsampled", "/queries/10/", 0.0),
    Case("10 queries, 10 % sampled", "/queries/10/", 0.1, times=8),
    Case("10 queries, all sampled", "/queries/10/", 1.0),
    Case("12 equal queries, unsampled", "/queries/12/", 0.0),
    Case("12 equal queries, all sampled", "/queries/12/", 1.0),
    Case("12 equal queries, no N+1 watch, unsampled", "/queries/12/", 0.0, watches=False),
    Case("12 equal queries, no N+1 watch, all sampled", "/queries/12/", 1.0, watches=False),
    Case("template, unsampled", "/template/", 0.0),
    Case("template, all sampled", "/template/", 1.0),
    Case("1 transaction, unsampled", "/transactions/1/", 0.0),
    Case("11 transactions, unsampled", "/transactions/11/", 0.0),
    Case("11 transactions, all sampled", "/transactions/11/", 1.0),
    Case("1 transaction, all sampled", "/transactions/1/", 1.0),
    Case("1 cache operation, unsampled", "/cached/1/", 0.0),
    Case("11 cache operations, unsampled", "/cached/11/", 0.0),
    Case("404, unsampled", "/missing/", 0.0),
    Case("404, all sampled", "/missing/", 1.0),
    Case("traceparent, flag 00", "/json/", 1.0, traceparent_flag="0"),
    Case("traceparent, flag 01", "/json/", 0.0, traceparent_flag="1"),
    Case("async view under ASGI, unsampled", "/async/", 0.0, 45, is_async=True),
    Case("async view under ASGI, all sampled", "/async/", 1.0, 95, is_async=True),
)
#: The difference of two cases, over so many queries, and its target.
PER_QUERY: tuple[tuple[str, str, str, int, float | None], ...] = (
    # Each with its BEGIN, which is a query on SQLite, and its COMMIT.
    ("per transaction, dropped", "11 transactions, unsampled", "1 transaction, unsampled", 10, None),
    ("per transaction, recorded", "11 transactions, all sampled", "1 transaction, all sampled", 10, None),
    ("per cache operation", "11 cache operations, unsampled", "1 cache operation, unsampled", 10, None),
    ("per query, dropped", "10 queries, unsampled", "1 query, unsampled", 9, 18.0),
    ("per query, recorded", "10 queries, all sampled", "1 query, all sampled", 9, 60.0),
    ("time budget, JSON view, unsampled", "JSON view, unsampled", "JSON view, no time budget, unsampled", 1, 6.0),
    (
        "N+1 watch, per query, dropped",
        "12 equal queries, unsampled",
        "12 equal queries, no N+1 watch, unsampled",
        12,
        1.0,
    ),
    (
        "N+1 watch, 12 equal queries, recorded",
        "12 equal queries, all sampled",
        "12 equal queries, no N+1 watch, all sampled",
        1,
        10.0,
    ),
)


# --- The counted process. ---


class NothingExporter:
    """Takes spans at no cost."""

    def export(self, spans: object) -> object:
        from opentelemetry.sdk.trace.export import SpanExportResult

        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return True


def configure(
    *,
    is_instrumented: bool,
    is_async: bool,
    has_console: bool = False,
    watches: bool = True,
    has_budget: bool = True,
    amend: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Django with the middleware of a new project; with the app in front when `is_instrumented`.

    `amend` may change the settings first.
    """
    import django
    from django.conf import settings

    middleware = list(NEW_PROJECT)
    apps = ["contenttypes", "auth", "sessions", "messages"]
    if is_async:
        # Django's own run in a thread under ASGI.
        middleware = []
    given: dict[str, Any] = dict(  # noqa: C408 (settings, as they are written)
        SECRET_KEY="only for measuring",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF="benchmarks.pages",
        MIDDLEWARE=["django_otel.middleware.OTelMiddleware"] * is_instrumented + middleware,
        INSTALLED_APPS=[f"django.contrib.{name}" for name in apps] + ["django_otel"] * is_instrumented,
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "OPTIONS": {"loaders": [("django.template.loaders.locmem.Loader", {"page.html": _template()})]},
            }
        ],
        LOGGING={"version": 1, "loggers": {"django.request": {"level": "CRITICAL"}}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        OTEL={
            "SERVICE_NAME": "measured",
            # Its thread would set the ratio back; it does nothing on the path of a request.
            "SAMPLING": {"LIVE": False},
            "DATABASE": {} if watches else {"N_PLUS_ONE": None},
            "REQUEST": {} if has_budget else {"TIME_BUDGET": False},
            "CONSOLE": {"ENABLED": has_console, "PATH": str(Path(tempfile.gettempdir()) / "django_otel-instructions")},
            "TRACES": {
                "EXPORTERS": ["benchmarks.instructions.NothingExporter"],
                # The exporting thread sleeps while requests are counted.
                "BATCH": {"QUEUE_SIZE": 100_000, "BATCH_SIZE": 100_000, "DELAY_S": 3600},
            },
            **json.loads(os.environ.get(_OTEL) or "{}"),
        },
    )
    if amend is not None:
        amend(given)
    settings.configure(**given)
    django.setup()


def _template() -> str:
    return "<ul>{% for number in numbers %}<li>{{ number }}: {{ title|upper }}</li>{% endfor %}</ul>"


def build_environ(case: Case) -> dict[str, Any]:
    """What a WSGI server gives for a request of a browser behind nothing."""
    environ: dict[str, Any] = {
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": case.path,
        "QUERY_STRING": "page=1",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "shop.example:8000",
        "HTTP_USER_AGENT": "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
        "HTTP_ACCEPT": "text/html,application/json",
        "HTTP_ACCEPT_ENCODING": "gzip, deflate",
    }
    if case.traceparent_flag:
        environ["HTTP_TRACEPARENT"] = _TRACEPARENT + case.traceparent_flag
    return environ


def build_scope(case: Case) -> dict[str, Any]:
    """The same from an ASGI server."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": case.path,
        "raw_path": case.path.encode(),
        "query_string": b"page=1",
        "root_path": "",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 40000),
        "headers": [
            (b"host", b"shop.example:8000"),
            (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
            (b"accept", b"text/html,application/json"),
            (b"accept-encoding", b"gzip, deflate"),
        ],
    }


def build_sync_loop(case: Case) -> Callable[[int], None]:
    from django.core.wsgi import get_wsgi_application

    application = get_wsgi_application()
    template = build_environ(case)

    def start_response(status: str, headers: object, exc_info: object = None) -> Callable[[bytes], object]:
        return print

    def loop(times: int) -> None:
        for _ in range(times):
            response = application({**template, "wsgi.input": io.BytesIO(b"")}, start_response)
            for _chunk in response:
                pass
            response.close()  # type: ignore[attr-defined]

    return loop


class Receiver:
    """What a client sends that has no body and stays connected."""

    def __init__(self) -> None:
        self._is_sent = False

    async def receive(self) -> dict[str, Any]:
        if self._is_sent:
            await asyncio.Event().wait()
        self._is_sent = True
        return {"type": "http.request", "body": b"", "more_body": False}


def settle() -> None:
    """Let what the first requests have begun come to its end, and leave no garbage of it to what is counted."""
    # Threads start with the first request and import what they need; under callgrind that takes its time.
    time.sleep(_SETTLE_S)
    gc.collect()
    # Not walked through again: what start-up has left behind no two programs have alike.
    gc.freeze()


@contextlib.contextmanager
def counted(counter: callgrind.Counter, name: str) -> Iterator[None]:
    """Count what happens inside, and the collection of the garbage it leaves.

    Once and at the end: how many of the collector's own rounds fall into some
    dozens of requests is chance, and one costs as much as all that is to be seen.
    """
    gc.collect()
    gc.disable()
    counter.start()
    yield
    gc.collect(0)
    counter.stop(name)
    gc.enable()


async def loop_async(case: Case, counter: callgrind.Counter, times: int) -> None:
    from django.core.asgi import get_asgi_application

    application = get_asgi_application()
    scope = build_scope(case)

    async def send(message: Mapping[str, Any]) -> None:
        pass

    async def serve(times: int) -> None:
        for _ in range(times):
            await application(dict(scope), Receiver().receive, send)  # type: ignore[arg-type]

    await serve(_WARM_UP)
    settle()
    await serve(20)
    with counted(counter, case.name):
        await serve(times)


def set_policy(case: Case) -> None:
    """The sampling of what follows: ours, live, or that of the other tool's provider."""
    from django_otel import runtime
    from django_otel.sampling.policy import Policy, Rule

    rules = [Rule(1.0, path=f"/section-{number}/*") for number in range(case.path_rules)]
    if case.has_route_rule:
        rules.append(Rule(1.0, route="/elsewhere/<int:pk>/"))
    policy = Policy(case.ratio, "admin", 1, rules=tuple(rules), keep_errors=case.keeps_errors)
    runtime.current().sampler.swap(policy)
    provider = runtime.current().tracer_provider
    if runtime.current().is_foreign:
        provider.sampler.ratio = case.ratio  # type: ignore[union-attr]


def install_provider(provider: TracerProvider) -> None:
    """Make a provider of the SDK the global one; its spans are batched and exported to nothing, after an hour."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    processor = BatchSpanProcessor(
        NothingExporter(),  # type: ignore[arg-type]
        max_queue_size=100_000,
        max_export_batch_size=100_000,
        schedule_delay_millis=3_600_000,
    )
    provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)


def install_other_tool() -> None:
    """A tracer provider such as another tool installs, with the SDK's batch processor and sampler."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased

    class Switched(Sampler):
        """A ratio as the SDK samples it, which can be changed."""

        ratio = 1.0

        def should_sample(self, *arguments: Any, **keywords: Any) -> Any:
            root = {0.0: ALWAYS_OFF, 1.0: ALWAYS_ON}.get(self.ratio) or TraceIdRatioBased(self.ratio)
            return ParentBased(root).should_sample(*arguments, **keywords)

        def get_description(self) -> str:
            return "Switched"

    install_provider(TracerProvider(sampler=Switched(), shutdown_on_exit=False))


def stop_the_stores_threads() -> None:
    """They sleep while requests are counted, as the exporting thread does."""
    from django_otel.tracestore import processor

    processor.QUEUE_SIZE = processor.BATCH_SIZE = 100_000
    processor.DELAY_S = processor.SAMPLE_INTERVAL_S = 3600.0


def count_here(kind: str, names: list[str], requests: int) -> None:
    """Run the cases `names` in this process, which runs under callgrind. `kind`: "bare", "app", "console", "plain"."""
    cases = [case for case in CASES if case.name in names]
    in_the_way = [str(number) for number in range(_LAYOUT_STEP * int(os.environ.get(_LAYOUT, "0")))]
    is_instrumented = kind != "bare"
    if kind == "plain":
        install_other_tool()
    if kind == "console":
        stop_the_stores_threads()
    configure(
        is_instrumented=is_instrumented,
        is_async=cases[0].is_async,
        has_console=kind == "console",
        watches=cases[0].watches,
        has_budget=cases[0].has_budget,
    )
    if is_instrumented:
        from benchmarks.peers.own import stop_clocks
        from django_otel import runtime

        # A second of theirs, while requests run fifty times slower than they do, would be a third of what is counted.
        stop_clocks()
        runtime.current().traces.ids.bits = random.Random(1).getrandbits  # type: ignore[attr-defined]
    counter = callgrind.Counter()
    for case in cases:
        if is_instrumented:
            set_policy(case)
        times = int(requests * case.times) if is_instrumented else requests
        if case.is_async:
            asyncio.run(loop_async(case, counter, times))
        else:
            loop = build_sync_loop(case)
            loop(_WARM_UP)
            settle()
            loop(20)
            with counted(counter, case.name):
                loop(times)
        if is_instrumented:
            runtime.flush()
    in_the_way.clear()


# --- The counting process. ---


class Counted(NamedTuple):
    """Thousand instructions, without the searches that the method cache should have spared, and with them."""

    ki: float
    with_misses_ki: float


def count(kind: str, cases: list[Case], requests: int, layouts: int = 1) -> dict[str, Counted]:
    """Instructions per request of each case, the mean over so many layouts of the memory."""
    found = [_count_once(kind, cases, requests, layout) for layout in range(layouts)]
    return {
        name: Counted(*map(statistics.mean, zip(*(each[name] for each in found), strict=True))) for name in found[0]
    }


def _count_once(kind: str, cases: list[Case], requests: int, layout: int) -> dict[str, Counted]:
    found: dict[str, Counted] = {}
    environ = {"PYTHONPATH": str(Path(__file__).resolve().parent.parent), _LAYOUT: str(layout)}
    environ[_OTEL] = os.environ.get(_OTEL, "")
    # Threads that an earlier loop has left behind change what an asynchronous case costs: a process for each.
    groups = [[case] for case in cases if case.is_async]
    together: dict[tuple[bool, bool], list[Case]] = {}
    for case in cases:
        if not case.is_async:
            # What the settings say is the same for all cases of a process.
            together.setdefault((case.watches, case.has_budget), []).append(case)
    groups += together.values()
    for chosen in groups:
        if kind == "bare":
            # The ratio makes no difference there.
            chosen = list({(case.path, case.traceparent_flag): case for case in chosen}.values())
        arguments = [__file__, "--count", kind, "--requests", str(requests)]
        for case in chosen:
            arguments += ["--case", case.name]
        counts = callgrind.run_with_searches(arguments, environ)
        for case in chosen:
            total, searches = counts[case.name]
            per_ki = requests * (case.times if kind != "bare" else 1) * 1000
            found[case.name] = Counted((total - searches) / per_ki, total / per_ki)
    return found


def added(kind: str, cases: list[Case], requests: int, layouts: int = 1) -> dict[str, Counted]:
    """Instructions that `kind` adds per request, by the case's name, and per query."""
    bare = count("bare", cases, requests, layouts)
    by_view = {(case.path, case.traceparent_flag): bare[case.name] for case in cases if case.name in bare}
    with_app = count(kind, cases, requests, layouts)
    found = {case.name: _subtract(with_app[case.name], by_view[case.path, case.traceparent_flag]) for case in cases}
    for name, more, less, queries, _ in PER_QUERY:
        if more in found and less in found:
            found[name] = _subtract(found[more], found[less], queries)
    return found


def _subtract(one: Counted, other: Counted, parts: int = 1) -> Counted:
    return Counted(*((more - less) / parts for more, less in zip(one, other, strict=True)))


def targets(kind: str) -> dict[str, float]:
    """What each case may cost, by its name."""
    wanted = {case.name: case.plain_target_ki if kind == "plain" else case.target_ki for case in CASES}
    if kind != "plain":
        wanted.update((name, target) for name, _, _, _, target in PER_QUERY)
    return {name: target for name, target in wanted.items() if target is not None}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail when a target is exceeded by more than 15 %%")
    parser.add_argument("--plain", action="store_true", help="count the plain API path, under a foreign provider")
    parser.add_argument("--console", action="store_true", help="keep recent traces for the admin, too")
    parser.add_argument("--otel", help="further settings of OTEL as JSON, in place of the same keys")
    parser.add_argument("--case", action="append", help="only cases whose name contains this; may be repeated")
    parser.add_argument("--requests", type=int, default=100, help="requests counted per case (default 100)")
    parser.add_argument("--layouts", type=int, default=3, help="layouts of the memory per case (default 3)")
    parser.add_argument("--count", choices=("bare", "app", "console", "plain"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.count:
        count_here(options.count, options.case, options.requests)
        return 0
    if options.otel:
        os.environ[_OTEL] = options.otel
    reason = callgrind.why_not()
    if reason:
        print(f"No instructions were counted: {reason}")
        return 0 if options.check else 1
    kind = "plain" if options.plain else "console" if options.console else "app"
    wanted = targets(kind)
    needed = set(wanted) | {name for _, more, less, _, target in PER_QUERY if target for name in (more, less)}
    cases = [
        case
        for case in CASES
        if (not options.check or case.name in needed)
        and (not options.case or any(part in case.name for part in options.case))
    ]
    found = added(kind, cases, options.requests, options.layouts)
    failed = False
    print(f"{'thousand instructions added':<40}{'kI':>8}{'with misses':>13}{'target':>8}")
    for name, value in found.items():
        target = wanted.get(name)
        exceeded = target is not None and (
            value.ki > target * (1 + TOLERANCE) or value.with_misses_ki > target * (1 + 2 * TOLERANCE)
        )
        failed = failed or exceeded
        shown = target if target is not None else ""
        end = "  EXCEEDED" if exceeded else ""
        print(f"{name:<40}{value.ki:>8.1f}{value.with_misses_ki:>13.1f}{shown:>8}{end}")
    return 1 if options.check and failed else 0


if __name__ == "__main__":
    sys.exit(main())
