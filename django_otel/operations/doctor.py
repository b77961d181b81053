"""Tests every part of the configuration and explains failures.

Nothing here guesses from settings whether an exporter would work: one real span,
metric and log record go through the real exporters to the configured places,
and where one does not arrive a bare request to the same place finds out why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, cast

from django.conf import settings
from django.db import connections
from django.urls import NoReverseMatch, reverse
from django.utils.translation import gettext, gettext_lazy, pgettext_lazy
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from django_otel import runtime
from django_otel.base import sdk_compat
from django_otel.base.suppression import suppress_instrumentation
from django_otel.config.packages import import_path, package_version
from django_otel.config.schema import Config, ConfigError
from django_otel.export.exporters import OTLP_KINDS, build_otlp_exporter, grpc_target
from django_otel.export.limits import build_span_limits
from django_otel.export.resource import build_resource
from django_otel.instrumentation import instrumentors
from django_otel.operations import checks, surroundings
from django_otel.operations.reasons import http_url, name_error, probe_grpc, probe_http, show_url
from django_otel.operations.translated import translate
from django_otel.redaction.scrub import Scrubber

Outcome = Literal["ok", "note", "warning", "failed"]
SIGNALS = ("traces", "metrics", "logs")
SCOPE = "django_otel.doctor"
_ARRIVED = {
    "traces": gettext_lazy("one span arrived at %(place)s in %(duration)s ms."),
    "metrics": gettext_lazy("one metric arrived at %(place)s in %(duration)s ms."),
    "logs": gettext_lazy("one log record arrived at %(place)s in %(duration)s ms."),
}

#: Subjects as a person reads them; a name may follow.
_SUBJECTS = {
    "telemetry": pgettext_lazy("a subject of the doctor", "telemetry"),
    "configuration": pgettext_lazy("a subject of the doctor", "configuration"),
    "middleware": pgettext_lazy("a subject of the doctor", "middleware"),
    "provider": pgettext_lazy("a subject of the doctor", "provider"),
    "instrumentor": pgettext_lazy("a subject of the doctor", "instrumentor"),
    "versions": pgettext_lazy("a subject of the doctor", "versions"),
    "database": pgettext_lazy("a subject of the doctor", "database"),
    "cache": pgettext_lazy("a subject of the doctor", "cache"),
    "shared folder": pgettext_lazy("a subject of the doctor", "shared folder"),
    "console": pgettext_lazy("a subject of the doctor", "console"),
    "store": pgettext_lazy("a subject of the doctor", "store"),
    "memory": pgettext_lazy("a subject of the doctor", "memory"),
    "traces": pgettext_lazy("a subject of the doctor", "traces"),
    "metrics": pgettext_lazy("a subject of the doctor", "metrics"),
    "logs": pgettext_lazy("a subject of the doctor", "logs"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report. `text` never holds a secret; `advice` is empty when there is nothing to do."""

    #: For programs: always in English.
    subject: str
    outcome: Outcome
    text: str
    advice: str = ""

    @property
    def title(self) -> str:
        """The subject in the reader's language."""
        for name, shown in _SUBJECTS.items():
            if self.subject == name or self.subject.startswith(f"{name} "):
                return f"{shown}{self.subject[len(name) :]}"
        return self.subject


# --- Exporters. ---


def try_exporters(config: Config, timeout_s: float) -> list[Finding]:
    """Send through every configured exporter of the three signals at once; one finding each, in a fixed order.

    Units: `timeout_s` is seconds, for one exporter, retries included.
    """
    shortened = _shorten(config, timeout_s)
    tasks = [(name, signal) for signal in SIGNALS for name in getattr(config, signal).exporters]
    findings = [
        Finding(signal, "note", _why_none(config, signal))
        for signal in SIGNALS
        if not getattr(config, signal).exporters
    ]
    if tasks:
        with _hearing_exporters() as heard, ThreadPoolExecutor(len(tasks)) as pool:
            findings += pool.map(lambda task: _try_exporter(task[0], task[1], shortened, timeout_s, heard), tasks)
    return sorted(findings, key=lambda finding: SIGNALS.index(finding.subject.split(" ")[0]))


