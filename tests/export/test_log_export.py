"""Log export end to end: a process with real Django settings and LOGGING, and a real OTLP receiver."""

from __future__ import annotations

import json
import sys
import textwrap

import pytest

from tests import services, sizes

PREAMBLE = """
import json, logging, logging.config, sys, threading, time
import django
from django.conf import settings

early = logging.getLogger("shop.early")
early.warning("before setup")

options = json.loads(sys.argv[1])

def page(request, pk):
    from django.http import HttpResponse
    logging.getLogger("shop.views").warning("in the view")
    return HttpResponse("ok")

def broken(request):
    raise ValueError("gateway refused: password=hunter2 https://bob:hunter2@pay/?card_number=hunter2")

from django.urls import path
urlpatterns = [path("page/<int:pk>/", page), path("broken/", broken)]

settings.configure(
    SECRET_KEY="x",
    DEBUG=options.pop("debug", False),
    ALLOWED_HOSTS=["testserver"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["django_otel"],
    MIDDLEWARE=["django_otel.middleware.OTelMiddleware"],
    DATABASES={},
    **options,
)
django.setup()
from django_otel import runtime
from django_otel.logs import OTelHandler

def is_attached():
    return sum(type(handler) is OTelHandler for handler in logging.root.handlers)
"""


def run(code: str, endpoint: str, *, timeout_s: int = 60, logs: dict | None = None, **options):
    """Run `code` in a new process after the preamble; its result, with what it printed."""
    otel = {
        "SERVICE_NAME": "shop",
        "LOGS": {"EXPORTERS": ["otlp"], "ENDPOINT": endpoint, **(logs or {})},
        "TRACES": {"EXPORTERS": ["otlp"], "ENDPOINT": endpoint, "BATCH": {"DELAY_S": 0.2}},
    }
    code = PREAMBLE + textwrap.dedent(code)
    command = [sys.executable, "-W", "error", "-c", code, json.dumps({"OTEL": otel, **options})]
    return services.run_program(command, services.server_env(), timeout_s=timeout_s)


def bodies(receiver) -> list[str]:
    return [services.value_of(record.body) for _, record in receiver.logs()]


def assert_ended_well(done) -> None:
    assert done.returncode == 0, done.stderr
    assert "Logging error" not in done.stderr
    assert "contained" not in done.stderr


def test_without_any_logging_settings_records_are_exported_and_still_shown(receiver):
    done = run("logging.getLogger('shop').warning('order %d', 7, extra={'order': 7})", receiver.url)
    assert_ended_well(done)
    ((resource, record),) = receiver.logs()
    assert services.value_of(record.body) == "order 7"
    assert resource["service.name"] == "shop"
    attributes = services.attributes_of(record)
    assert attributes["order"] == 7
    assert attributes["code.file.path"] == "<string>"
    assert record.severity_text == "WARN"
    assert record.severity_number == 13
    assert record.trace_id == b""
    # Python shows warnings that no handler saw on stderr; our handler on the root must not change that.
    assert "order 7\n" in done.stderr


CONSOLE = {"class": "logging.StreamHandler"}
SHAPES = {
    "root to the console": {"handlers": {"c": CONSOLE}, "root": {"handlers": ["c"], "level": "INFO"}},
    "existing loggers disabled": {
        "disable_existing_loggers": True,
        "handlers": {"c": CONSOLE},
        "root": {"handlers": ["c"], "level": "INFO"},
    },
    "existing loggers kept": {"disable_existing_loggers": False, "root": {"handlers": [], "level": "INFO"}},
    "loggers only": {"handlers": {"c": CONSOLE}, "loggers": {"shop": {"handlers": ["c"], "level": "INFO"}}},
    "ours named on the root": {
        "handlers": {"otel": {"class": "django_otel.logs.OTelHandler"}},
        "root": {"handlers": ["otel"], "level": "INFO"},
    },
    "ours named on a logger that does not propagate": {
        "handlers": {"otel": {"class": "django_otel.logs.OTelHandler", "level": "INFO"}, "c": CONSOLE},
        "loggers": {"shop": {"handlers": ["c", "otel"], "level": "INFO", "propagate": False}},
    },
    "ours named everywhere": {
        "handlers": {"otel": {"class": "django_otel.logs.OTelHandler"}},
        "root": {"handlers": ["otel"], "level": "INFO"},
        "loggers": {"shop": {"handlers": ["otel"], "level": "INFO"}, "shop.cart": {"handlers": ["otel"]}},
    },
    "a format with our fields": {
        "formatters": {"f": {"format": "%(otelTraceID)s %(otelServiceName)s %(message)s"}},
        "handlers": {"c": {**CONSOLE, "formatter": "f"}},
        "root": {"handlers": ["c"], "level": "INFO"},
    },
}


