"""Logs: trace ids on every record, and export of records.

Correlation is a log record factory in front of the one that was there: every
record of every logger carries `otelTraceID`, `otelSpanID`, `otelTraceSampled`
and `otelServiceName`, so a format string or a JSON formatter may name them.

Export is a handler on the root logger. `logging.config.dictConfig` throws root
handlers away (Django calls it at start, projects call it later); the factory
sees that ours is missing and puts it back. Loggers with `propagate` off never
reach the root: name the handler in `LOGGING` for those:

    "handlers": {"otel": {"class": "django_otel.logs.OTelHandler"}}

A record that several of our handlers see is exported once.
"""

from __future__ import annotations

import contextvars
import copy
import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.semconv.attributes import code_attributes
from opentelemetry.trace import INVALID_SPAN

from django_otel.base import forks, guard, log_fields
from django_otel.base.log_levels import levels as live_levels
from django_otel.base.sdk_compat import SUPPRESS_INSTRUMENTATION_KEY
from django_otel.export import log_records, task_logs
from django_otel.export.log_records import MAX_BODY_LENGTH as MAX_BODY_LENGTH
from django_otel.export.log_records import severity_number as severity_number
from django_otel.redaction.paths import redact_unmatched
from django_otel.requests.record import current as current_request

if TYPE_CHECKING:
    from opentelemetry._logs import Logger, LoggerProvider, LogRecord

    from django_otel.config.schema import Config
    from django_otel.tracestore.processor import StoreProcessor

__all__ = ["OTelHandler", "install", "uninstall"]

_REMEMBERED_RECORDS = 4096
_CACHED_LOGGERS = 1000
#: Never exported: what we and the SDK say about exporting.
_OWN_LOGGERS = ("django_otel", "opentelemetry")
#: Not exported when they speak while an export is under way.
_EXPORT_LOGGERS = ("urllib3", "requests", "charset_normalizer", "grpc")

_STACK_INFO = getattr(code_attributes, "CODE_STACKTRACE", "code.stacktrace")

_sequence = itertools.count(1).__next__
_seen: dict[tuple[int | None, int], object] = {}
_emitting: contextvars.ContextVar[bool] = contextvars.ContextVar("django_otel_log_emitting", default=False)


class _State:
    """State that changes while the process runs."""

    def __init__(self) -> None:
        self.renew_lock()
        #: The factory of log records that we have installed, and the one of `logging.basicConfig`.
        self.factory: _CorrelatingFactory | None = None
        self.basic_config: Callable[..., None] | None = None
        self.level = logging.INFO
        self.excluded: tuple[str, ...] = _OWN_LOGGERS
        #: OpenTelemetry's loggers by name, and the provider that they are of; whether that is another tool's.
        self.loggers: dict[str, Logger] = {}
        self.provider: LoggerProvider | None = None
        self.is_foreign = False

    def renew_lock(self) -> None:
        """In a forked child: the thread that held it does not exist there."""
        self.lock = threading.RLock()


_state = _State()
forks.register("logs", _state.renew_lock)


# --- correlation -----------------------------------------------------------------------------------------------


class _CorrelatingFactory:
    """The log record factory: the earlier one, then our fields.

    It stays in the chain when another factory was put in front of it after
    us; `correlate`, `fill` and `export` then say whether it does anything.
    """

    def __init__(self, earlier: log_fields.RecordFactory) -> None:
        self.earlier = earlier
        self.correlate = False
        #: Whether records get the fields of a record outside of any span; while telemetry is off.
        self.fill = False
        self.export = False
        self.calls = 0
        self.outside_span: dict[str, object] = {}
        self.service_name = ""

    def set_service_name(self, name: str) -> None:
        self.service_name = name
        self.outside_span = log_fields.build_outside_fields(name)

    def __call__(self, *args: object, **kwargs: object) -> logging.LogRecord:
        record = self.earlier(*args, **kwargs)
        self.calls += 1
        try:
            if self.correlate:
                span = trace.get_current_span()
                context = None if span is INVALID_SPAN else span.get_span_context()
                if context is None or not context.is_valid:
                    record.__dict__.update(self.outside_span)
                else:
                    fields = record.__dict__
                    fields["otelSpanID"] = format(context.span_id, "016x")
                    fields["otelTraceID"] = format(context.trace_id, "032x")
                    fields["otelTraceSampled"] = context.trace_flags.sampled
                    fields["otelServiceName"] = self.service_name
            elif self.fill:
                record.__dict__.update(self.outside_span)
            if self.export:
                record.__dict__[log_records.SEQUENCE] = _sequence()
                if _root_handler not in logging.root.handlers:
                    logging.root.addHandler(_root_handler)
        except Exception as error:
            guard.report("logs.correlate", error)
        return record