def _why_none(config: Config, signal: str) -> str:
    if signal != "traces" or not config.sources.get("TRACES.EXPORTERS", "").endswith("(auto)"):
        return gettext("no exporter is configured.")
    return gettext(
        'no exporter is configured: "auto" exports when an endpoint is set (OTEL["TRACES"]["ENDPOINT"] or '
        "OTEL_EXPORTER_OTLP_ENDPOINT)."
    )


def _shorten(config: Config, timeout_s: float) -> Config:
    parts = {}
    for signal in SIGNALS:
        part: Any = getattr(config, signal)
        parts[signal] = dataclasses.replace(part, timeout_s=min(part.timeout_s, timeout_s))
    return dataclasses.replace(config, **parts)


def _try_exporter(name: str, signal: str, config: Config, timeout_s: float, heard: _Heard) -> Finding:
    subject = f"{signal} {name}"
    if name == "prometheus":
        message = gettext("metrics are served at %(address)s; nothing is pushed.")
        return Finding(subject, "ok", message % {"address": _metrics_address()})
    if name == "prometheus-registry":
        message = gettext("metrics are a collector in prometheus_client's registry; nothing is pushed.")
        return Finding(subject, "ok", message)
    if name == "memory":
        return Finding(subject, "warning", gettext("kept in memory only; intended for tests."))
    if name == "console":
        return Finding(subject, "ok", gettext("printed on the console, nothing is sent."))
    try:
        if name not in OTLP_KINDS:
            return _try_own(subject, name, config)
        exporter = build_otlp_exporter(name, signal, config)
    except ConfigError as error:
        return Finding(subject, "failed", error.problems[0].message, error.problems[0].hint)
    except Exception as error:
        return Finding(subject, "failed", _not_built(error))
    return _try_otlp(subject, name, signal, config, exporter, timeout_s, heard)


def _not_built(error: Exception) -> str:
    return gettext("the exporter cannot be built: %(error)s.") % {"error": name_error(error)}


def _try_own(subject: str, path: str, config: Config) -> Finding:
    made = import_path(path)()
    try:
        if isinstance(made, SpanProcessor):
            text = gettext("returns a %(type)s; a span processor cannot be tested from here.")
            return Finding(subject, "ok", text % {"type": type(made).__name__})
        if not callable(getattr(made, "export", None)):
            text = gettext("returns a %(type)s; expected a SpanExporter or a SpanProcessor.")
            return Finding(subject, "failed", text % {"type": type(made).__name__})
        with suppress_instrumentation():
            result = made.export(build_test_spans(config))
        if getattr(result, "name", "") == "SUCCESS":
            return Finding(subject, "ok", gettext("accepted one span."))
        return Finding(subject, "failed", gettext("did not accept one span; its log says why."))
    except Exception as error:
        text = gettext("raised %(error)s when exporting one span.")
        return Finding(subject, "failed", text % {"error": name_error(error)})
    finally:
        with contextlib.suppress(Exception):
            made.shutdown()


