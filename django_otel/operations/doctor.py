"""Tries what the configuration promises and says in words what does not work.

Nothing here guesses from settings whether an exporter would work: one real span,
metric and log record go through the real exporters to the configured places,
and where one does not arrive a bare request to the same place finds out why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from django.conf import settings
from django.db import connections
from django.urls import NoReverseMatch, reverse
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from django_otel import runtime
from django_otel.base import sdk_compat
from django_otel.base.suppression import suppress_instrumentation
from django_otel.config.schema import Config, ConfigError
from django_otel.export import pipelines
from django_otel.instrumentation import instrumentors
from django_otel.operations import checks, surroundings
from django_otel.redaction.scrub import Scrubber

Outcome = Literal["ok", "note", "warning", "failed"]
SIGNALS = ("traces", "metrics", "logs")
SCOPE = "django_otel.doctor"
_SERVICES = {
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}
_WHAT = {"traces": "one span", "metrics": "one metric", "logs": "one log record"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report. `text` never holds a secret; `advice` is empty when there is nothing to do."""

    subject: str
    outcome: Outcome
    text: str
    advice: str = ""


# --- Exporters. ---


def try_exporters(config: Config, timeout_s: float) -> list[Finding]:
    """Send through every configured exporter of the three signals at once; one finding each, in a fixed order.

    Units: `timeout_s` is seconds, for one exporter, retries included.
    """
    shortened = _shorten(config, timeout_s)
    tasks = [(name, signal) for signal in SIGNALS for name in getattr(config, signal).exporters]
    findings = [
        Finding(signal, "note", "no exporter is configured" + _why_none(config, signal))
        for signal in SIGNALS
        if not getattr(config, signal).exporters
    ]
    if tasks:
        with _hearing_exporters() as heard, ThreadPoolExecutor(len(tasks)) as pool:
            findings += pool.map(lambda task: _try_exporter(task[0], task[1], shortened, timeout_s, heard), tasks)
    return sorted(findings, key=lambda finding: SIGNALS.index(finding.subject.split(" ")[0]))


def _why_none(config: Config, signal: str) -> str:
    if signal != "traces" or not config.sources.get("TRACES.EXPORTERS", "").endswith("(auto)"):
        return "."
    return ': "auto" exports when an endpoint is set (OTEL["TRACES"]["ENDPOINT"] or OTEL_EXPORTER_OTLP_ENDPOINT).'


def _shorten(config: Config, timeout_s: float) -> Config:
    parts = {}
    for signal in SIGNALS:
        part: Any = getattr(config, signal)
        parts[signal] = dataclasses.replace(part, timeout_s=min(part.timeout_s, timeout_s))
    return dataclasses.replace(config, **parts)


def _try_exporter(name: str, signal: str, config: Config, timeout_s: float, heard: _Heard) -> Finding:
    subject = f"{signal} {name}"
    if name == "prometheus":
        return Finding(subject, "ok", "numbers are served on /metrics, nothing is sent.")
    if name == "prometheus-registry":
        return Finding(subject, "ok", "numbers are a collector in prometheus_client's registry, nothing is sent.")
    if name == "memory":
        return Finding(subject, "warning", "kept in memory only; meant for tests.")
    if name == "console":
        return Finding(subject, "ok", "printed on the console, nothing is sent.")
    try:
        if name not in pipelines.OTLP_KINDS:
            return _try_own(subject, name, config)
        exporter = pipelines.build_otlp_exporter(name, signal, config)
    except ConfigError as error:
        return Finding(subject, "failed", error.problems[0].message, error.problems[0].hint)
    except Exception as error:
        return Finding(subject, "failed", f"the exporter cannot be built: {_name(error)}.")
    return _try_otlp(subject, name, signal, config, exporter, timeout_s, heard)


