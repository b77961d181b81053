"""What the OpenTelemetry packages keep private: each name does what we use it for, and only one file uses it."""

from __future__ import annotations

import ast
import functools
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from opentelemetry import _logs, metrics, trace
from opentelemetry import context as otel_context
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
from opentelemetry.instrumentation.utils import is_instrumentation_enabled, suppress_instrumentation
from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.util._once import Once

import django_otel
from django_otel.base import sdk_compat
from tests import sizes

PACKAGE = Path(django_otel.__file__).parent


# --- Suppression. ---


def test_the_suppression_key_is_the_one_that_instrumentors_ask_for():
    """A context with our key set is one in which no official instrumentor makes a span."""
    assert is_instrumentation_enabled()
    token = otel_context.attach(otel_context.set_value(sdk_compat.SUPPRESS_INSTRUMENTATION_KEY, True))
    try:
        assert not is_instrumentation_enabled()
    finally:
        otel_context.detach(token)


def test_the_instrumentors_own_suppression_sets_our_key():
    """What other packages suppress is suppressed for our spans as well."""
    with suppress_instrumentation():
        assert otel_context.get_value(sdk_compat.SUPPRESS_INSTRUMENTATION_KEY)
    assert not otel_context.get_value(sdk_compat.SUPPRESS_INSTRUMENTATION_KEY)


# --- The global providers. ---


@pytest.mark.parametrize(
    "provider",
    [
        trace.ProxyTracerProvider(),
        trace.NoOpTracerProvider(),
        metrics.NoOpMeterProvider(),
        _logs.NoOpLoggerProvider(),
    ],
    ids=lambda provider: type(provider).__name__,
)
def test_the_apis_own_providers_are_placeholders(provider):
    """A provider that records nothing does not count as installed."""
    assert sdk_compat.is_placeholder(provider)


def test_what_the_api_gives_before_anybody_installed_anything_is_a_placeholder(monkeypatch):
    """The proxies of all three signals are recognised, whatever they are called."""
    _forget_global_providers(monkeypatch)
    for get in (trace.get_tracer_provider, metrics.get_meter_provider, _logs.get_logger_provider):
        assert sdk_compat.is_placeholder(get())


@pytest.mark.parametrize("make", [TracerProvider, MeterProvider, LoggerProvider])
def test_a_provider_of_the_sdk_is_no_placeholder(make):
    """Neither is one of a vendor, who derives from it."""
    assert not sdk_compat.is_placeholder(make())
    assert not sdk_compat.is_placeholder(type("Vendor", (make,), {})())


SIGNALS = {
    "traces": (TracerProvider, trace.set_tracer_provider, sdk_compat.global_tracer_provider),
    "metrics": (MeterProvider, metrics.set_meter_provider, sdk_compat.global_meter_provider),
    "logs": (LoggerProvider, _logs.set_logger_provider, sdk_compat.global_logger_provider),
}


def _forget_global_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry._logs import _internal as logs_internal
    from opentelemetry.metrics import _internal as metrics_internal

    for module, name in (
        (trace, "_TRACER_PROVIDER"),
        (metrics_internal, "_METER_PROVIDER"),
        (logs_internal, "_LOGGER_PROVIDER"),
    ):
        # raising: a version that has renamed it must fail here.
        monkeypatch.setattr(module, name, None)
        monkeypatch.setattr(module, f"{name}_SET_ONCE", Once())


@pytest.mark.parametrize("kind", SIGNALS)
def test_looking_for_a_global_provider_installs_none(monkeypatch, kind):
    """Without a provider there is none, also after having looked."""
    _forget_global_providers(monkeypatch)
    monkeypatch.setenv("OTEL_PYTHON_TRACER_PROVIDER", "sdk_tracer_provider")
    find = SIGNALS[kind][2]
    assert find() is None
    assert find() is None
    make, install, _ = SIGNALS[kind]
    ours = make()
    install(ours)
    assert find() is ours


