"""Service level objectives: parsed from the command line, turned into multi-window burn-rate alerts.

    availability 99.9              of all requests, the share without a server error
    availability /checkout/ 99.9   of one route
    latency 0.5s 99                the share of requests that take at most 0.5 s
    latency /checkout/ 300ms 99

Source: Google SRE workbook, "Alerting on SLOs", multiwindow, multi-burn-rate alerts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from django.utils.translation import gettext

from django_otel.base.frozen import record
from django_otel.metrics.catalogue import SECONDS_HTTP
from django_otel.metrics.prometheus_names import format_bound

DURATION = "http.server.request.duration"
_DURATION = "http_server_request_duration_seconds"


class SloError(ValueError):
    """An objective that cannot be alerted on; the message says why and how to repair it."""


@record
class Slo:
    """One objective. `objective` is a share (0.999); `threshold_s` is None for availability."""

    kind: str
    objective: float
    route: str = ""
    threshold_s: float | None = None

    @property
    def name(self) -> str:
        """A name for rules and labels, such as "latency /checkout/ 0.3s"."""
        parts = [self.kind, self.route, f"{self.threshold_s:g}s" if self.threshold_s is not None else ""]
        return " ".join(part for part in parts if part)

    def error_ratio(self, window: str) -> str:
        """Return the PromQL of the share of bad requests in a window, by job."""
        route = f"http_route={quote(self.route)}" if self.route else ""
        total = f"sum by (job) (rate({_DURATION}_count{_matchers(route)}[{window}]))"
        if self.threshold_s is None:
            errors = _matchers(route, 'http_response_status_code=~"5.."')
            bad = f"(sum by (job) (rate({_DURATION}_count{errors}[{window}])) or {total} * 0)"
            return f"{bad} / {total}"
        bound = _bound_matcher(self.threshold_s)
        good = f"sum by (job) (rate({_DURATION}_bucket{_matchers(route, bound)}[{window}]))"
        return f"1 - {good} / {total}"


def quote(text: str) -> str:
    """Return a string of PromQL; like one of JSON, but without pairs of surrogates."""
    return json.dumps(text, ensure_ascii=False)


def _matchers(*matchers: str) -> str:
    present = [matcher for matcher in matchers if matcher]
    return f"{{{', '.join(present)}}}" if present else ""


def _bound_matcher(bound_s: float) -> str:
    """A scrape writes le="1.0", a metric received over OTLP le="1"."""
    shown = format_bound(bound_s)
    pattern = re.escape(shown.removesuffix(".0"))
    return f"le=~{quote(pattern + '([.]0)?' if shown.endswith('.0') else pattern)}"


def _misfit(text: str, found: str, expected: str) -> SloError:
    """An error that names the objective, the value found and what fits."""
    message = gettext('--slo "%(objective)s": "%(found)s" is not valid; expected %(expected)s.')
    return SloError(message % {"objective": text, "found": found, "expected": expected})


def _expected_form() -> str:
    return gettext(
        '"availability [ROUTE] PERCENT" or "latency [ROUTE] THRESHOLD PERCENT", such as "latency /checkout/ 0.5s 99"'
    )


def parse_slo(text: str, buckets: Mapping[str, tuple[float, ...]]) -> Slo:
    """Return the objective of a text; `buckets` is `METRICS["BUCKETS"]`, by metric name, in seconds.

    Errors: `SloError` for another form, a percentage that is not between 0 and 100, or a threshold that is not a bound
    of a bucket, since the number of requests below it is unknown.
    """
    kind, *rest = text.split(None, 1) or [""]
    # From the right: a route may have blanks.
    numbers = {"availability": 1, "latency": 2}.get(kind, 0)
    rest = rest[0].rsplit(None, numbers) if rest else []
    if not numbers or len(rest) not in (numbers, numbers + 1):
        raise _misfit(text, text, _expected_form())
    route = rest.pop(0) if len(rest) > numbers else ""
    # Bytes of a command line that are not UTF-8 become surrogates, which neither YAML nor PromQL can write.
    if route and (not route.startswith(("/", "<")) or re.search("[\ud800-\udfff]", route)):
        raise _misfit(text, route, gettext('a route such as "/checkout/"'))
    objective = _parse_percent(text, rest.pop())
    threshold_s = _parse_threshold(text, rest[0], buckets) if kind == "latency" else None
    return Slo(kind, objective, route, threshold_s)


def _parse_percent(text: str, given: str) -> float:
    try:
        percent = float(given.removesuffix("%"))
    except ValueError:
        raise _misfit(text, given, gettext("a percentage above 0 and below 100")) from None
    if not 0 < percent < 100:
        raise _misfit(text, given, gettext("a percentage above 0 and below 100"))
    return percent / 100


def _parse_threshold(text: str, given: str, buckets: Mapping[str, tuple[float, ...]]) -> float:
    matched = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)(ms|s)", given)
    if not matched:
        raise _misfit(text, given, gettext("a time such as 300ms or 0.5s"))
    threshold_s = float(matched[1]) / (1000 if matched[2] == "ms" else 1)
    bounds = buckets.get(DURATION, SECONDS_HTTP)
    if threshold_s not in bounds:
        shown = ", ".join(f"{bound:g}" for bound in bounds)
        line = ", ".join(f"{bound:g}" for bound in sorted({*bounds, threshold_s}))
        message = gettext(
            '--slo "%(objective)s": %(threshold)s s is not a bucket bound of %(metric)s; the bounds are %(bounds)s. '
            "Use one of them, or set %(setting)s."
        )
        setting = f'OTEL["METRICS"]["BUCKETS"] = {{"{DURATION}": ({line})}}'
        raise SloError(
            message
            % {
                "objective": text, "threshold": f"{threshold_s:g}", "metric": DURATION, "bounds": shown,
                "setting": setting,
            }
        )  # fmt: skip
    return threshold_s