def _try_own(subject: str, path: str, config: Config) -> Finding:
    made = pipelines.import_path(path)()
    try:
        if isinstance(made, SpanProcessor):
            return Finding(subject, "ok", f"gives a {type(made).__name__}; a span processor cannot be tried from here.")
        if not callable(getattr(made, "export", None)):
            text = f"gives a {type(made).__name__}; expected a SpanExporter or a SpanProcessor."
            return Finding(subject, "failed", text)
        with suppress_instrumentation():
            result = made.export(build_test_spans(config))
        if getattr(result, "name", "") == "SUCCESS":
            return Finding(subject, "ok", "took one span.")
        return Finding(subject, "failed", "did not take one span; its log says why.")
    except Exception as error:
        return Finding(subject, "failed", f"raised {_name(error)} at the export of one span.")
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
        said.append(_name(error))
    finally:
        with contextlib.suppress(Exception):
            exporter.shutdown()
    took_ms = (time.monotonic() - begun_s) * 1000
    with suppress_instrumentation():
        if name != "otlp-grpc":
            reason = _probe_http(settings, signal, timeout_s, arrived, is_json=name == "otlp-json")
        else:
            reason = None if arrived else _probe_grpc(settings, signal, timeout_s)
    if arrived and reason is None:
        return Finding(subject, "ok", f"{_WHAT[signal]} arrived at {place} in {took_ms:.0f} ms.")
    if reason is not None:
        return Finding(subject, "failed", f"{place}: {reason.text}", reason.advice)
    last = Scrubber().text(said[-1]) if said else "no reason given"
    return Finding(subject, "failed", f"{place} takes an empty request, but not ours: {last}")


def describe_endpoint(name: str, signal: str, config: Config) -> str:
    """Where an exporter sends, as it may be shown: without user, password and query."""
    settings = getattr(config, signal)
    if name == "otlp-grpc":
        return _show_url(pipelines.grpc_target(settings))
    return _show_url(_http_url(settings, signal))


def _http_url(settings: Any, signal: str) -> str:
    return settings.endpoint or f"{pipelines._DEFAULT_HTTP_ENDPOINT}/v1/{signal}"


def _show_url(url: str) -> str:
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


# --- What to send. ---


class _Catch(SpanProcessor):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


def build_test_spans(config: Config, name: str = "django_otel doctor") -> list[ReadableSpan]:
    """A finished trace of a parent with an event and its child, sampled whatever the settings say."""
    catch = _Catch()
    resource = pipelines.build_resource(config, Scrubber(config.scrub.extra).attributes)
    provider = TracerProvider(
        sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False, span_limits=pipelines.build_span_limits()
    )
    provider.add_span_processor(catch)
    tracer = provider.get_tracer(SCOPE, pipelines.package_version("django-otel-kit"))
    # An empty context: the test is a trace of its own, whatever is current.
    with tracer.start_as_current_span(name, context=trace.set_span_in_context(trace.INVALID_SPAN)) as parent:
        parent.add_event("test", {"django_otel.test": True})
        with tracer.start_as_current_span("child of the test"):
            pass
    return catch.spans


def build_test_batch(signal: str, config: Config) -> Any:
    """What the SDK would hand to an exporter of `signal`: one span, metric or log record that is marked as a test."""
    if signal == "traces":
        return build_test_spans(config)[-1:]
    resource = pipelines.build_resource(config, Scrubber(config.scrub.extra).attributes)
    return _build_test_metric(resource) if signal == "metrics" else _build_test_log(resource)


def _build_test_metric(resource: Resource) -> Any:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    counter = provider.get_meter(SCOPE).create_counter("django_otel.doctor.tests", "{test}", "Runs of the doctor.")
    counter.add(1)
    data = reader.get_metrics_data()
    provider.shutdown()
    return data


def _build_test_log(resource: Resource) -> Any:
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


# --- Why not, over HTTP. ---


@dataclass(frozen=True, slots=True)
class _Reason:
    text: str
    advice: str = ""


def _probe_http(
    settings: Any, signal: str, timeout_s: float, arrived: bool, *, is_json: bool = False
) -> _Reason | None:
    """Post an empty message and explain the answer. When our message has arrived only a web page is a fault."""
    import requests

    url = _http_url(settings, signal)
    kind = "application/json" if is_json else "application/x-protobuf"
    headers = {"content-type": kind, **settings.headers}
    try:
        # An empty body is an empty message of every signal. A redirect would turn the POST into a GET.
        with requests.post(
            url, b"{}" if is_json else b"", headers=headers, timeout=timeout_s, allow_redirects=False, stream=True
        ) as answer:
            return explain_answer(answer.status_code, answer.headers, url, signal)
    except Exception as error:
        # The exporter has ways of its own (certificates of the environment), so its success counts.
        return None if arrived else explain_http_error(error, url, timeout_s)


