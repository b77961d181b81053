"""What is measured: the cases, the variants and the peers, and what each of them claims to emit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of request."""

    name: str
    title: str
    path: str
    #: Queries that the view makes.
    queries: int = 0
    status: int = 200
    is_async: bool = False
    has_traceparent: bool = False
    needs_postgres: bool = False
    #: Requests of one block whose time is taken, and the lengths of the two loops whose instructions are subtracted.
    block: int = 100
    few: int = 5
    many: int = 15


CASES = (
    Case("json", "JSON view", "/json/", block=150),
    Case("query", "1 query", "/queries/default/1/", queries=1, block=50, few=5, many=15),
    Case("queries", "10 queries", "/queries/default/10/", queries=10, block=15, few=2, many=8),
    Case("postgres-query", "1 query (PostgreSQL)", "/queries/postgres/1/", 1, needs_postgres=True, block=50),
    Case(
        "postgres-queries", "10 queries (PostgreSQL)", "/queries/postgres/10/", 10,
        needs_postgres=True, block=15, few=2, many=8,
    ),
    Case("template", "template", "/template/", block=50),
    Case("missing", "404", "/missing/", status=404),
    Case("traceparent", "inbound traceparent", "/json/", has_traceparent=True, block=150),
    Case("async", "async view (ASGI)", "/async/", is_async=True, block=60),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Variant:
    """How much is recorded, and where it goes."""

    name: str
    title: str
    #: Share of traces that is recorded.
    ratio: float
    #: Whether what is recorded is sent over HTTP; otherwise it is dropped where it would be.
    exports: bool = False
    keeps_errors: bool = False


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("bare", "bare Django", 0.0),
        Variant("metrics", "metrics only", 0.0),
        Variant("off", "unsampled", 0.0),
        Variant("10", "10 % sampled", 0.1),
        Variant("all", "all sampled", 1.0),
        Variant("10+export", "10 % sampled, exported", 0.1, exports=True),
        Variant("all+export", "all sampled, exported", 1.0, exports=True),
        Variant("tail", "unsampled, errors kept", 0.0, keeps_errors=True),
    )
}
_SPANS = ("off", "10", "all", "10+export", "all+export")


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to observe a project."""

    name: str
    title: str
    variants: tuple[str, ...] = _SPANS
    #: Whether requests are counted in metrics of the process, and queries too.
    counts_requests: bool = False
    counts_queries: bool = False
    #: Cases it has no answer to, and why.
    cannot: tuple[tuple[str, str], ...] = ()
    #: The distribution whose version is shown.
    distribution: str = ""
    #: What it makes of a request, in words: spans, metrics that the process itself can show, an unsampled request.
    spans: str = "none"
    metrics: str = "none"
    unsampled: str = "-"
    #: How what it records leaves the process.
    leaves: str = "OTLP"
    #: Whether what is recorded can be seen in the process, where it is not exported; otherwise it is sent later.
    shows_emission: bool = True

    @property
    def makes_spans(self) -> bool:
        """Whether it has a span or transaction of each request, recorded or not."""
        return "off" in self.variants


_NOTHING = "nothing of it is kept"

PEERS = {
    peer.name: peer
    for peer in (
        Peer("bare", "bare Django", ("bare",)),
        Peer(
            "django-otel", "django_otel", ("off", "10", "all", "10+export", "all+export", "tail"),
            counts_requests=True, counts_queries=True, distribution="django-otel-kit", spans="request, query",
            metrics="requests, queries, requests at work; exemplars", unsampled="in the metrics",
        ),
        Peer(
            "official", "official instrumentation", counts_requests=True,
            distribution="opentelemetry-instrumentation-django", spans="request, query",
            metrics="requests, requests at work", unsampled="in the metrics",
        ),
        Peer(
            "django-prometheus", "django-prometheus", ("metrics",), counts_requests=True, counts_queries=True,
            cannot=(("traceparent", "it makes no spans"),), distribution="django-prometheus",
            metrics="requests, responses, queries", leaves="scrape",
        ),
        Peer(
            "elastic", "elastic-apm",
            cannot=(("async", "it does not support Django under ASGI, and records nothing there"),),
            distribution="elastic-apm", spans="request, query, template", unsampled=_NOTHING, leaves="its own protocol",
        ),
        Peer(
            "sentry", "sentry-sdk",
            cannot=(("traceparent", "it reads headers of its own only"),),
            distribution="sentry-sdk", spans="request, query, template, Django's signals", unsampled=_NOTHING,
            leaves="its own protocol",
        ),
        Peer(
            "logfire", "logfire", counts_requests=True, distribution="logfire", spans="request, query",
            metrics="requests, requests at work", unsampled="in the metrics",
        ),
        Peer(
            "ddtrace", "ddtrace", shows_emission=False, distribution="ddtrace", spans="request, view, query",
            unsampled="sent to its agent too, which counts it", leaves="its own protocol",
        ),
    )
}  # fmt: skip


def configurations(peers: list[str] | None = None, variants: list[str] | None = None) -> Iterator[tuple[Peer, Variant]]:
    """Every peer in each of its variants; bare Django first, because everything is compared with it."""
    for peer in PEERS.values():
        if peers is not None and peer.name not in (*peers, "bare"):
            continue
        for name in peer.variants:
            if variants is None or name in (*variants, "bare", "metrics"):
                yield peer, VARIANTS[name]


def why_not(peer: Peer, case: Case) -> str:
    """Why a peer cannot do a case; "" when it can."""
    return dict(peer.cannot).get(case.name, "")


def expected_spans(peer: Peer, variant: Variant, case: Case, requests: int) -> tuple[int, int]:
    """The fewest and the most recorded requests that a configuration may emit of `requests`."""
    if variant.name in ("bare", "metrics") or variant.ratio == 0:
        return 0, 0
    if variant.ratio == 1:
        return requests, requests
    # Five standard deviations of a binomial distribution on each side.
    spread = 5 * (requests * variant.ratio * (1 - variant.ratio)) ** 0.5
    return max(1, int(requests * variant.ratio - spread)), int(requests * variant.ratio + spread) + 1


def traceparents(variant: Variant, count: int) -> list[str]:
    """Inbound headers: the share with the sampled flag is the variant's ratio."""
    every = round(1 / variant.ratio) if variant.ratio else 0
    return [
        f"00-{TRACE_ID}-b7ad6b7169203331-{'01' if every and number % every == 0 else '00'}" for number in range(count)
    ]
