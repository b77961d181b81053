"""Options of an `Observer` in addition to the settings: computed once, when the middleware is built."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.util.types import AttributeValue

from django_otel.base import frozen
from django_otel.base.patterns import lazy_pattern
from django_otel.requests.dimensions import Dimensions
from django_otel.sampling.sampler import LiveSampler

if TYPE_CHECKING:
    from django_otel.requests.django_prometheus import LegacyRequestMetrics
    from django_otel.requests.protocols import RequestLike, ResponseLike
    from django_otel.requests.record import RequestRecord

#: Headers that are never recorded, even on request (check W010 warns of it).
DENIED_HEADER = lazy_pattern(
    r"(?i)authori[sz]ation|cookie|csrf|xsrf|api[-_]?key|token|secret|password|session|credential"
)


@frozen.record
class ObserverOptions:
    """Contributions of the framework, the sampler and the project's functions to observing requests."""

    #: Whether requests have spans of ours; else they join another tool's.
    makes_spans: bool
    #: Turns the framework's raw route into the label.
    template: Callable[[str], str]
    #: Gives the signed-in user's attributes; None when they are not asked for.
    user_attributes: Callable[[RequestLike], Mapping[str, AttributeValue]] | None = None
    #: REQUEST.ENRICH.
    enrich: Callable[[trace.Span, RequestLike, ResponseLike | None], None] | None = None
    #: REQUEST.ROUTE.
    name_route: Callable[[RequestLike, ResponseLike], object] | None = None
    #: Limits of what the project adds to the request metrics; None when it adds nothing.
    dimensions: Dimensions | None = None
    #: None where another tool's provider decides.
    sampler: LiveSampler | None = None
    #: Returns the valid force token of a request; None if force tokens are off.
    find_force_token: Callable[[Mapping[str, str]], str | None] | None = None
    #: META key and value by which a proxy says that a request came by https.
    secure_header: tuple[str, str] | None = None
    #: Whether the proxy's `X-Forwarded-Host` counts.
    forwarded_host: bool = False
    scrub_url: Callable[[str], str] | None = None
    scrub_path: Callable[[str, Mapping[str, object], Sequence[object]], str] | None = None
    scrub_text: Callable[[str], str] = str
    #: How `path_info` begins for files that have no spans.
    static_prefixes: tuple[str, ...] = ()
    #: Called with each response before it is sent; None when no header of ours is asked for.
    set_headers: Callable[[RequestRecord, ResponseLike], None] | None = None
    #: Paths of our own pages, which are not observed.
    own_paths: Iterable[str] = ()
    #: Whether paths at which a page of ours has answered are left out from then on.
    learns_paths: bool = True
    #: Counts requests under the names of django-prometheus as well; None when they are not asked for.
    legacy: LegacyRequestMetrics | None = None


def select_headers(
    prefix: str, wanted: Sequence[str], found: Iterable[tuple[str, str]], clean: Callable[[str], str]
) -> dict[str, AttributeValue]:
    """Attributes of the headers in `found` (in lower case) that a pattern of `wanted` names and may be recorded."""
    values: dict[str, list[str]] = {}
    for name, value in found:
        if not DENIED_HEADER.search(name) and any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted):
            values.setdefault(prefix + name, []).append(clean(str(value)))
    return dict(values)
