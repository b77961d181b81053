"""OTLP exporters of the three signals, as the settings describe them; built when the first batch leaves.

Every SDK constructor gets every argument, since each would read `OTEL_*` for
itself otherwise, and the source shown to the operator be wrong.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import ReadableSpan

from django_otel.base import forks, sdk_environment
from django_otel.base.sdk_compat import LOG_EXPORTER_MODULE, watch_grpc_answers
from django_otel.config.packages import missing_package, package_version
from django_otel.config.schema import Config, Logs, Metrics, Traces

if TYPE_CHECKING:
    from django_otel.export.answers import Answers, DropCounter, Halving

Receiver = Traces | Metrics | Logs

#: Names of exporters that send OTLP: protobuf or JSON over HTTP, protobuf over gRPC.
OTLP_KINDS = ("otlp", "otlp-json", "otlp-grpc")
DEFAULT_HTTP_ENDPOINT = "http://localhost:4318"
#: Names the package that makes the session of a signal's exporter.
_CREDENTIALS = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_{}CREDENTIAL_PROVIDER"
_DEFAULT_GRPC_ENDPOINT = "http://localhost:4317"


def check_installed(kind: str, signal: str) -> None:
    """Find a missing exporter package without importing it. Errors: `ConfigError` (E004)."""
    if kind not in OTLP_KINDS:
        return
    package = f"opentelemetry-exporter-otlp-proto-{'grpc' if kind == 'otlp-grpc' else 'http'}"
    if not package_version(package):
        raise missing_package(kind, package, "django-otel-kit[grpc]" if kind == "otlp-grpc" else package)


def grpc_target(settings: Receiver) -> str:
    """Return where gRPC sends to: scheme (https is TLS), host and port, no path and no query.

    Without a scheme it is TLS, unless INSECURE asks for none.
    Source: OTLP exporter specification, "Insecure".
    """
    if settings.endpoint is None:
        return _DEFAULT_GRPC_ENDPOINT
    scheme, separator, rest = settings.endpoint.partition("://")
    if not separator:
        return f"{'http' if settings.insecure else 'https'}://{settings.endpoint}"
    return f"{scheme}://{rest.partition('?')[0].partition('/')[0]}"


def _http_arguments(settings: Receiver, signal: str) -> dict[str, Any]:
    from opentelemetry.exporter.otlp.proto.http import Compression

    compression = {"gzip": Compression.Gzip, "deflate": Compression.Deflate, "none": Compression.NoCompression}
    return {
        "endpoint": settings.endpoint or f"{DEFAULT_HTTP_ENDPOINT}/v1/{signal}",
        "headers": dict(settings.headers),
        "timeout": settings.timeout_s,
        "compression": compression[settings.compression],
    }


def _grpc_arguments(settings: Receiver) -> dict[str, Any]:
    import grpc

    target = grpc_target(settings)
    return {
        "endpoint": target,
        "insecure": not target.startswith("https://"),
        # gRPC metadata keys are lower-case.
        "headers": [(name.lower(), value) for name, value in settings.headers.items()],
        "timeout": settings.timeout_s,
        "compression": grpc.Compression.NoCompression if settings.compression == "none" else grpc.Compression.Gzip,
    }


def _import_exporter(kind: str, signal: str) -> object:
    """The OTLP exporter class of a signal. Errors: `ConfigError` (E004) when its package is missing."""
    transport = "grpc" if kind == "otlp-grpc" else "http"
    module, name = {
        "traces": ("trace_exporter", "OTLPSpanExporter"),
        "metrics": ("metric_exporter", "OTLPMetricExporter"),
        "logs": (LOG_EXPORTER_MODULE, "OTLPLogExporter"),
    }[signal]
    try:
        return getattr(importlib.import_module(f"opentelemetry.exporter.otlp.proto.{transport}.{module}"), name)
    except ImportError as error:
        package = f"opentelemetry-exporter-otlp-proto-{transport}"
        raise missing_package(kind, package, "django-otel-kit[grpc]" if transport == "grpc" else package) from error


def _otlp_arguments(kind: str, signal: str, config: Config) -> dict[str, object]:
    settings = getattr(config, signal)
    arguments = _grpc_arguments(settings) if kind == "otlp-grpc" else _http_arguments(settings, signal)
    if kind == "otlp-json":
        # Compressed by the session, after what the exporter encodes has been rewritten.
        arguments["compression"] = type(arguments["compression"]).NoCompression
    if signal == "metrics":
        # Ours: what is handed over is already cumulative or delta.
        arguments["preferred_temporality"] = {}
        arguments["preferred_aggregation"] = {}
    return arguments


def _is_harmful(name: str, value: str) -> bool:
    """Return whether the stock exporters would log or send an entry of a list of headers that is left out here."""
    from django_otel.config.variables import header_pairs

    return name.endswith("_HEADERS") and header_pairs(value)[1] > 0


def _watch_answers(
    kind: str, signal: str, arguments: dict[str, object], settings: Receiver, on_drop: DropCounter
) -> tuple[Any, Answers]:
    """The class of the exporter, which hands over what the receiver answers; `arguments` are added to."""
    # Late, here and below: the exporting thread needs it, no start.
    from django_otel.export.answers import Answers
    from django_otel.export.quiet_addresses import conceal

    exporter_class = _import_exporter(kind, signal)
    conceal(settings)
    answers = Answers(signal, on_drop)
    if kind == "otlp-grpc":
        return watch_grpc_answers(exporter_class, answers), answers
    from django_otel.export.http_session import build_session, watch_session
    from django_otel.export.retries import correct_retries

    exporter_class = correct_retries(exporter_class, settings.timeout_s)
    if kind == "otlp-json":
        from django_otel.export.json_transport import JsonSession

        arguments["session"] = build_session(answers, JsonSession, signal, settings.compression)
        return exporter_class, answers
    variables = (_CREDENTIALS.format(""), _CREDENTIALS.format(f"{signal.upper()}_"))
    if not sdk_environment.is_any_set(variables):
        arguments["session"] = build_session(answers)
        return exporter_class, answers
    # The project has a session of its own, with its credentials.
    return watch_session(exporter_class, answers), answers


def build_otlp_exporter(
    kind: str, signal: str, config: Config, on_drop: DropCounter = lambda *_: None
) -> _PartsExporter:
    """The stock OTLP exporter `kind` (one of `OTLP_KINDS`) of a signal ("traces", "metrics", "logs"), as configured.

    What its receiver refuses is given to `on_drop`; a batch that is too large is sent in parts.
    """

    def build() -> _PartsExporter:
        arguments = _otlp_arguments(kind, signal, config)
        exporter_class, answers = _watch_answers(kind, signal, arguments, getattr(config, signal), on_drop)
        return _PartsExporter(exporter_class(**arguments), answers, on_drop)

    return sdk_environment.survive(build, is_harmful=_is_harmful)


class _PartsExporter:
    """A stock exporter of metrics or logs whose batches are halved when the receiver calls them too large.

    Items that are too large alone are counted by it, and so are those of a
    part that failed when others have arrived; `lost` gives the number of the
    last batch are no longer the caller's to count.
    """

    def __init__(self, inner: Any, answers: Answers, on_drop: DropCounter) -> None:
        self._inner = inner
        self._answers = answers
        self._on_drop = on_drop
        self.lost = 0

    def export(self, batch: object, **options: object) -> Any:
        results: list[Any] = []

        def send(part: object) -> bool:
            results.append(self._inner.export(part, **options))
            return bool(results[-1].name == "SUCCESS")

        from django_otel.export.answers import Items, Points, send_in_parts

        kind: Halving[Any] = Points if self._answers.signal == "metrics" else Items
        outcome = send_in_parts(batch, send, self._answers, kind)
        if outcome.too_large:
            self._on_drop(outcome.too_large, "too_large", self._answers.signal)
        self.lost = outcome.too_large + outcome.delivered
        result = type(results[-1])
        return result.FAILURE if outcome.failed else result.SUCCESS

    def shutdown(self, *args: object, **options: object) -> None:
        self._inner.shutdown(*args, **options)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True


def build_direct_exporter(
    kind: str,
    config: Config,
    clean: Callable[[ReadableSpan], ReadableSpan],
    on_lost: Callable[[int, str], None],
    on_drop: DropCounter = lambda *_: None,
) -> object:
    """An exporter that takes spans as they are, cleans and encodes them, and sends them as the stock exporter does.

    Where the installed exporter is not built as we know it, the stock one with its own encoding.
    """
    from django_otel.export import otlp

    def build() -> object:
        arguments = _otlp_arguments(kind, "traces", config)
        watched_class, answers = _watch_answers(kind, "traces", arguments, config.traces, on_drop)
        return otlp.build(kind, watched_class, arguments, config, clean, on_lost, answers)

    return sdk_environment.survive(build, is_harmful=_is_harmful)


class LazyExporter:
    """Builds an exporter in the exporting thread, at its first batch.

    Importing `requests`, protobuf or gRPC takes longer than the rest of the
    start-up, and a process that exports nothing never needs them.
    """

    def __init__(self, build: Callable[[], object]) -> None:
        self._build = build
        self._lock = threading.Lock()
        self._inner: Any = None
        self._is_shut_down = False

    def export(self, batch: object, **kwargs: object) -> object:
        return self._get().export(batch, **kwargs)

    @property
    def lost(self) -> int:
        """Return how many items of the last batch, whose export failed, are no longer the caller's to count."""
        return getattr(self._inner, "lost", 0)

    def _get(self) -> Any:
        with self._lock:
            if self._inner is None:
                with forks.importing.using():
                    self._inner = self._build()
            return self._inner

    def after_fork(self) -> None:
        """A connection must not be shared with the parent."""
        self._lock = threading.Lock()
        self._inner = None

    def renew_locks(self) -> None:
        """Replace the lock, using the current `threading`; only before the first batch."""
        if self._inner is None:
            self._lock = threading.Lock()

    def shutdown(self, *args: object, **kwargs: object) -> None:
        inner = self._inner
        if inner is not None and not self._is_shut_down:
            self._is_shut_down = True
            inner.shutdown()

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True