@pytest.mark.parametrize("kind", SIGNALS)
def test_a_provider_that_somebody_installed_is_found(monkeypatch, kind):
    """Through the API's own setter, as another tool does it."""
    _forget_global_providers(monkeypatch)
    make, install, find = SIGNALS[kind]
    theirs = make()
    install(theirs)
    assert find() is theirs


def test_an_installed_no_op_counts_as_none(monkeypatch):
    """A no-op provider, which switches tracing off globally, is not shared."""
    _forget_global_providers(monkeypatch)
    trace.set_tracer_provider(trace.NoOpTracerProvider())
    assert sdk_compat.global_tracer_provider() is None


# --- Another resource for a living provider. ---

BEFORE, AFTER = Resource({"service.instance.id": "parent"}), Resource({"service.instance.id": "child"})


class _Spans(SpanProcessor):
    def __init__(self):
        self.ids = []

    def on_end(self, span):
        self.ids.append(span.resource.attributes["service.instance.id"])


class _Records(LogRecordProcessor):
    def __init__(self):
        self.ids = []

    def on_emit(self, log_record):
        self.ids.append(log_record.resource.attributes["service.instance.id"])

    def shutdown(self):
        pass

    def force_flush(self, timeout_millis=30000):
        return True


def test_spans_of_tracers_old_and_new_carry_the_new_resource():
    """An instrumentor keeps its tracer for the life of the process, over forks."""
    provider = TracerProvider(resource=BEFORE, shutdown_on_exit=False)
    spans = _Spans()
    provider.add_span_processor(spans)
    kept = [provider.get_tracer("kept"), provider.get_tracer("kept", "1.0", attributes={"with": "attributes"})]
    for tracer in kept:
        tracer.start_span("before").end()
    sdk_compat.set_resource(provider, AFTER)
    for tracer in (*kept, provider.get_tracer("new")):
        tracer.start_span("after").end()
    assert spans.ids == ["parent", "parent", "child", "child", "child"]
    assert provider.resource == AFTER


def test_log_records_of_loggers_old_and_new_carry_the_new_resource():
    """Also of loggers with attributes of their own, which the SDK does not cache."""
    provider = LoggerProvider(resource=BEFORE, shutdown_on_exit=False)
    records = _Records()
    provider.add_log_record_processor(records)
    kept = [provider.get_logger("kept"), provider.get_logger("kept", attributes={"with": "attributes"})]
    for logger in kept:
        logger.emit(_logs.LogRecord(body="before"))
    sdk_compat.set_resource(provider, AFTER)
    for logger in (*kept, provider.get_logger("new")):
        logger.emit(_logs.LogRecord(body="after"))
    assert records.ids == ["parent", "parent", "child", "child", "child"]
    assert provider.resource == AFTER


