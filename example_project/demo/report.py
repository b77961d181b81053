"""What the demo prints: a live line, and a table at the end."""

from __future__ import annotations

import re
from dataclasses import dataclass

from example_project.demo.receiver import Tally
from example_project.demo.visitors import Results

# A sample of the Prometheus text format: name, optional labels, value.
_REQUEST_COUNT = re.compile(r"^http_server_request_duration_seconds_count(?:\{.*\})? (\S+)", re.MULTILINE)


def counted_requests(metrics_page: str) -> int:
    """How many requests a `/metrics` page in the Prometheus text format says were served."""
    return round(sum(float(value) for value in _REQUEST_COUNT.findall(metrics_page)))


@dataclass(frozen=True)
class Outcome:
    """Everything the table needs. `counted` is None when `/metrics` did not answer."""

    results: Results
    counted: int | None
    tally: Tally | None
    workers: int
    elapsed_s: float


def progress_line(results: Results, tally: Tally | None, elapsed_s: float, seconds: float | None) -> str:
    """One line that says how it is going."""
    time_text = f"{elapsed_s:3.0f} s" if seconds is None else f"{elapsed_s:3.0f} of {seconds:.0f} s"
    parts = [time_text, f"{results.sent} requests"]
    if tally is not None:
        parts.append(f"{tally.span_count} spans")
    parts += [
        f"{results.errors} errors",
        f"p50 {format_ms(results.percentile_s(0.5))}",
        f"p95 {format_ms(results.percentile_s(0.95))}",
    ]
    return "  ".join(parts)


def format_ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def table(outcome: Outcome) -> str:
    """The outcome as a table with two columns and a remark where a number needs one."""
    results, tally = outcome.results, outcome.tally
    rows: list[tuple[str, str, str]] = [
        ("Requests sent", str(results.sent), f"in {outcome.elapsed_s:.0f} s"),
        ("Requests /metrics counted", *_counted(outcome)),
    ]
    if tally is None:
        rows.append(
            ("Spans exported", "not known", "they went to your own endpoint by gRPC, where we cannot count them")
        )
    else:
        services = ", ".join(f"{name} {count}" for name, count in sorted(tally.spans.items()))
        rows.append(("Spans exported", str(tally.span_count), services))
        rows.append(("Traces over both services", str(tally.crossing_traces), ""))
        if tally.rejected:
            rows.append(
                ("Exports not accepted", str(tally.rejected), "counted again above once a new attempt was accepted")
            )
    share = results.errors / results.sent if results.sent else 0.0
    rows += [
        ("Error rate", f"{share:.1%}", f"{results.errors} of {results.sent}; some pages fail on purpose"),
        ("Latency p50", format_ms(results.percentile_s(0.5)), ""),
        ("Latency p95", format_ms(results.percentile_s(0.95)), "as the visitors saw it"),
    ]
    name_width = max(len(name) for name, _, _ in rows)
    value_width = max(len(value) for _, value, _ in rows)
    lines = [f"  {name:<{name_width}}  {value:>{value_width}}  {remark}".rstrip() for name, value, remark in rows]
    rule = "  " + "-" * (name_width + value_width + 2)
    return "\n".join([rule, *lines, rule])


def _counted(outcome: Outcome) -> tuple[str, str]:
    if outcome.counted is None:
        return "not known", "/metrics did not answer"
    missing = outcome.results.answered - outcome.counted
    if missing == 0:
        return str(outcome.counted), "every request that was answered"
    remark = f"{abs(missing)} {'fewer' if missing > 0 else 'more'} than were answered"
    return str(outcome.counted), remark
