"""The page of tasks: how often each was sent and ran, outcomes, wait and duration, and the last runs.

Numbers are those of `/metrics` at this moment, over all worker processes; runs are those of stored traces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, reverse
from django.utils.safestring import SafeString
from django.utils.translation import gettext, gettext_lazy

from django_otel import runtime
from django_otel.console import stored_spans, text
from django_otel.console.entries import ConsoleAdmin
from django_otel.console.page import console_page, read_store, trace_addresses
from django_otel.console.quantiles import quantile
from django_otel.metrics.model import Family, HistogramValue
from django_otel.tracestore.processor import StoreProcessor
from django_otel.tracestore.reader import StoreReader, TraceFilter
from django_otel.tracestore.search import parse_query

#: Runs that are listed, and traces in which they are looked for.
MAX_RUNS = 30
#: Every outcome has this letter: what is searched for is the attribute.
_ANY_OUTCOME = "django.task.outcome~e"
_FAILED = "django.task.outcome=failed"
OUTCOMES = {
    "succeeded": gettext_lazy("succeeded"),
    "failed": gettext_lazy("failed"),
    "retried": gettext_lazy("retried"),
    "rejected": gettext_lazy("rejected"),
}


@dataclass(slots=True)
class Times:
    """Durations of several series, added up."""

    buckets: list[float] = field(default_factory=list)
    bounds: tuple[float, ...] = ()
    sum_s: float = 0.0

    def add(self, value: HistogramValue) -> None:
        """Add one series."""
        known = self.buckets
        self.buckets = [*map(sum, zip(known, value.buckets, strict=True))] if known else list(value.buckets)
        self.bounds = value.bounds
        self.sum_s += value.sum

    def __str__(self) -> str:
        """Return mean and 95th percentile; "-" without any."""
        count = sum(self.buckets)
        if not count:
            return "-"
        p95 = quantile(self.buckets, self.bounds, 0.95)
        return f"{text.seconds(self.sum_s / count)} / {text.seconds(p95) if p95 is not None else '-'}"


@dataclass(slots=True)
class TaskRow:
    """One task in one queue; `outcomes` counts its runs."""

    backend: str
    name: str
    queue: str
    sent: float = 0.0
    outcomes: dict[str, float] = field(default_factory=dict)
    duration: Times = field(default_factory=Times)
    wait: Times = field(default_factory=Times)
    address: str = ""
    failed_address: str = ""

    def add(self, name: str, outcome: str, value: object) -> None:
        """Add one series of the metric `name`."""
        if isinstance(value, int | float):
            self.sent += value
        elif isinstance(value, HistogramValue) and name == "django.task.wait":
            self.wait.add(value)
        elif isinstance(value, HistogramValue):
            self.duration.add(value)
            self.outcomes[outcome] = self.outcomes.get(outcome, 0.0) + value.count

    @property
    def runs(self) -> str:
        """Return how often it ran."""
        return text.count(sum(self.outcomes.values()))

    @property
    def sent_text(self) -> str:
        return text.count(self.sent)

    @property
    def failed(self) -> float:
        return self.outcomes.get("failed", 0.0)

    @property
    def ends(self) -> Sequence[tuple[str, str, str]]:
        """The outcomes that occurred: key, word and number."""
        return [(key, str(word), text.count(self.outcomes[key])) for key, word in OUTCOMES.items()
                if self.outcomes.get(key)]  # fmt: skip


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run of a task, out of a stored trace."""

    name: str
    queue: str
    outcome: str
    outcome_word: str
    failure: str
    at: SafeString
    start_ns: int
    wait: str
    duration: str
    address: str