def explain_answer(status: int, headers: Any, url: str, signal: str) -> _Reason | None:
    """What is wrong with an answer to OTLP over HTTP; None when it is as it should be."""
    place = f'OTEL["{signal.upper()}"]'
    kind = str(headers.get("content-type", "")).partition(";")[0].strip().lower()
    if 200 <= status < 300:
        if kind in ("text/html", "application/xhtml+xml"):
            return _Reason(
                f"answers {status} with a web page ({kind}), not as an OTLP receiver does.",
                f'Something else listens there; look at {place}["ENDPOINT"].',
            )
        return None
    if 300 <= status < 400:
        where = _show_url(str(headers.get("location", "")))
        return _Reason(
            f"redirects ({status}) to {where or 'elsewhere'}.", f'Set {place}["ENDPOINT"] to the final address.'
        )
    texts = {
        400: ("400 Bad Request: it did not understand the message.", "Is it an OTLP receiver of this signal?"),
        401: ("401 Unauthorized: credentials are missing or wrong.", f'Look at {place}["HEADERS"].'),
        403: (
            "403 Forbidden: the credentials may not write there.",
            f'Look at {place}["HEADERS"] and at the rights of its key.',
        ),
        404: (
            f"404 Not Found: nothing at the path {urlsplit(url).path or '/'}.",
            f"An OTLP receiver takes {signal} at /v1/{signal}, sometimes below a prefix.",
        ),
        405: (
            "405 Method Not Allowed: it takes no POST at this path.",
            f"An OTLP receiver takes {signal} at /v1/{signal}, sometimes below a prefix.",
        ),
        413: ("413: the message is too large for it.", 'Lower OTEL["TRACES"]["BATCH"]["BATCH_SIZE"].'),
        415: ("415 Unsupported Media Type: it takes no protobuf.", "Is it an OTLP receiver?"),
        429: ("429 Too Many Requests: it limits the rate.", "Sample less, or raise the limit there."),
    }
    other = f"{status}: it has a fault of its own." if status >= 500 else f"{status}, which OTLP does not know."
    text, advice = texts.get(status, (other, ""))
    if kind == "text/html":
        text += " The answer is a web page (text/html)."
    return _Reason(f"answers {text}", advice)


def explain_http_error(error: BaseException, url: str, timeout_s: float) -> _Reason:
    """Why a request got no answer, from the exception and all that caused it."""
    import requests

    parts = urlsplit(url)
    host = parts.hostname or ""
    chain = list(_causes(error))
    text = " ".join(str(cause) for cause in chain)
    if isinstance(error, requests.exceptions.ProxyError):
        return _Reason("the proxy of the environment (HTTP_PROXY, HTTPS_PROXY) does not let the request through.",
                       f"Set NO_PROXY={host} or repair the proxy.")  # fmt: skip
    if isinstance(error, requests.exceptions.SSLError):
        if "WRONG_VERSION_NUMBER" in text or "record layer failure" in text.lower():
            return _Reason(
                "TLS failed: the server does not speak TLS on this port.", "Write http:// instead of https://."
            )
        if "CERTIFICATE_VERIFY_FAILED" in text:
            why = "self-signed or of an unknown authority" if "self" in text or "local issuer" in text else "not valid"
            return _Reason(
                f"TLS failed: the server's certificate is {why}.",
                "Set OTEL_EXPORTER_OTLP_CERTIFICATE to the file of the authority that signed it.",
            )
        return _Reason("TLS failed: client and server found no common ground.")
    if any(isinstance(cause, socket.gaierror) for cause in chain) or "NameResolutionError" in text:
        return _unresolved(host)
    if any(isinstance(cause, ConnectionRefusedError) for cause in chain):
        return _Reason(*_refused(host, parts.port or (443 if parts.scheme == "https" else 80)))
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return _unanswered(timeout_s)
    if isinstance(error, requests.exceptions.Timeout):
        return _Reason(
            f"timeout: the connection was taken, but no answer came within {timeout_s:g} s.",
            "The receiver hangs, or something else listens there.",
        )
    if isinstance(error, requests.exceptions.ConnectionError) and _is_nonsense(text):
        return _Reason(
            "the server did not answer in HTTP/1.1; it may speak gRPC on this port, or TLS.",
            'OTLP over HTTP usually has port 4318 and gRPC 4317: change the port, or use the exporter "otlp-grpc".',
        )
    if "unreachable" in text.lower() or "No route" in text:
        return _Reason(f"the host {host!r} cannot be reached from this network.")
    return _Reason(f"the request failed: {_name(error)}.")


def _unresolved(host: str) -> _Reason:
    return _Reason(
        f"the host name {host!r} cannot be resolved (DNS).", "Is the name right, and known from this machine?"
    )


def _unanswered(timeout_s: float) -> _Reason:
    return _Reason(
        f"no answer to the attempt to connect within {timeout_s:g} s.",
        "The host is down, or a firewall drops packets.",
    )