def test_metrics_are_collected_with_the_new_resource():
    """The meter provider gives the resource at each collection."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], resource=BEFORE, shutdown_on_exit=False)
    provider.get_meter("kept").create_counter("clicks").add(1)
    sdk_compat.set_resource(provider, AFTER)
    data = reader.get_metrics_data()
    assert [part.resource for part in data.resource_metrics] == [AFTER]


# --- After a fork. ---


def _value(reader: InMemoryMetricReader, name: str) -> object:
    data = reader.get_metrics_data()
    points = [
        point.value
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    ]
    return points[0] if points else None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_counts_for_itself_from_its_first_measurement():
    """What a forked child measures before anybody reads it is not lost, what the parent had measured not repeated."""
    from django_otel.metrics.sdk_metrics import SdkMetrics, build_reader

    reader = build_reader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    numbers = SdkMetrics(reader, provider)
    meter = provider.get_meter("kept")
    counter = meter.create_counter("clicks")
    counter.add(100)
    read_end, write_end = os.pipe()
    # As when another thread is being scraped at this moment.
    collecting = provider._measurement_consumer._lock
    collecting.acquire()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        status = 1
        try:
            numbers.after_fork()
            counter.add(3)
            [family] = numbers.collect()
            os.write(write_end, str(family.points[0].value).encode())
            status = 0
        finally:
            os._exit(status)
    collecting.release()
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        told = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert float(told) == 3
    assert [family.points[0].value for family in numbers.collect()] == [100]


def test_a_gauge_that_is_set_keeps_its_series_and_one_that_is_observed_does_not():
    """A series is gone when its callback no longer returns it, not when it was not set for a while."""
    from django_otel.metrics.sdk_metrics import SdkMetrics, build_reader

    observed = [metrics.Observation(1, {"queue": "a"}), metrics.Observation(2, {"queue": "b"})]
    reader = build_reader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    numbers = SdkMetrics(reader, provider)
    meter = provider.get_meter("m")
    meter.create_observable_gauge("observed", [lambda options: observed])
    gauge = meter.create_gauge("set")
    gauge.set(1, {"queue": "a"})
    gauge.set(2, {"queue": "b"})
    assert sdk_compat.is_observed(provider, "m", "observed")
    assert not sdk_compat.is_observed(provider, "m", "set")
    assert not sdk_compat.is_observed(provider, "other", "observed")
    numbers.collect()
    del observed[1]
    gauge.set(3, {"queue": "a"})
    families = {family.name: {p.attributes: p.value for p in family.points} for family in numbers.collect()}
    a, b = (("queue", "a"),), (("queue", "b"),)
    assert families == {"observed": {a: 1}, "set": {a: 3, b: 2}}


def test_the_collection_lock_is_made_anew():
    """A lock of before gevent's monkey-patch is replaced, and collecting goes on."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    provider.get_meter("kept").create_counter("clicks").add(4)
    held = provider._measurement_consumer._lock
    held.acquire()
    sdk_compat.renew_collection_lock(provider)
    # With the old lock, which is held, this would wait for ever.
    assert _value(reader, "clicks") == 4
    held.release()


# --- Instrumentors. ---


class _Picky(BaseInstrumentor):
    patched = False

    def instrumentation_dependencies(self):
        return ("no-such-library >= 1.0",)

    def _instrument(self, **kwargs):
        type(self).patched = True
        raise RuntimeError("half way")

    def _uninstrument(self, **kwargs):
        type(self).patched = False


def test_an_instrumentors_conflict_is_found_and_its_fields_are_public():
    """The wording is ours, made from the fields that every version has."""
    conflict = sdk_compat.find_dependency_conflict(_Picky())
    assert (conflict.required, conflict.found) == ("no-such-library >= 1.0", None)


def test_an_instrumentor_without_a_conflict_has_none():
    """Its library is installed in the right version."""
    from opentelemetry.instrumentation.requests import RequestsInstrumentor

    assert sdk_compat.find_dependency_conflict(RequestsInstrumentor()) is None


def test_a_half_installed_instrumentor_is_taken_out():
    """`uninstrument()` refuses it, as it does not count as installed."""
    instrumentor = _Picky()
    with pytest.raises(RuntimeError, match="half way"):
        instrumentor.instrument(skip_dep_check=True)
    assert _Picky.patched
    sdk_compat.unpatch(instrumentor)
    assert not _Picky.patched


def test_the_official_middleware_is_where_we_look_for_it(settings):
    """The path that the official instrumentor writes into the settings."""
    from django.utils.module_loading import import_string

    assert import_string(sdk_compat.DJANGO_MIDDLEWARE).__module__.startswith("opentelemetry.instrumentation.django")


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_the_exporters_of_logs_are_where_we_look_for_them(transport):
    """One module name for both transports."""
    import importlib

    module = f"opentelemetry.exporter.otlp.proto.{transport}.{sdk_compat.LOG_EXPORTER_MODULE}"
    assert importlib.import_module(module).OTLPLogExporter


# --- No other file uses a private name. ---

#: The logs API and SDK have no public place yet; the names below these modules are documented all the same.
LOGS_MODULES = ("opentelemetry._logs", "opentelemetry.sdk._logs", "opentelemetry.sdk._logs.export")