def _try_otlp(
    subject: str, name: str, signal: str, config: Config, exporter: Any, timeout_s: float, heard: _Heard
) -> Finding:
    settings = getattr(config, signal)
    place = describe_endpoint(name, signal, config)
    begun_s = time.monotonic()
    said: list[str] = []
    try:
        with suppress_instrumentation(), heard.by_this_thread() as said:
            arrived = exporter.export(build_test_batch(signal, config)).name == "SUCCESS"
    except Exception as error:
        arrived = False
        said.append(name_error(error))
    finally:
        with contextlib.suppress(Exception):
            exporter.shutdown()
    took_ms = (time.monotonic() - begun_s) * 1000
    with suppress_instrumentation():
        if name != "otlp-grpc":
            reason = probe_http(settings, signal, timeout_s, arrived, is_json=name == "otlp-json")
        else:
            reason = None if arrived else probe_grpc(settings, signal, timeout_s)
    if arrived and reason is None:
        return Finding(subject, "ok", _ARRIVED[signal] % {"place": place, "duration": f"{took_ms:.0f}"})
    if reason is not None:
        return Finding(subject, "failed", f"{place}: {reason.text}", reason.advice)
    last = Scrubber().text(said[-1]) if said else gettext("no reason given")
    text = gettext("%(place)s accepts an empty request, but not ours: %(reason)s")
    return Finding(subject, "failed", text % {"place": place, "reason": last})


def describe_endpoint(name: str, signal: str, config: Config) -> str:
    """Return where an exporter sends, as it may be shown: without user, password and query."""
    settings = getattr(config, signal)
    if name == "otlp-grpc":
        return show_url(grpc_target(settings))
    return show_url(http_url(settings, signal))


# --- What to send. ---


class _Catch(SpanProcessor):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


def build_test_spans(config: Config, name: str = "django_otel doctor") -> list[ReadableSpan]:
    """A finished trace of a parent with an event and its child, sampled whatever the settings say."""
    catch = _Catch()
    resource = build_resource(config, Scrubber(config.scrub.extra, personal=config.scrub.personal).attributes)
    provider = TracerProvider(
        sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False, span_limits=build_span_limits()
    )
    provider.add_span_processor(catch)
    tracer = provider.get_tracer(SCOPE, package_version("django-otel-kit"))
    # An empty context: the test is a trace of its own, whatever is current.
    with tracer.start_as_current_span(name, context=trace.set_span_in_context(trace.INVALID_SPAN)) as parent:
        parent.add_event("test", {"django_otel.test": True})
        with tracer.start_as_current_span("child of the test"):
            pass
    return catch.spans


def build_test_batch(signal: str, config: Config) -> object:
    """Return a test item as the SDK would pass it to an exporter of `signal`: one span, metric or log record."""
    if signal == "traces":
        return build_test_spans(config)[-1:]
    resource = build_resource(config, Scrubber(config.scrub.extra, personal=config.scrub.personal).attributes)
    return _build_test_metric(resource) if signal == "metrics" else _build_test_log(resource)


def _build_test_metric(resource: Resource) -> object:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    counter = provider.get_meter(SCOPE).create_counter("django_otel.doctor.tests", "{test}", "Runs of the doctor.")
    counter.add(1)
    data = reader.get_metrics_data()
    provider.shutdown()
    return data


def _build_test_log(resource: Resource) -> object:
    from opentelemetry._logs import LogRecord, SeverityNumber
    from opentelemetry.sdk._logs import LogRecordProcessor, ReadableLogRecord, ReadWriteLogRecord

    records: list[ReadableLogRecord] = []

    class Catch(LogRecordProcessor):
        def on_emit(self, log_record: ReadWriteLogRecord) -> None:
            records.append(
                ReadableLogRecord(log_record.log_record, resource, log_record.instrumentation_scope, log_record.limits)
            )

        def shutdown(self) -> None: ...

        def force_flush(self, timeout_millis: int = 30000) -> bool:
            return True

    provider = sdk_compat.build_logger_provider(resource, sdk_compat.build_log_limits())
    provider.add_log_record_processor(Catch())
    now_ns = time.time_ns()
    provider.get_logger(SCOPE).emit(
        LogRecord(
            timestamp=now_ns,
            observed_timestamp=now_ns,
            severity_number=SeverityNumber.INFO,
            severity_text="INFO",
            body="A test record of manage.py otel doctor.",
            attributes={"django_otel.test": True},
        )
    )
    return records