def _refused(host: str, port: int) -> tuple[str, str]:
    advice = "Is the receiver running, and does it listen on this address?"
    if host in ("localhost", "127.0.0.1", "::1"):
        advice += " In a container localhost is the container itself."
    return f"connection refused: nothing listens on {host}:{port}.", advice


def _is_nonsense(text: str) -> bool:
    marks = ("BadStatusLine", "RemoteDisconnected", "Connection aborted", "reset by peer", "Connection broken")
    return any(mark in text for mark in marks)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, what it was raised from, and what libraries carry in `reason` and `args`."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        current = waiting.pop(0)
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting += [current.__cause__, current.__context__, getattr(current, "reason", None), *current.args]


def _name(error: BaseException) -> str:
    return type(error).__name__


# --- Why not, over gRPC. ---


def _probe_grpc(settings: Any, signal: str, timeout_s: float) -> _Reason | None:
    if importlib.util.find_spec("grpc") is None:
        return _Reason("the package grpcio is not installed.", 'Run: pip install "django-otel-kit[grpc]"')
    import grpc

    target = pipelines.grpc_target(settings)
    is_secure = target.startswith("https://")
    address = target.partition("://")[2] or target
    reason = _probe_tcp(address, 443 if is_secure else 80, timeout_s)
    if reason is not None:
        return reason
    channel = (
        grpc.secure_channel(address, grpc.ssl_channel_credentials()) if is_secure else grpc.insecure_channel(address)
    )
    try:
        with channel:
            # Without serialisers: bytes go as they are, and no bytes are an empty message of every signal.
            call = channel.unary_unary(_SERVICES[signal])
            metadata = [(name.lower(), value) for name, value in settings.headers.items()]
            call(b"", timeout=timeout_s, metadata=metadata)
    except grpc.RpcError as error:
        return explain_grpc_error(error.code().name, str(error.details() or ""), signal, is_secure, timeout_s)
    return None


def _probe_tcp(address: str, default_port: int, timeout_s: float) -> _Reason | None:
    parts = urlsplit(f"//{address}")
    host, port = parts.hostname or "", parts.port or default_port
    try:
        socket.create_connection((host, port), timeout_s).close()
    except socket.gaierror:
        return _unresolved(host)
    except ConnectionRefusedError:
        return _Reason(*_refused(host, port))
    except TimeoutError:
        return _unanswered(timeout_s)
    except OSError as error:
        return _Reason(f"the host {host!r} cannot be reached: {error.strerror or _name(error)}.")
    return None


def explain_grpc_error(code: str, details: str, signal: str, is_secure: bool, timeout_s: float) -> _Reason:
    """What a gRPC status means for whoever has to repair it."""
    place = f'OTEL["{signal.upper()}"]'
    low = details.lower()
    if code == "UNAUTHENTICATED":
        return _Reason("UNAUTHENTICATED: credentials are missing or wrong.", f'Look at {place}["HEADERS"].')
    if code == "PERMISSION_DENIED":
        return _Reason("PERMISSION_DENIED: the credentials may not write there.", f'Look at {place}["HEADERS"].')
    if code == "UNIMPLEMENTED":
        return _Reason(f"UNIMPLEMENTED: it speaks gRPC, but takes no {signal}.", "Something else listens there.")
    if code == "DEADLINE_EXCEEDED":
        return _Reason(
            f"timeout: the connection was taken, but no answer came within {timeout_s:g} s.",
            "The receiver hangs, or something else listens there.",
        )
    if "certificate" in low or "ssl" in low or "tls" in low or "handshak" in low:
        if is_secure and "wrong_version" in low.replace(" ", "_"):
            return _Reason(
                "TLS failed: the server does not speak TLS on this port.", "Write http:// instead of https://."
            )
        return _Reason(
            "TLS failed: the server's certificate is not accepted, or it does not speak TLS on this port.",
            "Set OTEL_EXPORTER_OTLP_CERTIFICATE to the authority's file, or write http:// for a server without TLS.",
        )
    if code in ("UNAVAILABLE", "UNKNOWN", "INTERNAL"):
        return _Reason(
            f"{code}: the server does not speak gRPC on this port; it may speak HTTP, or TLS.",
            'OTLP over gRPC usually has port 4317 and HTTP 4318: change the port, or use the exporter "otlp".',
        )
    return _Reason(f"gRPC status {code}.")


# --- The whole examination. ---