@console_page
def tasks(
    request: HttpRequest, admin: ConsoleAdmin, context: dict[str, object], console: StoreProcessor
) -> HttpResponse:
    """Every task that was sent or ran, the lengths of queues, and the last runs; `failed=1` lists failures alone."""
    families = {family.name: family for family in runtime.collect() if family.name.startswith("django.task.")}
    site = admin.admin_site.name
    is_failed_only = request.GET.get("failed") == "1"
    runs = read_store(console, lambda reader: _find_runs(reader, site, _FAILED if is_failed_only else _ANY_OUTCOME))
    context |= {
        "title": gettext("Tasks"),
        "tasks": _build_rows(families, site),
        "queues": _build_queues(families.get("django.task.queue.length")),
        "runs": runs,
        "is_failed_only": is_failed_only,
        "is_off": not runtime.current().config.tasks,
        "problem": console.problem,
    }
    return TemplateResponse(request, "django_otel/console/tasks.html", context)


def _build_rows(families: Mapping[str, Family], site: str) -> list[TaskRow]:
    rows: dict[tuple[str, str, str], TaskRow] = {}
    for name in ("django.task.sent", "django.task.wait", "django.task.duration"):
        family = families.get(name)
        for point in family.points if family is not None else ():
            labels = {key: str(value) for key, value in point.attributes}
            key = tuple(labels.get(f"django.task.{part}", "") for part in ("backend", "name", "queue"))
            if "otel.metric.overflow" in labels:
                continue
            row = rows.setdefault((key[0], key[1], key[2]), TaskRow(key[0], key[1], key[2]))
            row.add(name, labels.get("django.task.outcome", ""), point.value)
    for row in rows.values():
        if row.name != "_other":
            row.address = _list_address(site, f"django.task.name={row.name}")
            row.failed_address = _list_address(site, f"django.task.name={row.name} {_FAILED}")
    return sorted(rows.values(), key=lambda row: (-row.failed, row.name, row.queue))


def _build_queues(family: Family | None) -> list[tuple[str, str, str]]:
    """Backend, queue and length of each queue, the longest first."""
    found = []
    for point in family.points if family is not None else ():
        labels = dict(point.attributes)
        value = point.value
        if isinstance(value, int | float):
            found.append((value, str(labels.get("django.task.backend", "")), str(labels.get("django.task.queue", ""))))
    return [(backend, queue, text.count(value)) for value, backend, queue in sorted(found, reverse=True)]


def _find_runs(reader: StoreReader, site: str, query: str) -> list[RunRow]:
    page = reader.list_traces(TraceFilter(conditions=tuple(parse_query(query))), limit=MAX_RUNS)
    found: list[RunRow] = []
    wanted = "failed" if query == _FAILED else ""
    address = trace_addresses(site)
    for row in page.rows:
        trace = reader.trace(row.trace_id)
        for span in trace.spans if trace is not None else ():
            attributes = stored_spans.attributes_of(span)
            outcome = str(attributes.get("django.task.outcome", ""))
            if outcome and outcome == (wanted or outcome):
                found.append(_build_run(span, attributes, outcome, address(row.trace_id)))
    return sorted(found, key=lambda run: -run.start_ns)[:MAX_RUNS]


def _build_run(span: Mapping[str, object], attributes: Mapping[str, object], outcome: str, address: str) -> RunRow:
    start_ns, end_ns = (stored_spans.whole_number(span.get(key)) for key in ("start", "end"))
    wait = attributes.get("django.task.wait")
    return RunRow(
        name=str(attributes.get("django.task.name", "")),
        queue=str(attributes.get("django.task.queue", "")),
        outcome=outcome,
        outcome_word=str(OUTCOMES.get(outcome, outcome)),
        failure=stored_spans.failure_of(span) if outcome == "failed" else "",
        at=text.time_tag(start_ns),
        start_ns=start_ns,
        wait=text.seconds(float(wait)) if isinstance(wait, int | float) else "-",
        duration=text.duration(max(0, end_ns - start_ns)),
        address=address,
    )


def _list_address(site: str, query: str) -> str:
    try:
        return f"{reverse(f'{site}:django_otel_trace_changelist')}?{urlencode({'q': query})}"
    except NoReverseMatch:
        return ""