#: Private attributes of others than OpenTelemetry, which no other file may use without being named here.
OTHERS_PRIVATE_NAMES = {
    "_meta": "Django, documented",
    "_state": "Django, documented",
    "_base_manager": "Django, documented",
    "_default_manager": "Django, documented",
    "_func_path": "django.urls.ResolverMatch",
    "_route": "django.urls.resolvers.RoutePattern, which path() has and re_path() has not",
    "_hints": "django.db.models.QuerySet",
    "_iterable_class": "django.db.models.QuerySet",
    "_fields": "django.db.models.QuerySet",
    "_prefetch_related_lookups": "django.db.models.QuerySet",
    "_prefetched_objects_cache": "django.db.models.Model; what prefetch_related fills",
    "_callbacks": "asyncio.Future; who waits for it, before Python 3.14 without a public name",
    "_done_callbacks": "concurrent.futures.Future; the same",
    "_parent_task": "asyncio.TaskGroup",
    "_resource_closers": "django.http.HttpResponseBase",
    "_container": "django.http.HttpResponse; what its public content would join",
    "_schema_cls": "ninja.schema.DjangoGetter; the schema that reads an object",
    "_field_type": "dataclasses.Field; by which fields() tells those of instances from others",
    "_FIELD": "dataclasses; what `_field_type` is of a field of instances",
    "_is_gil_enabled": "sys, documented",
    "_initializing": "importlib.machinery.ModuleSpec; what importlib itself asks for a module under way",
    "_cache_update_cache": "django.middleware.cache; what cache_page itself looks at",
    "_get_active_apps": "celery._state; the apps of the process",
    "_create_task_sender": "celery.app.amqp.AMQP; what makes its send_task_message",
    "_stopped_job_id": "rq.worker.BaseWorker; the job that was stopped on request",
    "_from_namespace": "jinja2.Template; what every template, included ones too, is made by",
    "_replace": "collections.namedtuple, documented",
    "_post": "django.http.HttpRequest",
    "_files": "django.http.HttpRequest",
    "_non_atomic_requests": "what django.db.transaction.non_atomic_requests sets",
    "_has_been_logged": "django.http.HttpResponse; what django.utils.log itself looks at",
    "_mutable": "django.http.QueryDict",
    "_actions": "argparse.ArgumentParser; what its subclasses look at",
    "_SubParsersAction": "argparse",
    "_from_testcase": "django.db.transaction.Atomic",
    "_names_to_collectors": "prometheus_client.CollectorRegistry",
    "_collector_to_names": "prometheus_client.CollectorRegistry",
    "_exit": "os",
    "_value_": "enum, documented; half the time of .value",
    "_getframe": "sys",
    "_current_frames": "sys",
    "_request": "rest_framework.request.Request, documented",
    "_django_otel_sample_ratio": "our mark on a view",
    "_answers_lifespan": "our mark on an ASGI application",
    "_notes_route": "our mark on the router of Channels",
}


def _is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def _own_names(tree: ast.AST) -> set[str]:
    """Private names that a module itself makes: attributes of its objects, functions, variables, slots."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                names.add(node.attr)
    return names | _slots(tree)


def _slots(tree: ast.AST) -> set[str]:
    """Names of the slots that a module's classes have."""
    return {
        part.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") == "__slots__" for target in node.targets)
        for part in ast.walk(node.value)
        if isinstance(part, ast.Constant)
    }


def _own_modules(tree: ast.AST) -> set[str]:
    """Names by which a module knows other modules of this package."""
    return {
        alias.asname or alias.name.rpartition(".")[2]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("django_otel")
        for alias in node.names
    }


_parse = functools.cache(ast.parse)


@functools.cache
def _slots_of_folder(folder: Path) -> frozenset[str]:
    """Slots of all classes of a sub-package."""
    return frozenset().union(*(_slots(_parse(path.read_text())) for path in folder.glob("*.py")))