def _factory_in_chain() -> _CorrelatingFactory:
    """Our factory, put in front unless it is already called for every record."""
    current = logging.getLogRecordFactory()
    if _state.factory is not None:
        if current is _state.factory:
            return _state.factory
        # Another factory is in front. It may call ours, or have replaced it: one record shows.
        calls = _state.factory.calls
        with guard.contained("logs.probe"):
            current("django_otel.logs", logging.NOTSET, __file__, 0, "probe", (), None)
        if _state.factory.calls != calls:
            return _state.factory
        _state.factory.correlate = _state.factory.fill = _state.factory.export = False
    _state.factory = _CorrelatingFactory(current.earlier if isinstance(current, log_fields.EarlyFactory) else current)
    logging.setLogRecordFactory(_state.factory)
    return _state.factory


# --- export ----------------------------------------------------------------------------------------------------


class OTelHandler(logging.Handler):
    """Sends log records to OpenTelemetry; for `LOGGING`, and on the root logger by itself when `LOGS.EXPORTERS` is set.

    Without a level of its own it takes `OTEL["LOGS"]["LEVEL"]`. With a
    formatter the body is what it formats, otherwise the message. Attributes:
    `extra` (values of OpenTelemetry's types, and dates, decimals, UUIDs, paths
    as text; other objects are left out), `exception.*`, `code.*`. Trace and
    span are those the record was made in, also when a `QueueListener` handles
    it in another thread.

    Errors: none reach the application (`base.guard`, place "logs.emit").
    """

    def handle(self, record: logging.LogRecord) -> Any:
        """Filter and emit. No lock is taken: the SDK's pipeline is thread-safe, and an exporter may be slow."""
        if self is _root_handler:
            _stand_in_for_last_resort(record)
        accepted: object = self.filter(record)
        if isinstance(accepted, logging.LogRecord):
            record = accepted  # Python 3.12: a filter may replace it
        if accepted:
            self.emit(record)
        return accepted

    def emit(self, record: logging.LogRecord) -> None:
        """Hand the record to the current logger provider, unless it is below the level, our own, or already sent."""
        if (
            (
                self.level == logging.NOTSET
                and record.levelno < _state.level
                and record.levelno < live_levels.export_level(record.name, _state.level)
            )
            or _emitting.get()
            or _is_excluded(record.name)
        ):
            return
        token = _emitting.set(True)
        try:
            logger = _logger(record.name)
            console = _console_for(record)
            if (logger is not None or console is not None) and _is_first(record):
                built = self._build(record)
                if console is not None:
                    console.on_log(built, record.name)
                if logger is not None:
                    # A record of its own when it is changed: the console's is scrubbed in its thread.
                    logger.emit(_scrubbed(built) if _state.is_foreign else built)
        except Exception as error:
            guard.report("logs.emit", error)
        finally:
            _emitting.reset(token)

    def flush(self) -> None:
        """Nothing: the runtime flushes with its own time budget; `logging.shutdown` must not wait here."""

    def _build(self, record: logging.LogRecord) -> LogRecord:
        # Here, as below: only who exports logs needs the API of logs.
        from opentelemetry._logs import LogRecord

        attributes, event_name = log_records.extra_attributes(record, _scrub)
        attributes[code_attributes.CODE_FILE_PATH] = record.pathname
        if record.funcName:
            attributes[code_attributes.CODE_FUNCTION_NAME] = record.funcName
        attributes[code_attributes.CODE_LINE_NUMBER] = record.lineno
        attributes.update(log_records.exception_attributes_of(record, _scrub))
        if record.stack_info:
            attributes[_STACK_INFO] = log_records.cut_stack(str(record.stack_info), _scrub)
        level_name = str(record.levelname)
        built = LogRecord(
            timestamp=int(record.created * 1e9),
            observed_timestamp=time.time_ns(),
            context=otel_context.get_current(),
            severity_text=log_records.severity_text(level_name),
            severity_number=log_records.severity_number(record.levelno),
            body=log_records.cut(
                _without_path_secrets(self._body(record), record), log_records.MAX_BODY_LENGTH, _scrub
            ),
            attributes=attributes,
            event_name=event_name,
        )
        log_records.take_trace_of(record, built)
        return built

    def _body(self, record: logging.LogRecord) -> str:
        if log_records.is_below(record.name, log_records.SQL_LOGGER):
            return str(record.msg)
        try:
            text = self.format(record) if self.formatter is not None else task_logs.message_of(record)
            # Also in the message, where a QueueHandler has formatted it.
            return text.replace(f"\n{log_records.NO_EXCEPTION}\n", "\n").removesuffix(f"\n{log_records.NO_EXCEPTION}")
        except Exception as error:
            guard.pass_on(error)
            # Arguments that do not fit the message: the application's fault, which its own handlers report.
            return str(record.msg)