# --- What exporters say: only in log lines. ---


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: dict[int, list[str]] = {}

    @contextlib.contextmanager
    def by_this_thread(self) -> Iterator[list[str]]:
        lines = self._lines.setdefault(threading.get_ident(), [])
        try:
            yield lines
        finally:
            self._lines.pop(threading.get_ident(), None)

    def emit(self, record: logging.LogRecord) -> None:
        lines = self._lines.get(threading.get_ident())
        if lines is not None:
            lines.append(record.getMessage())


@contextlib.contextmanager
def _hearing_exporters() -> Iterator[_Heard]:
    """Keep the exporters' log lines off the console and for the report."""
    heard = _Heard()
    loggers = [logging.getLogger(name) for name in ("opentelemetry.exporter", "opentelemetry.sdk")]
    before = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(heard)
        logger.propagate = False
    try:
        yield heard
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.removeHandler(heard)
            logger.propagate = propagate


# --- The whole examination. ---


def send_test_trace(config: Config, timeout_s: float) -> tuple[str, list[Finding]]:
    """Send one trace through every configured trace exporter; return its id (32 hex digits) and the findings."""
    spans = build_test_spans(config, "django_otel send-test")
    context = spans[0].get_span_context() or trace.INVALID_SPAN_CONTEXT
    trace_id = trace.format_trace_id(context.trace_id)
    shortened = _shorten(config, timeout_s)
    with _hearing_exporters() as heard:
        return trace_id, [_send_spans(name, spans, shortened, timeout_s, heard) for name in config.traces.exporters]


def examine(config: Config, timeout_s: float) -> list[Finding]:
    """Look at everything: configuration, exporters, pages, instrumentors, versions, databases, caches, folders.

    Units: `timeout_s` is seconds, for one exporter.
    """
    findings = [*_examine_configuration(config)]
    if not config.enabled:
        text = gettext("is off (ENABLED); nothing else was tested.")
        findings.append(Finding("telemetry", "note", text))
        return findings
    findings += _examine_provider(config)
    findings += try_exporters(config, timeout_s)
    findings += _examine_metrics_page(config)
    findings += _examine_instrumentors(config)
    for subject, outcome, text, advice in surroundings.examine(config, timeout_s):
        findings.append(Finding(subject, cast("Outcome", outcome), text, advice))
    return findings


def _examine_configuration(config: Config) -> Iterator[Finding]:
    name = config.service_name or "django"
    found = [*checks.check_configuration(), *checks.check_project()]
    found += checks.check_live_table(databases=list(connections))
    failed = [message for message in found if message.is_serious()]
    if not failed:
        text = gettext("settings.OTEL is valid; the service is called %(name)s.")
        yield Finding("configuration", "ok", text % {"name": repr(name)})
    for message in found:
        outcome: Outcome = "failed" if message.is_serious() else "warning"
        yield Finding(f"configuration {message.id}", outcome, str(message.msg), str(message.hint or ""))
    if checks.find_middleware():
        yield Finding("middleware", "ok", gettext("OTelMiddleware is in MIDDLEWARE."))


def _examine_provider(config: Config) -> Iterator[Finding]:
    current = runtime.current()
    if config.providers == "none":
        text = gettext('OTEL["PROVIDERS"] is "none": there are metrics but no traces.')
        yield Finding("provider", "note", text)
    elif current.is_foreign:
        kind = type(current.tracer_provider)
        text = gettext("another tool has installed a tracer provider (%(module)s); spans go to its exporters.")
        advice = gettext('To use the exporters of the settings, set OTEL["PROVIDERS"] = "own".')
        yield Finding("provider", "warning", text % {"module": kind.__module__}, advice)