def find_private_names(source: str, slots: Iterable[str] = ()) -> Iterator[tuple[int, str]]:
    """Line and text of each private name of another package that a module's source uses.

    The `slots` of the classes of the same sub-package are its own.
    """
    tree = _parse(source)
    own, modules = _own_names(tree).union(slots), _own_modules(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "opentelemetry":
            for alias in node.names:
                path = f"{node.module}.{alias.name}"
                inside = next((path[len(m) :] for m in reversed(LOGS_MODULES) if f"{path}.".startswith(f"{m}.")), path)
                if any(_is_private(part) for part in inside.split(".")):
                    yield node.lineno, path
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "opentelemetry" and alias.name not in LOGS_MODULES and any(map(_is_private, parts)):
                    yield node.lineno, alias.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("opentelemetry."):
            if any(_is_private(part) for part in node.value.split(".")):
                yield node.lineno, node.value
        elif isinstance(node, ast.Attribute) and _is_private(node.attr):
            base = node.value.id if isinstance(node.value, ast.Name) else ""
            if base in ("self", "cls") or base in modules or node.attr in own or node.attr in OTHERS_PRIVATE_NAMES:
                continue
            yield node.lineno, ast.unparse(node)
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("getattr", "hasattr", "setattr", "delattr")
            and len(node.args) > 1
            and isinstance(node.args[1], ast.Constant)
            and _is_private(str(node.args[1].value))
        ):
            name = str(node.args[1].value)
            if name not in own and name not in OTHERS_PRIVATE_NAMES:
                yield node.lineno, ast.unparse(node)


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name not in ("sdk_compat.py", "sdk_environment.py"))


@pytest.mark.heavy
@sizes.each("path", MODULES)
def test_no_module_but_one_uses_private_names(path):
    """A new version of OpenTelemetry may break base/sdk_compat.py and base/sdk_environment.py, and nothing else."""
    found = find_private_names(path.read_text(), _slots_of_folder(path.parent))
    assert [f"line {line}: {name}" for line, name in found] == []


@sizes.each(
    "source",
    [
        "from opentelemetry.sdk.trace import _Span",
        "from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY",
        "from opentelemetry.metrics import _internal",
        "from opentelemetry.metrics._internal import Meter",
        "from opentelemetry.sdk._logs._internal import Logger",
        "from opentelemetry.sdk._logs import _internal",
        "from opentelemetry.sdk._shared_internal import BatchProcessor",
        "import opentelemetry.sdk._shared_internal",
        "path = 'opentelemetry.sdk._shared_internal.BatchProcessor'",
        "def f(span): return span._end_time",
        "def f(provider): provider._resource = 1",
        "def f(span): return getattr(span, '_end_time', None)",
    ],
)
def test_the_search_finds_private_names(source):
    """The search itself, on what it must find."""
    assert list(find_private_names(source))


@pytest.mark.parametrize(
    "source",
    [
        "from opentelemetry._logs import LogRecord",
        "from opentelemetry import _logs",
        "from opentelemetry.sdk._logs import export as logs_export",
        "from opentelemetry.sdk._logs.export import LogRecordExporter",
        "class A:\n    def __init__(self): self._b = 1\n    def f(self, other): return other._b",
        "from django_otel import runtime\nruntime._start()",
        "def f(model): return model._meta.label",
    ],
)
def test_the_search_lets_pass_what_is_allowed(source):
    """The search itself, on what it must not complain about."""
    assert not list(find_private_names(source))


def test_limits_of_logs_are_built_with_the_class_of_an_older_release(monkeypatch):
    """It takes two numbers and has no name for "not given"."""
    from opentelemetry.sdk import _logs

    class Limits:
        def __init__(self, max_attributes, max_attribute_length):
            self.max_attributes, self.max_attribute_length = int(max_attributes), int(max_attribute_length)

    monkeypatch.setattr(_logs, "LogRecordLimits", Limits, raising=False)
    limits = sdk_compat.build_log_limits()
    assert (limits.max_attributes, limits.max_attribute_length) == (128, None)