def _without_path_secrets(text: str, record: logging.LogRecord) -> str:
    """Django logs the paths of failed requests, and "reset/<token>/" has its token in the path."""
    current = current_request()
    request: object = current.request if current is not None else None
    if request is None:
        # Django's own records of failed requests name theirs.
        request = getattr(record, "request", None)
    path = getattr(request, "path", None)
    if not isinstance(path, str):
        return text
    match = getattr(request, "resolver_match", None)
    if match is None:
        # No route says what the path holds.
        return text.replace(path, redact_unmatched(path)) if len(path) > 16 and path in text else text
    if not (match.kwargs or match.args):
        return text
    from django_otel import runtime

    return runtime.current().scrubber.path(text, match.kwargs, match.args)


_root_handler = OTelHandler()


def _logger(name: str) -> Logger | None:
    """The OpenTelemetry logger of that name from the provider of now; None when nothing is exported."""
    from django_otel import runtime

    provider: LoggerProvider | None = runtime.current().logger_provider
    if provider is None:
        return None
    if provider is not _state.provider:
        _state.loggers, _state.provider = {}, provider
        _state.is_foreign = provider is not runtime.current().logs.own_provider
    loggers = _state.loggers
    logger = loggers.get(name)
    if logger is None:
        from opentelemetry._logs import NoOpLogger

        logger = provider.get_logger(name)
        if isinstance(logger, NoOpLogger):
            return None
        if len(loggers) < _CACHED_LOGGERS:
            loggers[name] = logger
    return logger


def _console_for(record: logging.LogRecord) -> StoreProcessor | None:
    """Return the processor for log records of stored traces, if it takes this record: see `StoreProcessor.on_log`."""
    from django_otel import runtime

    console = runtime.console()
    if console is None:
        return None
    if record.levelno >= logging.WARNING:
        return console
    fields = record.__dict__
    is_sampled, trace_id = fields.get("otelTraceSampled"), fields.get("otelTraceID")
    if is_sampled is None:
        context = trace.get_current_span().get_span_context()
        is_sampled, trace_id = context.trace_flags.sampled, f"{context.trace_id:x}"
    # Of a trace that is not recorded only what is wrong is of interest; outside of one everything is.
    return console if is_sampled or not str(trace_id or "").strip("0") else None


def _scrubbed(built: LogRecord) -> LogRecord:
    """The record redacted, for a provider that another tool has installed: its pipeline does not do so, ours does."""
    from django_otel import runtime

    scrubber = runtime.current().scrubber
    scrubbed = copy.copy(built)
    scrubbed.body = scrubber.value("body", built.body)
    scrubbed.attributes = scrubber.attributes(built.attributes)
    scrubbed.event_name = scrubber.text(built.event_name) if built.event_name else built.event_name
    return scrubbed


def _is_excluded(name: str) -> bool:
    for parent in _state.excluded:
        if log_records.is_below(name, parent):
            return True
    for parent in _EXPORT_LOGGERS:
        if log_records.is_below(name, parent):
            return bool(otel_context.get_value(SUPPRESS_INSTRUMENTATION_KEY))
    return False


def _is_first(record: logging.LogRecord) -> bool:
    """Return whether none of our handlers has seen this record, or the one it is a copy of."""
    number = record.__dict__.get(log_records.SEQUENCE)
    if number is None:
        number = record.__dict__[log_records.SEQUENCE] = _sequence()
    key = (record.process, number)
    mine = object()
    if _seen.setdefault(key, mine) is not mine:
        return False
    while len(_seen) > _REMEMBERED_RECORDS:
        try:
            _seen.pop(next(iter(_seen)), None)
        except (RuntimeError, StopIteration):
            break  # another thread is at it
    return True


