"""Log filter for the stock exporters: errors of `requests` and gRPC contain the whole address with its secrets."""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from django_otel.base import guard
from django_otel.redaction.keys import REDACTED
from django_otel.redaction.scrub import Scrubber

if TYPE_CHECKING:
    from django_otel.config.schema import Logs, Metrics, Traces

_STOCK_LOGGERS = "opentelemetry.exporter.otlp"
#: A shorter value of a header, or password, may be a part of any message.
_SHORTEST_VALUE = 6


def find_stock_loggers() -> list[logging.Logger]:
    """Return the loggers of OpenTelemetry's OTLP exporters that have been imported."""
    return [
        logger
        for name, logger in list(logging.root.manager.loggerDict.items())
        if name.startswith(_STOCK_LOGGERS) and isinstance(logger, logging.Logger)
    ]


class _Conceal(logging.Filter):
    """Takes the secrets of receivers out of a logger's records."""

    def __init__(self) -> None:
        super().__init__()
        #: The longest first: one may be a part of another.
        self._secrets: tuple[str, ...] = ()
        self._scrubber = Scrubber()

    def add(self, secrets: set[str]) -> None:
        self._secrets = tuple(sorted({*self._secrets, *secrets}, key=len, reverse=True))

    def filter(self, record: logging.LogRecord) -> bool:
        with guard.contained("the redaction of an exporter's log record"):
            text = record.getMessage()
            clean = self._clean(text)
            if clean != text:
                record.msg, record.args = clean, ()
            if isinstance(record.exc_info, tuple) and record.exc_info[0] is not None and not record.exc_text:
                text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
                clean = self._clean(text)
                if clean != text:
                    # Formatters show it in place of the exception.
                    record.exc_text = clean
        return True

    def _clean(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        return self._scrubber.text(text)


def conceal(settings: Traces | Metrics | Logs) -> None:
    """Redact the secrets of a receiver's address and headers in the stock exporters' log records from now on."""
    secrets = {value for value in settings.headers.values() if len(value) >= _SHORTEST_VALUE}
    if settings.endpoint is not None:
        secrets |= _find_secrets(settings.endpoint)
    for logger in find_stock_loggers():
        found = next((each for each in logger.filters if isinstance(each, _Conceal)), None)
        if found is None:
            found = _Conceal()
            logger.addFilter(found)
        found.add(secrets)


def _find_secrets(endpoint: str) -> set[str]:
    """Return the user information and the query of an address, as written and without percent-encoding."""
    parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
    found = {parts.netloc.rpartition("@")[0], parts.query}
    if len(parts.password or "") >= _SHORTEST_VALUE:
        found.add(str(parts.password))
    return {text for secret in found if secret for text in (secret, unquote(secret))}
