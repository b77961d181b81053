"""Logs in one process: correlation fields on records, and what becomes of a record on its way to OpenTelemetry."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import decimal
import enum
import io
import logging
import logging.config
import logging.handlers
import pathlib
import pickle
import queue
import sys
import threading
import uuid

import pytest
from django.test import override_settings
from opentelemetry import trace
from opentelemetry._logs import SeverityNumber
from opentelemetry.context import attach, detach, set_value

from django_otel import logs, runtime
from django_otel.base import guard
from django_otel.base.sdk_compat import SUPPRESS_INSTRUMENTATION_KEY
from django_otel.config.schema import Config

NO_TRACE = {"otelTraceID": "0", "otelSpanID": "0", "otelTraceSampled": False, "otelServiceName": "tests"}


@pytest.fixture(autouse=True)
def _state():
    """Every test begins and ends with what the settings ask for, and with the logging tree as it was."""
    root = logging.root
    handlers, level, factory = list(root.handlers), root.level, logging.getLogRecordFactory()
    guard.reset()
    yield
    logging.setLogRecordFactory(factory)
    root.handlers[:] = handlers
    root.setLevel(level)
    logs.install(runtime.current().config)
    assert guard.fault_counts() == {}, "a fault was contained"
    guard.reset()


@pytest.fixture
def log():
    """A logger that lets everything through, with no handler of its own."""
    logger = logging.getLogger("shop.orders")
    logger.setLevel(logging.DEBUG)
    yield logger
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@contextlib.contextmanager
def captured(logger):
    records = []

    class Keep(logging.Handler):
        def emit(self, record):
            records.append(record)

    handler = Keep()
    logger.addHandler(handler)
    try:
        yield records
    finally:
        logger.removeHandler(handler)


def otel(**log_settings):
    return override_settings(OTEL={"SERVICE_NAME": "tests", "LOGS": log_settings})


def fields(record):
    return {name: record.__dict__.get(name) for name in NO_TRACE}


# --- correlation ----------------------------------------------------------------------


def test_every_record_has_the_fields_also_outside_a_span(log):
    with captured(log) as records:
        log.info("hello")
    assert fields(records[0]) == NO_TRACE


def test_inside_a_span_the_fields_are_its_ids_in_hex(log):
    with captured(log) as records, runtime.tracer().start_as_current_span("work") as span:
        log.info("hello")
    context = span.get_span_context()
    assert fields(records[0]) == {
        "otelTraceID": trace.format_trace_id(context.trace_id),
        "otelSpanID": trace.format_span_id(context.span_id),
        "otelTraceSampled": True,
        "otelServiceName": "tests",
    }


def test_the_fields_are_those_of_the_official_instrumentation(log):
    instrumentation = pytest.importorskip("opentelemetry.instrumentation.logging")
    with otel(CORRELATION=False):
        theirs = instrumentation.LoggingInstrumentor()
        theirs.instrument(inject_trace_context=True, enable_log_auto_instrumentation=False, tracer_provider=None)
        try:
            with captured(log) as records:
                log.info("outside")
                with runtime.tracer().start_as_current_span("work") as span:
                    log.info("inside")
        finally:
            theirs.uninstrument()
    with captured(log) as ours, trace.use_span(span):
        log.info("inside")
    with captured(log) as outside:
        log.info("outside")
    assert fields(records[1]) == fields(ours[0])
    assert fields(records[0]) == fields(outside[0])


def test_a_format_string_may_name_the_fields(log):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(otelTraceID)s %(otelSpanID)s %(otelServiceName)s %(message)s"))
    log.addHandler(handler)
    log.info("hello")
    assert stream.getvalue() == "0 0 tests hello\n"


def test_correlation_can_be_switched_off_and_on(log):
    with otel(CORRELATION=False), captured(log) as records:
        log.info("off")
    with captured(log) as again:
        log.info("on")
    assert fields(records[0]) == dict.fromkeys(NO_TRACE)
    assert fields(again[0]) == NO_TRACE


def test_an_earlier_factory_is_called_first_and_restored():
    logs.uninstall()

    class Special(logging.LogRecord):
        pass

    logging.setLogRecordFactory(Special)
    logs.install(runtime.current().config)
    record = logging.makeLogRecord({"msg": "x"})
    assert type(record) is Special
    assert record.otelTraceID == "0"
    logs.uninstall()
    assert logging.getLogRecordFactory() is Special
    assert not hasattr(logging.makeLogRecord({}), "otelTraceID")


def test_installing_twice_makes_one_link_of_the_chain():
    factory = logging.getLogRecordFactory()
    logs.install(runtime.current().config)
    logs.install(runtime.current().config)
    assert logging.getLogRecordFactory() is factory
    logs.uninstall()
    logs.uninstall()
    assert logging.getLogRecordFactory() is not factory


def test_a_later_factory_is_not_thrown_away_and_ours_goes_inert():
    ours = logging.getLogRecordFactory()

    def later(*args, **kwargs):
        record = ours(*args, **kwargs)
        record.later = True
        return record

    logging.setLogRecordFactory(later)
    logs.uninstall()
    assert logging.getLogRecordFactory() is later
    assert logging.makeLogRecord({}).later
    assert not hasattr(logging.makeLogRecord({}), "otelTraceID")
    logs.install(runtime.current().config)
    assert logging.getLogRecordFactory() is later, "it calls ours already"
    assert logging.makeLogRecord({}).otelTraceID == "0"


def test_a_later_factory_that_forgot_ours_is_chained_in_front():
    logging.setLogRecordFactory(logging.LogRecord)
    assert not hasattr(logging.makeLogRecord({}), "otelTraceID")
    logs.install(runtime.current().config)
    assert logging.makeLogRecord({}).otelTraceID == "0"


def test_a_fault_of_the_earlier_factory_is_the_applications_and_one_of_ours_is_contained(log):
    class Slotted(logging.LogRecord):
        @property
        def otelTraceID(self):
            return "mine"

    logs.uninstall()
    logging.setLogRecordFactory(Slotted)
    logs.install(runtime.current().config)
    with captured(log) as records:
        log.info("hello")
    assert records[0].getMessage() == "hello"

    def failing(*args, **kwargs):
        raise LookupError("theirs")

    logs.uninstall()
    logging.setLogRecordFactory(failing)
    logs.install(runtime.current().config)
    with pytest.raises(LookupError, match="theirs"):
        log.info("hello")
    guard.reset()


def test_make_log_record_and_pickles_keep_the_fields_of_their_origin(log):
    with captured(log) as records, runtime.tracer().start_as_current_span("work"):
        log.info("hello", extra={"order": 7})
    origin = records[0]
    for copy in (logging.makeLogRecord(dict(origin.__dict__)), pickle.loads(pickle.dumps(origin))):
        assert fields(copy) == fields(origin)
        assert copy.order == 7
    assert fields(logging.makeLogRecord({})) == NO_TRACE


def test_each_thread_and_task_gets_the_ids_of_its_own_span(log):
    seen = {}

    def work(name):
        with runtime.tracer().start_as_current_span(name) as span:
            log.info(name)
        seen[name] = trace.format_span_id(span.get_span_context().span_id)

    async def step(name):
        with runtime.tracer().start_as_current_span(name) as span:
            await asyncio.sleep(0.001)
            log.info(name)
            await asyncio.sleep(0.001)
        seen[name] = trace.format_span_id(span.get_span_context().span_id)

    async def steps():
        await asyncio.gather(*(step(f"task {number}") for number in range(20)))

    with captured(log) as records:
        threads = [threading.Thread(target=work, args=(f"thread {number}",)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        asyncio.run(steps())
    assert {record.getMessage(): record.otelSpanID for record in records} == seen
    assert len(seen) == 28


# --- what a record becomes --------------------------------------------------------------


def test_a_record_is_exported_with_its_text_severity_place_and_trace(log, otel_logs):
    with runtime.tracer().start_as_current_span("work") as span:
        log.warning("order %d of %s", 7, "Ann", extra={"order": 7, "total": 12.5, "new": True, "tags": ["a", "b"]})
    line = sys._getframe().f_lineno - 1
    found = otel_logs.one("order 7 of Ann")
    record = found.log_record
    context = span.get_span_context()
    assert record.body == "order 7 of Ann"
    assert (record.severity_text, record.severity_number) == ("WARN", SeverityNumber.WARN)
    assert (record.trace_id, record.span_id, record.trace_flags) == (context.trace_id, context.span_id, 1)
    assert found.instrumentation_scope.name == "shop.orders"
    assert found.resource.attributes["service.name"] == "tests"
    assert record.timestamp <= record.observed_timestamp
    assert dict(record.attributes) == {
        "order": 7,
        "total": 12.5,
        "new": True,
        "tags": ("a", "b"),
        "code.file.path": __file__,
        "code.function.name": "test_a_record_is_exported_with_its_text_severity_place_and_trace",
        "code.line.number": line,
    }


@pytest.mark.parametrize(
    ("level", "text", "number"),
    [
        (0, None, SeverityNumber.UNSPECIFIED),
        (5, "Level 5", SeverityNumber.TRACE),
        (10, "DEBUG", SeverityNumber.DEBUG),
        (13, "Level 13", SeverityNumber.DEBUG4),
        (19, "Level 19", SeverityNumber.DEBUG4),
        (20, "INFO", SeverityNumber.INFO),
        (25, "Level 25", SeverityNumber.INFO4),
        (30, "WARN", SeverityNumber.WARN),
        (40, "ERROR", SeverityNumber.ERROR),
        (50, "FATAL", SeverityNumber.FATAL),
        (51, "Level 51", SeverityNumber.FATAL2),
        (1000, "Level 1000", SeverityNumber.FATAL4),
    ],
)
def test_levels_become_severities(log, otel_logs, level, text, number):
    assert logs.severity_number(level) == number
    log.setLevel(1)
    with otel(EXPORTERS=["memory"], LEVEL="DEBUG"):
        log.log(level, "x")
    if level >= 10:
        assert otel_logs[0].log_record.severity_text == text
    else:
        assert len(otel_logs) == 0


def test_the_level_of_the_settings_counts_and_a_handlers_own_is_stronger(log, otel_logs):
    with otel(EXPORTERS=["memory"], LEVEL="WARNING"):
        log.info("too low")
        log.warning("enough")
        log.addHandler(logs.OTelHandler(level=logging.DEBUG))
        log.debug("by its own handler")
    assert otel_logs.bodies == ["enough", "by its own handler"]


def test_an_exception_gives_its_attributes_and_its_own_str_may_fail(log, otel_logs):
    class Broken(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    try:
        raise ValueError("bad value")
    except ValueError:
        log.exception("first")
    try:
        raise Broken
    except Broken:
        log.exception("second")
    log.error("third", exc_info=decimal.InvalidOperation("d"), stack_info=True)
    first = otel_logs.one("first").log_record
    assert first.body == "first"
    assert first.attributes["exception.type"] == "ValueError"
    assert first.attributes["exception.message"] == "bad value"
    assert 'raise ValueError("bad value")' in first.attributes["exception.stacktrace"]
    second = otel_logs.one("second").log_record.attributes
    assert second["exception.type"].endswith("<locals>.Broken")
    assert second["exception.type"].startswith("tests.project.test_logs.")
    third = otel_logs.one("third").log_record.attributes
    assert third["exception.type"] == "decimal.InvalidOperation"
    assert "test_an_exception_gives" in third["code.stacktrace"]


def test_extra_keeps_opentelemetrys_types_and_leaves_objects_out(log, otel_logs):
    class Color(enum.Enum):
        RED = "red"

    endless: list = []
    endless.append(endless)
    log.info(
        "x",
        extra={
            "when": datetime.date(2026, 1, 2), "amount": decimal.Decimal("1.50"), "id": uuid.UUID(int=7),
            "raw": b"\x00", "path": pathlib.PurePosixPath("/a"),
            "color": Color.RED, "nested": {"a": [{"b": 2}], "n": [1, 2], "c": object()},
            "request": object(), "nothing": None, "endless": endless, 5: "key is no text",
        },
    )  # fmt: skip
    attributes = dict(otel_logs[0].log_record.attributes)
    assert attributes.pop("endless") is not None
    assert {key: value for key, value in attributes.items() if not key.startswith("code.")} == {
        "when": "2026-01-02", "amount": "1.50", "id": str(uuid.UUID(int=7)), "raw": b"\x00", "path": "/a",
        "color": "red", "nested": {"a": ({"b": 2},), "n": (1, 2)},
    }  # fmt: skip


def test_an_event_name_in_extra_becomes_the_records(log, otel_logs):
    log.info("x", extra={"event.name": "order.placed", "n": 1})
    record = otel_logs[0].log_record
    assert record.event_name == "order.placed"
    assert "event.name" not in record.attributes
    assert record.attributes["n"] == 1


def test_arguments_that_do_not_fit_leave_the_message(log, otel_logs, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    log.info("%d orders", "many")
    assert otel_logs.bodies == ["%d orders"]


def test_a_formatter_makes_the_body(log, otel_logs):
    handler = logs.OTelHandler()
    handler.setFormatter(logging.Formatter("[%(levelname)s] %(message)s"))
    log.addHandler(handler)
    log.info("hello")
    assert otel_logs.bodies == ["[INFO] hello"]


def test_a_filter_holds_and_may_change_the_record(log, otel_logs):
    handler = logs.OTelHandler()
    handler.addFilter(lambda record: "secret" not in record.getMessage())
    log.propagate = False
    log.addHandler(handler)
    log.info("public")
    log.info("secret")
    assert otel_logs.bodies == ["public"]


def test_long_bodies_are_cut(log, otel_logs):
    log.info("x" * 1_000_000)
    assert len(otel_logs[0].log_record.body) < logs.MAX_BODY_LENGTH + 20


def test_djangos_sql_log_is_exported_without_statement_and_parameters(otel_logs):
    logger = logging.getLogger("django.db.backends")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        with otel(EXPORTERS=["memory"], LEVEL="DEBUG"):
            logger.debug(
                "(%.3f) %s; args=%s; alias=%s", 0.01, "SELECT 'hunter2'", ("hunter2",), "default",
                extra={"duration": 0.01, "sql": "SELECT 'hunter2'", "params": ("hunter2",), "alias": "default"},
            )  # fmt: skip
    finally:
        logger.setLevel(level)
    assert "hunter2" not in otel_logs[0].to_json()
    assert otel_logs[0].log_record.attributes["alias"] == "default"


@pytest.mark.parametrize(
    "message",
    ["password=hunter2", "user logged in with {'password': 'hunter2'}", "GET https://bob:hunter2@h/?token=hunter2"],
)
def test_a_secret_in_message_extra_or_exception_never_reaches_the_exporter(log, otel_logs, message):
    try:
        raise ValueError(message)
    except ValueError:
        log.exception(message, extra={"api_key": "hunter2", "url": "/?code=hunter2", "form": {"token": "hunter2"}})
    found = otel_logs[0]
    assert "hunter2" not in found.to_json()
    assert "hunter2" not in repr(vars(found.log_record))
    assert found.log_record.attributes["exception.type"] == "ValueError"


# --- once, and never in a circle ----------------------------------------------------------


def test_a_record_that_two_handlers_see_is_exported_once(log, otel_logs):
    log.addHandler(logs.OTelHandler())
    logging.getLogger("shop").addHandler(logs.OTelHandler())
    try:
        log.info("once")
        log.info("once")
    finally:
        logging.getLogger("shop").handlers.clear()
    assert otel_logs.bodies == ["once", "once"]


def test_a_logger_that_does_not_propagate_needs_a_handler_of_its_own(log, otel_logs):
    log.propagate = False
    log.info("unseen")
    log.addHandler(logs.OTelHandler())
    log.info("seen")
    assert otel_logs.bodies == ["seen"]


def test_a_queue_listener_keeps_trace_and_place_and_exports_once(log, otel_logs):
    channel: queue.Queue = queue.Queue()
    # Before ours on the root: the copy in the queue is made before our handler sees the record.
    log.addHandler(logging.handlers.QueueHandler(channel))
    listener = logging.handlers.QueueListener(channel, logs.OTelHandler())
    listener.start()
    with runtime.tracer().start_as_current_span("work") as span:
        log.info("queued and direct", extra={"order": 7})
    listener.stop()
    assert otel_logs.bodies == ["queued and direct"]

    log.propagate = False
    otel_logs.clear()
    listener.start()
    with runtime.tracer().start_as_current_span("work") as span:
        log.info("queued", extra={"order": 7})
    listener.stop()
    record = otel_logs.one("queued").log_record
    assert record.span_id == span.get_span_context().span_id
    assert record.trace_id == span.get_span_context().trace_id
    assert record.trace_flags == 1
    assert record.attributes["order"] == 7
    assert record.attributes["code.function.name"] == "test_a_queue_listener_keeps_trace_and_place_and_exports_once"


def test_a_pickled_record_of_another_process_keeps_its_trace_and_traceback(log, otel_logs):
    handler = logging.handlers.SocketHandler("127.0.0.1", 1)
    log.propagate = False
    with captured(log) as records, runtime.tracer().start_as_current_span("work") as span:
        try:
            raise ValueError("bad")
        except ValueError:
            log.exception("elsewhere")
    pickled = handler.makePickle(records[0])
    received = logging.makeLogRecord(pickle.loads(pickled[4:]))
    received.process += 1
    log.addHandler(logs.OTelHandler())
    log.handle(received)
    record = otel_logs.one("elsewhere").log_record
    assert record.trace_id == span.get_span_context().trace_id
    assert "ValueError: bad" in record.attributes["exception.stacktrace"]


@pytest.mark.parametrize("name", ["django_otel", "django_otel.base", "opentelemetry", "opentelemetry.sdk.trace"])
def test_our_own_and_the_sdks_records_are_never_exported(otel_logs, name):
    logging.getLogger(name).error("about exporting")
    assert otel_logs.bodies == []


@pytest.mark.parametrize("name", ["urllib3.connectionpool", "requests", "grpc._channel"])
def test_http_clients_are_exported_except_while_exporting(otel_logs, name):
    logger = logging.getLogger(name)
    logger.warning("for the application")
    token = attach(set_value(SUPPRESS_INSTRUMENTATION_KEY, True))
    try:
        logger.warning("for the exporter")
        logging.getLogger("shop").warning("of the application, uninstrumented")
    finally:
        detach(token)
    assert otel_logs.bodies == ["for the application", "of the application, uninstrumented"]


def test_names_that_only_begin_like_ours_are_exported(otel_logs):
    logging.getLogger("django_otel_shop").warning("a")
    logging.getLogger("opentelemetryish").warning("b")
    assert otel_logs.bodies == ["a", "b"]


def test_a_record_made_while_emitting_does_not_come_round(log, otel_logs):
    class Talkative:
        def __str__(self):
            log.warning("from inside")
            return "text"

    # Ours alone, so that no other handler's formatting speaks.
    log.propagate = False
    log.addHandler(logs.OTelHandler())
    log.warning("%s", Talkative())
    assert otel_logs.bodies == ["text"]


def test_threads_lose_no_record_and_double_none(log, otel_logs):
    log.addHandler(logs.OTelHandler())

    def work(number):
        for step in range(300):
            log.info("%d.%d", number, step)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(otel_logs.bodies) == sorted(f"{number}.{step}" for number in range(8) for step in range(300))
    assert len(logs._seen) <= logs._REMEMBERED_RECORDS


def test_a_pipeline_that_fails_does_not_reach_the_application(log, monkeypatch):
    class Failing:
        def get_logger(self, name):
            raise RuntimeError("no logger")

    monkeypatch.setattr(runtime.current().logs, "find_provider", lambda: Failing())
    log.warning("hello")
    assert guard.fault_counts() == {"logs.emit": 1}
    guard.reset()


def test_a_provider_of_another_tool_gets_scrubbed_records(log, monkeypatch):
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

    exporter = InMemoryLogRecordExporter()
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    monkeypatch.setattr(runtime.current().logs, "find_provider", lambda: provider)
    log.warning("password=hunter2", extra={"token": "hunter2"})
    (found,) = exporter.get_finished_logs()
    assert "hunter2" not in found.to_json()
    provider.shutdown()


# --- the logging tree ---------------------------------------------------------------------


def test_a_dict_config_that_clears_the_root_does_not_lose_the_handler(otel_logs):
    logging.config.dictConfig(
        {"version": 1, "disable_existing_loggers": False, "root": {"handlers": [], "level": "INFO"}}
    )
    assert logs._root_handler not in logging.root.handlers
    logging.getLogger("shop.later").info("still here")
    assert otel_logs.bodies == ["still here"]
    assert logging.root.handlers.count(logs._root_handler) == 1


def test_basic_config_still_configures_the_root():
    handlers = list(logging.root.handlers)
    logging.root.handlers[:] = [logs._root_handler]
    stream = io.StringIO()
    try:
        logging.basicConfig(stream=stream, format="<%(message)s>")
        logging.getLogger("shop.basic").warning("hello")
        assert logs._root_handler in logging.root.handlers
    finally:
        logging.root.handlers[:] = handlers
    assert stream.getvalue() == "<hello>\n"


def test_uninstalling_leaves_nothing_behind(log):
    wrapped = logging.basicConfig
    logs.uninstall()
    assert logs._root_handler not in logging.root.handlers
    assert logging.basicConfig is not wrapped
    assert logging.basicConfig.__module__ == "logging"
    with captured(log) as records:
        log.info("hello")
    assert not [name for name in records[0].__dict__ if "otel" in name.lower()]


def test_a_disabled_configuration_exports_nothing_and_keeps_the_fields(log):
    logs.install(Config(enabled=False))
    with captured(log) as records:
        log.info("hello")
    assert fields(records[0]) == {**NO_TRACE, "otelServiceName": ""}
    assert logs._root_handler not in logging.root.handlers


def test_a_handler_named_in_logging_before_the_app_is_ready_is_harmless(log, monkeypatch):
    monkeypatch.setattr(runtime.current().logs, "find_provider", lambda: None)
    log.addHandler(logs.OTelHandler())
    log.error("early")
    assert guard.fault_counts() == {}