def _stand_in_for_last_resort(record: logging.LogRecord) -> None:
    """Show a warning on stderr if, but for our handler, no handler had seen it.

    Python shows such records through `logging.lastResort`; a root handler
    disables that, and our handler must not silence other loggers.
    """
    last_resort = logging.lastResort
    if last_resort is None or record.levelno < last_resort.level:
        return
    logger: logging.Logger | None = logging.root
    if record.name != logging.root.name:
        known = logging.root.manager.loggerDict.get(record.name)
        if isinstance(known, logging.Logger):
            logger = known
    while logger is not None:
        for handler in logger.handlers:
            if handler is not _root_handler:
                return
        logger = logger.parent if logger.propagate else None
    last_resort.handle(record)


def _scrub(text: str) -> str:
    from django_otel import runtime

    return runtime.current().scrubber.text(text)


# --- on and off ------------------------------------------------------------------------------------------------


def install(config: Config) -> None:
    """Make log records carry and go where `config` says. Again with another configuration: that one holds.

    Errors: none; a fault is contained and reported.
    """
    with guard.contained("logs.install"), _state.lock:
        _install(config)


def _install(config: Config) -> None:
    correlate = config.enabled and config.logs.correlation
    export = config.enabled and _is_wanted(config)
    if not config.enabled:
        _stand_by(config.service_name or "")
        return
    if not correlate and not export:
        _uninstall()
        return
    _state.level = logging.getLevelNamesMapping()[config.logs.level]
    # gRPC logs from threads of its own, where nothing says that it is exporting.
    _state.excluded = (*_OWN_LOGGERS, "grpc") if "otlp-grpc" in config.logs.exporters else _OWN_LOGGERS
    factory = _factory_in_chain()
    factory.set_service_name(_service_name(config))
    factory.correlate, factory.fill = correlate, False
    factory.export = export
    if export:
        if _root_handler not in logging.root.handlers:
            logging.root.addHandler(_root_handler)
        _wrap_basic_config()
    else:
        logging.root.removeHandler(_root_handler)
        _unwrap_basic_config()


def _is_wanted(config: Config) -> bool:
    from django_otel import runtime

    # In tests the memory stands for exporters, also for those that are not configured.
    return (
        runtime.is_testing()
        or runtime.console() is not None
        or (any(name != "none" for name in config.logs.exporters) and not runtime.current().is_skipped)
    )


def _service_name(config: Config) -> str:
    from django_otel import runtime

    # The resource knows more than the setting: the default, and OTEL_RESOURCE_ATTRIBUTES.
    return str(runtime.current().resource.attributes.get("service.name") or config.service_name or "")


def stand_by(service_name: str = "") -> None:
    """Export nothing, and fill the fields of every record as outside of any span: a format that names them works.

    Used while telemetry is off: by `ENABLED`, by `OTEL_SDK_DISABLED`, before the settings are read, or as they are
    faulty.
    """
    with guard.contained("logs.stand_by"), _state.lock:
        _stand_by(service_name)


def _stand_by(service_name: str) -> None:
    factory = _factory_in_chain()
    factory.set_service_name(service_name)
    factory.correlate, factory.fill, factory.export = False, True, False
    _stop_export()


def uninstall() -> None:
    """Take everything back: handler, factory. A factory that others have covered stays, and does nothing."""
    with guard.contained("logs.uninstall"), _state.lock:
        _uninstall()


def _uninstall() -> None:
    if _state.factory is not None:
        _state.factory.correlate = _state.factory.fill = _state.factory.export = False
        if logging.getLogRecordFactory() is _state.factory:
            logging.setLogRecordFactory(_state.factory.earlier)
            _state.factory = None
    _stop_export()


def _stop_export() -> None:
    logging.root.removeHandler(_root_handler)
    _unwrap_basic_config()
    _state.loggers, _state.provider = {}, None


def _wrap_basic_config() -> None:
    """Keep `logging.basicConfig` working, which does nothing when the root logger has a handler: ours is set aside."""
    if _state.basic_config is not None and logging.basicConfig is _state.basic_config:
        return
    original = logging.basicConfig

    @functools.wraps(original)
    def basic_config(**options: Any) -> None:
        ours = _root_handler in logging.root.handlers
        logging.root.removeHandler(_root_handler)
        try:
            original(**options)
        finally:
            if ours:
                logging.root.addHandler(_root_handler)

    _state.basic_config = basic_config
    logging.basicConfig = basic_config


def _unwrap_basic_config() -> None:
    if _state.basic_config is not None and logging.basicConfig is _state.basic_config:
        logging.basicConfig = _state.basic_config.__wrapped__  # type: ignore[attr-defined]
        _state.basic_config = None