@pytest.mark.parametrize("shape", sizes.few(SHAPES, 3))
def test_records_are_exported_once_under_every_shape_of_logging(receiver, shape):
    done = run(
        """
        logging.getLogger("shop.cart").info("first")
        logging.getLogger("shop.cart").debug("below the level")
        """,
        receiver.url,
        LOGGING={"version": 1, **SHAPES[shape]},
    )
    assert_ended_well(done)
    assert bodies(receiver) == ["first"]


FILE_CONFIG = (
    "import io; logging.config.fileConfig(io.StringIO("
    "'[loggers]\\nkeys=root\\n[handlers]\\nkeys=\\n[formatters]\\nkeys=\\n[logger_root]\\nlevel=INFO\\nhandlers=\\n'))"
)


@pytest.mark.parametrize(
    "again",
    sizes.few(
        [
            "logging.config.dictConfig({'version': 1, 'root': {'handlers': [], 'level': 'INFO'}})",
            "logging.config.dictConfig({'version': 1, 'disable_existing_loggers': False, 'root': {'level': 'INFO'}})",
            "logging.config.dictConfig({'version': 1, 'incremental': True, 'root': {'level': 'INFO'}})",
            "logging.basicConfig(level='INFO', force=True)",
            "logging.root.handlers.clear()",
            FILE_CONFIG,
        ],
        3,
    ),
)
def test_a_configuration_after_setup_does_not_lose_the_export(receiver, again):
    done = run(
        f"""
        logging.root.setLevel("INFO")
        logging.getLogger("shop").info("before")
        {again}
        logging.getLogger("shop.new").info("after")
        logging.getLogger("shop.new").info("and once more")
        print("attached", is_attached())
        """,
        receiver.url,
    )
    assert_ended_well(done)
    assert bodies(receiver) == ["before", "after", "and once more"]
    assert "attached 1" in done.stdout


def test_basic_config_after_setup_still_gives_the_project_its_console(receiver):
    done = run(
        """
        logging.basicConfig(level="INFO", format="<%(levelname)s %(message)s>")
        logging.getLogger("shop").info("hello")
        """,
        receiver.url,
    )
    assert_ended_well(done)
    assert "<INFO hello>\n" in done.stderr
    assert bodies(receiver) == ["hello"]


def test_a_log_line_of_a_request_carries_the_ids_of_its_span(receiver):
    done = run(
        """
        from django.test import Client
        print(Client().get("/page/7/").status_code)
        """,
        receiver.url,
        LOGGING={"version": 1, "formatters": {"f": {"format": "%(otelTraceID)s %(otelSpanID)s %(message)s"}},
                 "handlers": {"c": {**CONSOLE, "formatter": "f"}}, "root": {"handlers": ["c"], "level": "INFO"}},
    )  # fmt: skip
    assert_ended_well(done)
    ((_, span),) = receiver.spans()
    (record,) = [record for _, record in receiver.logs() if services.value_of(record.body) == "in the view"]
    assert (record.trace_id, record.span_id) == (span.trace_id, span.span_id)
    assert record.flags == 1
    assert f"{span.trace_id.hex()} {span.span_id.hex()} in the view" in done.stderr


def test_a_secret_in_an_unhandled_exception_reaches_no_exporter(receiver):
    done = run(
        """
        from django.test import Client
        Client(raise_request_exception=False).get("/broken/?token=hunter2")
        logging.getLogger("shop").error("login", extra={"form": {"password": "hunter2"}, "authorization": "hunter2"})
        """,
        receiver.url,
    )
    assert done.returncode == 0, done.stderr
    assert len(receiver.logs()) >= 2
    assert receiver.spans()
    (failure,) = [record for _, record in receiver.logs() if "exception.stacktrace" in services.attributes_of(record)]
    assert services.attributes_of(failure)["exception.type"] == "ValueError"
    for _, _, message in receiver.requests:
        assert b"hunter2" not in message.SerializeToString()


