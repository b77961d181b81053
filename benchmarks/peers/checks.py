"""Whether a configuration emits what it claims: a fast one that records nothing proves nothing."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.catalogue import TRACE_ID, Case, Peer, Variant, expected_spans


def requests_to_check(variant: Variant) -> int:
    """Enough to see the share."""
    return 120 if 0 < variant.ratio < 1 else 12


def faults(peer: Peer, variant: Variant, case: Case, requests: int, found: dict[str, Any]) -> list[str]:
    """What is missing or too much in what `requests` requests emitted, each in a sentence; none when it is right."""
    wrong = []
    low, high = expected_spans(peer, variant, case, requests)
    if not low <= found["requests"] <= high:
        wrong.append(f"recorded {found['requests']} of {requests} requests instead of {_range(low, high)}")
    expected_queries = found["requests"] * case.queries
    if found["queries"] != expected_queries:
        wrong.append(f"recorded {found['queries']} queries instead of {expected_queries}")
    if peer.makes_spans and found["observed"] != requests:
        wrong.append(f"had a span in {found['observed']} of {requests} requests")
    if case.has_traceparent and found["requests"] and variant.ratio == 1 and found["trace_ids"] != [TRACE_ID]:
        wrong.append(f"did not take over the inbound trace id: {found['trace_ids'][:2]}")
    if peer.counts_requests and found["requests_counted"] != requests:
        wrong.append(f"counted {found['requests_counted']:g} of {requests} requests in its metrics")
    if peer.counts_queries and found["queries_counted"] != requests * case.queries:
        wrong.append(f"counted {found['queries_counted']:g} of {requests * case.queries} queries in its metrics")
    return wrong


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"
