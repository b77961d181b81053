"""Stored spans: kind, failure and parts of each, also of faulty senders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.utils.translation import gettext, gettext_lazy

from django_otel.console import text

#: The event of the layer that counts equal queries, `instrumentation.n_plus_one`.
N_PLUS_ONE = "django.n_plus_one"


def is_error(span: Mapping[str, Any]) -> bool:
    return span.get("status") == "ERROR" or has_exception(span)


def is_bad_log(log: Mapping[str, Any]) -> bool:
    return whole_number(log.get("severity")) >= 17


def failure_of(span: Mapping[str, Any]) -> str:
    for event in list_of(span.get("events")):
        if event.get("name") == "exception":
            known = attributes_of(event)
            message = text.one_line(str(known.get("exception.message", "")))[:200]
            return f"{known.get('exception.type', '')}: {message}".strip(": ")
    attributes = attributes_of(span)
    return str(span.get("description") or attributes.get("error.type", ""))[:200]


def has_exception(span: Mapping[str, Any]) -> bool:
    return any(event.get("name") == "exception" for event in list_of(span.get("events")))


def advice_of(spans: Sequence[Mapping[str, Any]]) -> list[tuple[int, str, str, str]]:
    """Return the repeated queries that were detected in a trace: count, statement, place and cure of each."""
    events = (event for span in spans for event in list_of(span.get("events")) if event.get("name") == N_PLUS_ONE)
    found = []
    for event in events:
        known = attributes_of(event)
        advice = " ".join(str(known[key]) for key in (f"{N_PLUS_ONE}.model", f"{N_PLUS_ONE}.advice") if known.get(key))
        statement = text.one_line(str(known.get("db.query.text", "")))
        found.append((whole_number(known.get(f"{N_PLUS_ONE}.count")), statement, text.source_line(known), advice))
    return found


def note_of(span: Mapping[str, Any], kind: str) -> str:
    """Return a line with details, shown below the name."""
    attributes = attributes_of(span)
    if kind == "database":
        statement = text.one_line(str(attributes.get("db.query.text", "")))
        # "BEGIN" needs no "BEGIN IMMEDIATE" below it.
        return statement[:300] if len(statement) > len(str(span.get("name", ""))) + 12 else ""
    if kind == "client":
        return text.one_line(str(attributes.get("url.full") or attributes.get("server.address", "")))[:300]
    return text.source_line(attributes)


def kind_of(span: Mapping[str, Any]) -> str:
    """The class of a span's colour."""
    attributes = attributes_of(span)
    if "business.event" in attributes:
        return "business"
    if system := database_system(attributes):
        return "cache" if system in ("redis", "valkey", "memcached") else "database"
    name = str(span.get("name", ""))
    if name.startswith("cache "):
        return "cache"
    if name.startswith("render "):
        return "template"
    return {"CLIENT": "client", "SERVER": "server", "PRODUCER": "queue", "CONSUMER": "queue"}.get(
        str(span.get("kind", "INTERNAL")), "internal"
    )


def kind_text(span: Mapping[str, Any], kind: str) -> str:
    """The kind of a span in words, for a screen reader."""
    if kind == "database":
        return gettext("%(system)s query") % {"system": database_system(attributes_of(span))}
    if kind == "queue" and span.get("kind") == "CONSUMER":
        return gettext("message processed")
    return str(_KIND_TEXTS[kind])


_KIND_TEXTS = {
    "business": gettext_lazy("business event"),
    "cache": gettext_lazy("cache"),
    "template": gettext_lazy("template"),
    "client": gettext_lazy("outgoing request"),
    "server": gettext_lazy("request"),
    "queue": gettext_lazy("message sent"),
    "internal": gettext_lazy("span"),
}


def database_system(attributes: Mapping[str, Any]) -> str:
    return str(attributes.get("db.system.name", attributes.get("db.system", "")))


def statement_of(span: Mapping[str, Any]) -> str:
    attributes = attributes_of(span)
    return str(attributes.get("db.query.text") or attributes.get("db.statement") or span.get("name", ""))


def is_reading(statement: str) -> bool:
    return statement.lstrip(" (").upper().startswith(("SELECT", "WITH"))


def attributes_of(item: Mapping[str, Any]) -> Mapping[str, Any]:
    found = item.get("attributes")
    return found if isinstance(found, Mapping) else {}


def list_of(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def whole_number(value: object) -> int:
    # JSON of another hand may have NaN and numbers beyond any time.
    return int(value) if isinstance(value, int | float) and abs(value) < 1e19 else 0