def test_a_failing_collector_makes_no_circle_and_its_noise_is_not_exported(receiver):
    receiver.status = 503
    done = run(
        """
        logging.root.setLevel("DEBUG")
        for number in range(5):
            logging.getLogger("shop").info("record %d", number)
            runtime.flush(0.5)
        time.sleep(2)
        """,
        receiver.url,
        logs={"LEVEL": "DEBUG", "TIMEOUT_S": 1},
    )
    assert done.returncode == 0, done.stderr
    # Everything that was ever tried, retries included, is what the application said.
    assert set(bodies(receiver)) <= {f"record {number}" for number in range(5)} | {"before setup"}
    assert len(receiver.requests) < 40
    assert done.stderr.count("\n") < 200


def test_a_collector_that_is_not_there_makes_no_circle():
    endpoint = f"http://127.0.0.1:{services.free_port()}"
    done = run(
        """
        from django_otel.export.log_processors import SwitchLogProcessor
        emitted = []
        original = SwitchLogProcessor.on_emit
        def counting(self, record):
            emitted.append(record.instrumentation_scope.name)
            original(self, record)
        SwitchLogProcessor.on_emit = counting
        logging.root.setLevel("DEBUG")
        for number in range(20):
            logging.getLogger("shop").info("record %d", number)
            runtime.flush(0.2)
        print(json.dumps(emitted))
        """,
        endpoint,
        logs={"LEVEL": "DEBUG", "TIMEOUT_S": 1},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["shop"] * 20
    assert done.stderr.count("\n") < 300


def test_records_of_threads_and_forked_children_arrive_once(receiver):
    done = run(
        """
        import os
        logger = logging.getLogger("shop")
        logger.setLevel("INFO")
        def work(number):
            for step in range(50):
                logger.info("thread %d.%d", number, step)
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        runtime.flush(5)
        children = []
        for number in range(2):
            pid = os.fork()
            if pid == 0:
                logger.info("child %d", number)
                os._exit(0 if runtime.flush(5) else 1)
            children.append(pid)
        assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
        logger.info("parent")
        """,
        receiver.url,
    )
    assert_ended_well(done)
    expected = [f"thread {number}.{step}" for number in range(4) for step in range(50)] + [
        "child 0",
        "child 1",
        "parent",
    ]
    assert sorted(bodies(receiver)) == sorted(expected)
    instances = {resource["service.instance.id"] for resource, _ in receiver.logs()}
    assert len(instances) == 3, "each process has an identity of its own"


def test_nothing_is_attached_when_no_exporter_is_asked_for(receiver):
    done = run(
        """
        logging.getLogger("shop").warning("hello")
        print("attached", is_attached(), logging.makeLogRecord({}).otelTraceID)
        """,
        receiver.url,
        logs={"EXPORTERS": []},
    )
    assert_ended_well(done)
    assert "attached 0 0" in done.stdout
    assert receiver.logs() == []


def test_the_console_exporter_prints_scrubbed_records():
    done = run(
        "logging.getLogger('shop').warning('password=hunter2 kept')",
        "http://127.0.0.1:9",
        logs={"EXPORTERS": ["console"]},
    )
    assert done.returncode == 0, done.stderr
    assert '"body": "password=[redacted] kept"' in done.stdout


def test_a_strict_collector_takes_what_we_send(rotel):
    done = run(
        """
        with runtime.tracer().start_as_current_span("work"):
            try:
                raise ValueError("bad")
            except ValueError:
                logging.getLogger("shop").exception(
                    "order failed", extra={"event.name": "order.failed", "nested": {"a": [1, "b", None]}, "raw": b"x"}
                )
        assert runtime.flush(10)
        """,
        rotel.http_url,
    )
    assert_ended_well_but_for_the_traceback(done)
    services.wait_until(lambda: "order failed" in rotel.log, what="the record in rotel's log")
    assert "exception.stacktrace" in rotel.log


def assert_ended_well_but_for_the_traceback(done) -> None:
    assert done.returncode == 0, done.stderr
    assert "contained" not in done.stderr
