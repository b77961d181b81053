"""`tracestate` of sampled traces: `ot=th:...`, which tells a backend how many traces a recorded one represents.

`th` is the rejection threshold T: a trace is sampled if its randomness R is at least T, both of 56 bits. Our sampler
records trace ids whose low half is *below* a bound, as `TraceIdRatioBased` does, so R is its complement and is written
as `rv` beside it. At the ratio 1 every R is above T = 0, and `th:0` alone is one text for all traces.
Source: OpenTelemetry, "TraceState: Probability Sampling", "TraceState Handling"; W3C Trace Context, `tracestate`.
"""

from __future__ import annotations

from opentelemetry.trace import TraceState

from django_otel.base.sdk_compat import EMPTY_TRACE_STATE

KEY = "ot"
_BITS = 56
_SHIFT = 64 - _BITS
_MAX = 1 << _BITS
_LOW_64_BITS = (1 << 64) - 1
#: W3C: members of a `tracestate`, and characters of a value.
_MAX_MEMBERS = 32
_MAX_VALUE = 256
#: Of every trace that is recorded for certain.
ALWAYS: TraceState = TraceState([(KEY, "th:0")])
#: Whether a state is made as it was when this was written.
_IS_KNOWN = vars(ALWAYS) == {"_dict": {KEY: "th:0"}}


def format_threshold(bound: int) -> str:
    """Return `th` for trace ids whose low 64 bits are below `bound`, in hexadecimal without trailing zeros.

    "" where nothing is recorded. Rounded so that what is recorded has an R of at least T.
    """
    kept = -(-bound >> _SHIFT)
    if kept <= 0:
        return ""
    return f"{_MAX - min(kept, _MAX):014x}".rstrip("0") or "0"


def build_state(threshold: str, trace_id: int) -> TraceState:
    """Return the state of a trace that begins here and is recorded with this threshold ("" for none)."""
    if threshold == "0":
        return ALWAYS
    if not threshold:
        return EMPTY_TRACE_STATE
    randomness = _MAX - 1 - ((trace_id & _LOW_64_BITS) >> _SHIFT)
    value = f"th:{threshold};rv:{randomness:014x}"
    if not _IS_KNOWN:
        return TraceState([(KEY, value)])
    # Its __init__ tests key and value by patterns, which are known to match.
    made: TraceState = TraceState.__new__(TraceState)
    vars(made)["_dict"] = {KEY: value}
    return made


def replace_threshold(state: TraceState | None, threshold: str) -> TraceState | None:
    """Return a caller's state for a trace that is decided here in its place.

    Its randomness (`rv`) and the other members stay. Only the threshold "0" holds for any randomness; with another one
    there is none, because the caller's trace was not drawn by our rule.
    """
    members = dict(state or {})
    before = members.pop(KEY, None)
    parts = [part for part in (before or "").split(";") if part and not part.startswith("th:")]
    if threshold == "0":
        parts = ["th:0", *parts]
    value = ";".join(parts)
    if value == (before or "") or len(value) > _MAX_VALUE:
        return state
    # A member that changes moves to the front; the last one makes room.
    entries = [*([(KEY, value)] if value else []), *members.items()]
    return TraceState(entries[:_MAX_MEMBERS])