def _examine_metrics_page(config: Config) -> Iterator[Finding]:
    if "prometheus" not in config.metrics.exporters:
        return
    try:
        url = reverse("django_otel:metrics")
    except NoReverseMatch:
        advice = gettext('Add path("", include("django_otel.urls")) to the urlpatterns.')
        yield Finding("/metrics", "warning", gettext("no URL is routed to it."), advice)
        return
    except Exception as error:
        text = gettext("the project's URLs cannot be loaded: %(error)s.")
        yield Finding("/metrics", "failed", text % {"error": name_error(error)})
        return
    text = gettext("is at %(address)s; who may read it: %(access)s.")
    yield Finding("/metrics", "ok", text % {"address": url, "access": _describe_access(config)})


def _metrics_address() -> str:
    """The path of the page of numbers in this project."""
    try:
        return reverse("django_otel:metrics")
    except Exception:
        # No URL leads to it, or the URLs cannot be loaded: a finding of its own says so.
        return "/metrics"


def _describe_access(config: Config) -> str:
    allow, has_token = config.metrics_view.allow, bool(config.metrics_view.token)
    if allow == "auto" and settings.DEBUG:
        return gettext("everyone, because DEBUG is on")
    texts = {
        "all": gettext("everyone"),
        "staff": gettext("signed-in staff"),
        "token": gettext("clients that send the token"),
        "private": gettext("direct clients with a private address, clients that send the token")
        if has_token
        else gettext("direct clients with a private address"),
        "auto": gettext("clients that send the token, signed-in staff") if has_token else gettext("signed-in staff"),
    }
    if not isinstance(allow, str):
        return gettext("decided by the project's function")
    return texts.get(allow) or gettext("decided by %(path)s") % {"path": allow}


def _examine_instrumentors(config: Config) -> Iterator[Finding]:
    known = {state.name: state for state in instrumentors.states()}
    for name in config.instrument:
        state = known.get(name)
        if state is None:
            reason = translate(instrumentors.find_obstacle(name)) or gettext("not enabled in this command.")
            yield Finding(f"instrumentor {name}", "note", gettext("off: %(reason)s") % {"reason": reason})
        elif state.is_on:
            yield Finding(f"instrumentor {name}", "ok", gettext("on."))
        else:
            # A complaint stands among the warnings of the configuration already.
            yield Finding(
                f"instrumentor {name}", "note", gettext("off: %(reason)s") % {"reason": translate(state.reason)}
            )


def _send_spans(name: str, spans: list[ReadableSpan], config: Config, timeout_s: float, heard: _Heard) -> Finding:
    if name == "memory":
        return Finding("memory", "warning", gettext("kept in memory only; nothing was sent."))
    subject, place = name, ""
    try:
        if name == "console":
            exporter: Any = ConsoleSpanExporter()
        elif name in OTLP_KINDS:
            place = describe_endpoint(name, "traces", config)
            exporter = build_otlp_exporter(name, "traces", config)
        else:
            exporter = import_path(name)()
            if isinstance(exporter, SpanProcessor):
                for span in spans:
                    exporter.on_end(span)
                exporter.force_flush(int(timeout_s * 1000))
                exporter.shutdown()
                return Finding(subject, "ok", gettext("received the trace."))
    except ConfigError as error:
        return Finding(subject, "failed", error.problems[0].message, error.problems[0].hint)
    except Exception as error:
        return Finding(subject, "failed", _not_built(error))
    try:
        with suppress_instrumentation(), heard.by_this_thread() as said:
            arrived = exporter.export(spans).name == "SUCCESS"
    except Exception as error:
        text = gettext("raised %(error)s on export.")
        return Finding(subject, "failed", text % {"error": name_error(error)})
    finally:
        with contextlib.suppress(Exception):
            exporter.shutdown()
    if arrived:
        text = gettext("sent to %(place)s.") % {"place": place} if place else gettext("sent.")
        return Finding(subject, "ok", text)
    last = Scrubber().text(said[-1]) if said else gettext("no reason given.")
    text = gettext("not sent to %(place)s: %(reason)s") if place else gettext("not sent: %(reason)s")
    advice = gettext("`manage.py otel doctor` says why.")
    return Finding(subject, "failed", text % {"place": place, "reason": last}, advice)
