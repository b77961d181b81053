"""The filter of a trace's spans and the collapsed spans; both are part of the page's address."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from django.utils.functional import Promise
from django.utils.translation import gettext, gettext_lazy

from django_otel.console.stored_spans import attributes_of, is_error, kind_of, whole_number
from django_otel.tracestore.search import BadQuery, Condition, duration_fits, parse_query

#: Most spans that are collapsed; more would not fit into an address.
MAX_CLOSED = 60
_SPAN_ID = re.compile(r"[0-9a-f]{16}")
_MAX_QUERY = 500
#: Kinds that spans are filtered by, those of a request's layers first.
KINDS: dict[str, Promise] = {
    "database": gettext_lazy("database"),
    "cache": gettext_lazy("cache"),
    "template": gettext_lazy("template"),
    "client": gettext_lazy("outgoing request"),
    "middleware": gettext_lazy("middleware"),
    "server": gettext_lazy("request"),
    "business": gettext_lazy("business event"),
    "queue": gettext_lazy("message"),
    "internal": gettext_lazy("span"),
}
#: Names for what a span has under another one.
_ALIASES = {"status": "http.response.status_code"}


@dataclass(frozen=True, slots=True)
class SpanFilter:
    """Which spans are shown, and how. `values` are those of the address, without the collapsed spans."""

    conditions: tuple[Condition, ...] = ()
    kind: str = ""
    only_errors: bool = False
    closed: tuple[str, ...] = ()
    hides_logs: bool = False
    values: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""

    @property
    def is_active(self) -> bool:
        """Return whether spans may be left out."""
        return bool(self.conditions or self.kind or self.only_errors)

    def fits(self, span: Mapping[str, Any], logs: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether a span is chosen; `logs` are its log records, whose text is searched, too."""
        if self.only_errors and not is_error(span):
            return False
        if self.kind and layer_of(span) != self.kind:
            return False
        return all(_fits(condition, span, logs) for condition in self.conditions)

    def address(self, **more: object) -> str:
        """The address of the page with this filter, and other values in it."""
        values = {**self.values, **({"closed": ".".join(self.closed)} if self.closed else {}), **more}
        return "?" + urlencode({name: value for name, value in values.items() if value != ""})

    def turned(self, span_id: str) -> str:
        """The address with this span collapsed, or no longer."""
        is_closed = span_id in self.closed
        closed = [one for one in self.closed if one != span_id] + ([] if is_closed else [span_id])
        return f"{self.address(closed='.'.join(closed[-MAX_CLOSED:]))}#s-{span_id}"


def layer_of(span: Mapping[str, Any]) -> str:
    """One of `KINDS`."""
    return "middleware" if str(span.get("name", "")).startswith("middleware ") else kind_of(span)


def kinds_in(spans: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The kinds that occur, with their names."""
    found = {layer_of(span) for span in spans}
    return [(kind, str(name)) for kind, name in KINDS.items() if kind in found]


def _fits(condition: Condition, span: Mapping[str, Any], logs: Sequence[Mapping[str, Any]]) -> bool:
    key = _ALIASES.get(condition.key, condition.key)
    if not key and any(condition.value.lower() in str(log.get("body", "")).lower() for log in logs):
        return True
    if key == "duration":
        duration_ns = whole_number(span.get("end")) - whole_number(span.get("start"))
        return duration_fits(condition, max(0, duration_ns))
    whole: Any = {
        **span, "name": str(span.get("name", "")), "kind": str(span.get("kind", "")),
        "attributes": {**attributes_of(span), "service": span.get("service"), "service.name": span.get("service")},
    }  # fmt: skip
    try:
        return Condition(key, condition.operator, condition.value).fits(whole)
    except (KeyError, TypeError, AttributeError):
        # Another program wrote it.
        return False


def parse(query: Mapping[str, object]) -> SpanFilter:
    """Read the filter of a query string; an invalid one filters nothing, and is named in `problem`."""
    given = str(query.get("find", "")).strip()[:_MAX_QUERY]
    kind = str(query.get("kind", ""))
    only_errors, hides_logs = (str(query.get(name, "")) not in ("", "0") for name in ("errors", "without_logs"))
    problem, conditions = "", list[Condition]()
    try:
        conditions = parse_query(given)
    except BadQuery as error:
        problem = gettext(
            "“%(piece)s” is not valid. Expected words, or conditions such as http.route=/orders/, "
            "business.total>100 or db.query.text~orders."
        ) % {"piece": error.args[0]}
    ids = dict.fromkeys(str(query.get("closed", ""))[: 17 * MAX_CLOSED].split("."))
    values = {
        "find": given, "kind": kind if kind in KINDS else "", "errors": "1" if only_errors else "",
        "without_logs": "1" if hides_logs else "",
    }  # fmt: skip
    return SpanFilter(
        tuple(conditions), values["kind"], only_errors, tuple(one for one in ids if _SPAN_ID.fullmatch(one)),
        hides_logs, {name: value for name, value in values.items() if value}, problem,
    )  # fmt: skip
