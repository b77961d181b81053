"""Parts of a trace's page beside its waterfall: critical path, flame view, the request as a command."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext

from django_otel.base.text import visible
from django_otel.console import text
from django_otel.console.answers import in_tree_order
from django_otel.console.stored_spans import attributes_of, is_error, kind_of, statement_of, whole_number
from django_otel.redaction.keys import REDACTED
from django_otel.tracestore.otlp import SpanRecord
from django_otel.tracestore.reader import Trace

#: Most spans of the flame view; the longest ones of a larger trace.
MAX_FLAME = 500
_MAX_DEPTH = 40
_ROW = 18


@dataclass(frozen=True, slots=True)
class Step:
    """A span of the critical path, and how much of the trace's time is its own on the path."""

    span_id: str
    name: str
    duration: str
    share: str


def plain(spans: Sequence[SpanRecord]) -> list[SpanRecord]:
    """The spans with every field that is read here, of its type, since other programs write spans too."""
    found: list[SpanRecord] = []
    for span in spans:
        start = whole_number(span.get("start"))
        made: SpanRecord = {
            "id": str(span.get("id", "")), "name": str(span.get("name", "")), "kind": str(span.get("kind", "")),
            "start": start, "end": max(start, whole_number(span.get("end"))),
            "attributes": dict(attributes_of(span)), "parent": str(span.get("parent", "")),
            "service": str(span.get("service", "")), "status": str(span.get("status", "")),
        }  # fmt: skip
        found.append(made)
    return found


def find_root(spans: Sequence[SpanRecord]) -> SpanRecord | None:
    """The request: the first server span, else the first span."""
    return next((span for span in spans if span["kind"] == "SERVER"), spans[0] if spans else None)


def critical_path(spans: Sequence[SpanRecord]) -> list[Step]:
    """The spans that the request waited for, from its beginning: shortening another one does not shorten it.

    From the end of the request backwards: the child that ended last, what ran before that child began, and so on.
    """
    root = find_root(spans)
    if root is None:
        return []
    children: dict[str, list[SpanRecord]] = {}
    for span in spans:
        children.setdefault(span.get("parent", ""), []).append(span)
    own: dict[str, int] = {}
    order: list[SpanRecord] = []
    seen: set[str] = set()
    waiting = [(root, root["end"])]
    while waiting:
        span, end = waiting.pop()
        if span["id"] in seen:
            continue
        seen.add(span["id"])
        order.append(span)
        end = min(end, span["end"])
        for child in sorted(children.get(span["id"], ()), key=lambda child: -child["end"]):
            if child is span or child["start"] >= end or child["end"] <= span["start"] or child["id"] in seen:
                continue
            reached = min(child["end"], end)
            own[span["id"]] = own.get(span["id"], 0) + max(0, end - reached)
            waiting.append((child, reached))
            end = max(child["start"], span["start"])
        own[span["id"]] = own.get(span["id"], 0) + max(0, end - span["start"])
    whole_ns = max(1, root["end"] - root["start"])
    steps = [span for span in order if own.get(span["id"], 0) * 100 >= whole_ns]
    steps.sort(key=lambda span: span["start"])
    return [
        Step(
            span["id"], span["name"] or gettext("(no name)"), text.duration(own[span["id"]]),
            text.share(min(1.0, own[span["id"]] / whole_ns)),
        )
        for span in steps
    ]  # fmt: skip


