"""Log record fields that a format of `LOGGING` may use before telemetry has started. Imports no OpenTelemetry code."""

from __future__ import annotations

import logging
from collections.abc import Callable

RecordFactory = Callable[..., logging.LogRecord]


def build_outside_fields(service_name: str) -> dict[str, object]:
    """Return the fields of a record that is made outside of any span."""
    return {"otelSpanID": "0", "otelTraceID": "0", "otelTraceSampled": False, "otelServiceName": service_name}


class EarlyFactory:
    """A log record factory: the earlier one, then the fields as outside of any span. `logs` replaces it."""

    def __init__(self, earlier: RecordFactory) -> None:
        self.earlier = earlier
        self._fields = build_outside_fields("")

    def __call__(self, *args: object, **kwargs: object) -> logging.LogRecord:
        record = self.earlier(*args, **kwargs)
        record.__dict__.update(self._fields)
        return record


def stand_by() -> None:
    """Give every record the fields from now on: the models of other apps may log when they are imported."""
    current = logging.getLogRecordFactory()
    # Nothing is certain about a factory of the project's, so only the plain one is covered this early.
    if current is logging.LogRecord:
        logging.setLogRecordFactory(EarlyFactory(current))
