"""What exporters log of a receiver that cannot be reached: no part of its address or headers that is a secret."""

from __future__ import annotations

import logging
import socket

import pytest

from django_otel.config.parse import parse
from django_otel.export import exporters

SECRET = "hunter2" + "Xq9Zk"


@pytest.fixture
def closed():
    """The port of a socket that nothing listens on, and no other process takes."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.mark.parametrize("kind", exporters.OTLP_KINDS)
@pytest.mark.parametrize("signal", ["traces", "logs"])
@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:{}/x?tenant={}", "http://127.0.0.1:{}/?a=1&api-key={}%2F", "http://bob:{1}@127.0.0.1:{0}/x"],
)
def test_an_address_is_logged_without_its_secrets(kind, signal, address, closed, caplog):
    endpoint = address.format(closed, SECRET)
    config = parse({signal.upper(): {"ENDPOINT": endpoint, "EXPORTERS": [kind], "TIMEOUT_S": 60}}, {})
    exporter = exporters.build_otlp_exporter(kind, signal, config)

    class ShutDown(logging.Handler):
        """Ends the exporter before it waits for its next try."""

        def emit(self, record):
            # Once: a second end is worth a warning.
            if record.levelno >= logging.WARNING and not ended:
                ended.append(record)
                exporter.shutdown()

    ended = []
    handler = ShutDown()
    logging.getLogger("opentelemetry.exporter.otlp").addHandler(handler)
    try:
        exporter.export([])
    finally:
        logging.getLogger("opentelemetry.exporter.otlp").removeHandler(handler)
    assert SECRET not in caplog.text
    # What the operator needs to find it is there.
    assert f"port={closed}" in caplog.text or f"127.0.0.1:{closed}" in caplog.text


def test_an_exception_is_logged_without_the_secrets_of_a_header(caplog):
    config = parse({"TRACES": {"HEADERS": {"x-tenant": SECRET}, "EXPORTERS": ["otlp"]}}, {})
    exporters.build_otlp_exporter("otlp", "traces", config).shutdown()
    logger = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    try:
        raise ValueError(f"invalid value {SECRET}")
    except ValueError:
        logger.exception("Failed with %s", {"x-tenant": SECRET})
    assert SECRET not in caplog.text
    assert "Failed with {'x-tenant': '[redacted]'}" in caplog.text
    assert "ValueError: invalid value [redacted]" in caplog.text


def test_a_logger_has_one_filter_however_many_exporters_are_built():
    for number in range(3):
        config = parse({"TRACES": {"ENDPOINT": f"http://127.0.0.1:9/?k={number}", "EXPORTERS": ["otlp"]}}, {})
        exporters.build_otlp_exporter("otlp", "traces", config).shutdown()
    logger = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    assert [type(each).__name__ for each in logger.filters].count("_Conceal") == 1