def draw_flame(spans: Sequence[SpanRecord], *, is_map: bool = False) -> SafeString:
    """The spans by depth and time. `is_map`: a few pixels high and without links, over the whole trace."""
    if not spans:
        return SafeString("")
    begin, end = min(span["start"] for span in spans), max(max(span["end"], span["start"]) for span in spans)
    whole_ns = max(1, end - begin)
    depths = {span["id"]: min(depth, _MAX_DEPTH) for span, depth in in_tree_order(spans)}
    chosen = sorted(spans, key=lambda span: span["start"] - span["end"])[:MAX_FLAME]
    row = 4 if is_map else _ROW
    height = row * (1 + max(depths[span["id"]] for span in chosen))
    parts = []
    for span in sorted(chosen, key=lambda span: span["start"]):
        x = (span["start"] - begin) / whole_ns * 1000
        width = max(0.8, (span["end"] - span["start"]) / whole_ns * 1000)
        y = depths[span["id"]] * row
        colour = "bad" if is_error(span) else {"database": "c0", "cache": "c3", "client": "c4"}.get(kind_of(span), "c1")
        bar = (
            f'<rect class="otel-flame otel-{colour}" x="{x:.2f}" y="{y}" width="{min(width, 1000 - x):.2f}" '
            f'height="{row - 1}"/>'
        )
        if is_map:
            parts.append(bar)
            continue
        name = escape(visible(f"{span['name']}, {text.duration(span['end'] - span['start'])}"))
        parts.append(
            f'<a href="?span={quote(span["id"])}#s-{quote(span["id"])}" aria-label="{name}">'
            f"<title>{name}</title>{bar}</a>"
        )
    hidden = ' aria-hidden="true"' if is_map else f' role="group" aria-label="{escape(gettext("Flame view"))}"'
    return mark_safe(  # noqa: S308 (numbers, classes of ours, and what is escaped above)
        f'<svg class="otel-flames{" otel-minimap" if is_map else ""}" viewBox="0 0 1000 {height}" '
        f'preserveAspectRatio="none" height="{height}" width="100%"{hidden}>{"".join(parts)}</svg>'
    )


def curl_of(spans: Sequence[SpanRecord]) -> str:
    """Return the request as a curl command; "" without one. Redacted values, bodies and cookies are left out."""
    root = find_root(spans)
    if root is None:
        return ""
    known = root["attributes"]
    method, path = str(known.get("http.request.method", "")), str(known.get("url.path", ""))
    if not method.isalpha() or not path.startswith("/") or REDACTED in path:
        return ""
    scheme = "https" if known.get("url.scheme") == "https" else "http"
    host = str(known.get("server.address") or "localhost")
    port = known.get("server.port")
    if isinstance(port, int) and port != {"https": 443, "http": 80}[scheme]:
        host = f"{host}:{port}"
    query = "&".join(part for part in str(known.get("url.query", "")).split("&") if part and REDACTED not in part)
    url = f"{scheme}://{host}{quote(path, safe='/%:@!$&()*+,;=~-._')}{f'?{query}' if query else ''}"
    parts = ["curl", "-X", method.upper(), url]
    for key, value in sorted(known.items()):
        name = key.removeprefix("http.request.header.")
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        if name != key and REDACTED not in shown and name.lower() not in ("cookie", "authorization", "content-length"):
            parts += ["-H", f"{name}: {shown}"]
    return " ".join(shlex.quote("".join(part.split("\0"))) for part in parts)


# --- Two traces. ---


@dataclass(frozen=True, slots=True)
class Difference:
    """Spans of one name in two traces: how many, and how long together."""

    name: str
    statement: str
    counts: tuple[int, int]
    durations: tuple[str, str]
    change: str
    level: str


def compare(one: Trace, other: Trace) -> list[Difference]:
    """The spans of two traces by service, name and statement, the largest difference in time first."""
    found: dict[tuple[str, str, str], list[list[int]]] = {}
    for place, trace in enumerate((one, other)):
        for span in plain(trace.spans):
            statement = statement_of(span) if kind_of(span) == "database" else ""
            sums = found.setdefault((span.get("service", ""), span["name"], statement), [[0, 0], [0, 0]])
            sums[place][0] += 1
            sums[place][1] += max(0, span["end"] - span["start"])
    ordered = sorted(found.items(), key=lambda item: -abs(item[1][1][1] - item[1][0][1]))
    return [_difference(name, statement, sums) for (_, name, statement), sums in ordered]


def _difference(name: str, statement: str, sums: Sequence[Sequence[int]]) -> Difference:
    change_ns = sums[1][1] - sums[0][1]
    sign = "+" if change_ns > 0 else "\u2212" if change_ns < 0 else ""
    return Difference(
        name or gettext("(no name)"),
        text.shorten(text.one_line(statement), 160),
        (sums[0][0], sums[1][0]),
        (text.duration(sums[0][1]), text.duration(sums[1][1])),
        f"{sign}{text.duration(abs(change_ns))}",
        "bad" if change_ns > 0 else "good" if change_ns < 0 else "",
    )