def send_test_trace(config: Config, timeout_s: float) -> tuple[str, list[Finding]]:
    """Send one trace through every configured trace exporter; its id (32 hex digits) and what became of it."""
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
        findings.append(Finding("telemetry", "note", "is switched off (ENABLED); nothing else was tried."))
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
        yield Finding("configuration", "ok", f"settings.OTEL is valid; the service is called {name!r}.")
    for message in found:
        outcome: Outcome = "failed" if message.is_serious() else "warning"
        yield Finding(f"configuration {message.id}", outcome, str(message.msg), str(message.hint or ""))
    if checks.find_middleware():
        yield Finding("middleware", "ok", "OTelMiddleware is in MIDDLEWARE.")


def _examine_provider(config: Config) -> Iterator[Finding]:
    current = runtime.current()
    if config.providers == "none":
        yield Finding("provider", "note", 'OTEL["PROVIDERS"] is "none": there are metrics but no traces.')
    elif current.is_foreign:
        kind = type(current.tracer_provider)
        text = f"another tool has installed a tracer provider ({kind.__module__}); spans go to its exporters."
        yield Finding("provider", "warning", text, 'For those of the settings set OTEL["PROVIDERS"] = "own".')


def _examine_metrics_page(config: Config) -> Iterator[Finding]:
    if "prometheus" not in config.metrics.exporters:
        return
    try:
        url = reverse("django_otel:metrics")
    except NoReverseMatch:
        advice = 'Add path("", include("django_otel.urls")) to the urlpatterns.'
        yield Finding("/metrics", "warning", "no URL leads to it.", advice)
        return
    except Exception as error:
        yield Finding("/metrics", "failed", f"the project's URLs cannot be loaded: {_name(error)}.")
        return
    yield Finding("/metrics", "ok", f"is at {url}; who may read it: {_describe_access(config)}.")


def _describe_access(config: Config) -> str:
    allow, has_token = config.metrics_view.allow, bool(config.metrics_view.token)
    texts = {
        "all": "everybody",
        "staff": "signed-in staff",
        "token": "whoever sends the token",
        "private": "direct clients with a private address" + (", whoever sends the token" if has_token else ""),
        "auto": "everybody, because DEBUG is on"
        if settings.DEBUG
        else ("whoever sends the token, " if has_token else "") + "signed-in staff",
    }
    return texts.get(allow, f"decided by {allow}") if isinstance(allow, str) else "decided by the project's function"


def _examine_instrumentors(config: Config) -> Iterator[Finding]:
    known = {state.name: state for state in instrumentors.states()}
    for name in config.instrument:
        state = known.get(name)
        if state is None:
            obstacle = instrumentors.find_obstacle(name)
            yield Finding(f"instrumentor {name}", "note", f"off: {obstacle or 'not switched on in this command.'}")
        elif state.is_on:
            yield Finding(f"instrumentor {name}", "ok", "on.")
        else:
            # A complaint stands among the warnings of the configuration already.
            yield Finding(f"instrumentor {name}", "note", f"off: {state.reason}")


def _send_spans(name: str, spans: list[ReadableSpan], config: Config, timeout_s: float, heard: _Heard) -> Finding:
    if name == "memory":
        return Finding("memory", "warning", "kept in memory only; nothing was sent.")
    subject, place = name, ""
    try:
        if name == "console":
            exporter: Any = ConsoleSpanExporter()
        elif name in pipelines.OTLP_KINDS:
            place = f" to {describe_endpoint(name, 'traces', config)}"
            exporter = pipelines.build_otlp_exporter(name, "traces", config)
        else:
            exporter = pipelines.import_path(name)()
            if isinstance(exporter, SpanProcessor):
                for span in spans:
                    exporter.on_end(span)
                exporter.force_flush(int(timeout_s * 1000))
                exporter.shutdown()
                return Finding(subject, "ok", "was handed the trace.")
    except ConfigError as error:
        return Finding(subject, "failed", error.problems[0].message, error.problems[0].hint)
    except Exception as error:
        return Finding(subject, "failed", f"the exporter cannot be built: {_name(error)}.")
    try:
        with suppress_instrumentation(), heard.by_this_thread() as said:
            arrived = exporter.export(spans).name == "SUCCESS"
    except Exception as error:
        return Finding(subject, "failed", f"raised {_name(error)} at the export.")
    finally:
        with contextlib.suppress(Exception):
            exporter.shutdown()
    if arrived:
        return Finding(subject, "ok", f"sent{place}.")
    last = Scrubber().text(said[-1]) if said else "no reason given."
    return Finding(subject, "failed", f"not sent{place}: {last}", "`manage.py otel doctor` says why.")
