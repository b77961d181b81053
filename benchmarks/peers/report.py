"""From measured figures to tables and the chart."""

from __future__ import annotations

import statistics
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.peers.catalogue import CASES, PEERS, VARIANTS, Case, Peer, Variant, configurations, why_not
from benchmarks.publication import table

#: The variants side by side with the official instrumentation's, or with what comes next to them.
_OFFICIAL = "official"


class Figures:
    """What was added to bare Django, by configuration and case."""

    def __init__(self, results: dict[str, Any]) -> None:
        self._instructions: dict[str, dict[str, Any]] = results.get("instructions", {})
        self._wall: dict[str, dict[str, Any]] = results.get("wall", {})
        self._idle: dict[str, dict[str, Any]] = results.get("idle", {})
        self._emission: dict[str, dict[str, Any]] = results.get("emission", {})

    def added_ki(self, name: str, case: str) -> float | None:
        """Thousand instructions added per request."""
        found, bare = self._each(name, case), self._each("bare/bare", case)
        return None if found is None or bare is None else (found - bare) / 1000

    def bare_ki(self, case: str) -> float | None:
        found = self._each("bare/bare", case)
        return None if found is None else found / 1000

    def _each(self, name: str, case: str) -> float | None:
        """Instructions of one request.

        The least of several counts is taken, because a background thread can
        only add to it. Where a share of the requests is recorded, chance made
        it a little more or less than wanted; each count is set right by what a
        recorded request costs more than one that is not.
        """
        found = self._instructions.get(name, {}).get(case)
        if not found or not self.is_proved(name, case):
            return None
        peer, _, variant = name.partition("/")
        ratio, more = VARIANTS[variant].ratio, 0.0
        if 0 < ratio < 1:
            off = self._each(f"{peer}/off", case)
            everything = self._each(f"{peer}/all" + ("+export" if VARIANTS[variant].exports else ""), case)
            if off is None or everything is None:
                return None
            more = everything - off
        few, many = sorted(map(int, found))
        least = {
            length: min(
                instructions - ((recorded - ratio * length) * more if more else 0.0)
                for instructions, recorded in found[str(length)]
            )
            for length in (few, many)
        }
        return (least[many] - least[few]) / (many - few)

    def idle_ki(self, name: str) -> float | None:
        """Thousand instructions of a second in which nothing is asked for."""
        found = self._idle.get(name, {}).get("json")
        return None if found is None else found["instructions"] / 1000

    def added_us(self, name: str, case: str, clock: str = "wall_us") -> float | None:
        """Microseconds added per request: the median of the rounds' differences to bare Django in the same round."""
        rounds = self._rounds(name, case, clock)
        return statistics.median(rounds) if rounds else None

    def bare_us(self, case: str) -> float | None:
        found = self._wall.get("bare/bare", {}).get(case)
        return statistics.median(found["wall_us"]) if found else None

    def _rounds(self, name: str, case: str, clock: str) -> list[float]:
        found, bare = self._wall.get(name, {}).get(case), self._wall.get("bare/bare", {}).get(case)
        if not found or not bare or not self.is_proved(name, case):
            return []
        return [mine - base for mine, base in zip(found[clock], bare[clock], strict=False)]

    def wall_ratio(self, name: str, other: str, case: str, clock: str = "wall_us") -> float | None:
        """The median over the rounds of what `name` adds against what `other` adds."""
        mine, theirs = self._rounds(name, case, clock), self._rounds(other, case, clock)
        ratios = [a / b for a, b in zip(mine, theirs, strict=False) if b > 0]
        return statistics.median(ratios) if ratios else None

    def is_proved(self, name: str, case: str) -> bool:
        """Whether the configuration was seen to emit what it claims; figures of others are not shown."""
        found = self._emission.get(name, {}).get(case)
        return found is None or not found["faults"]


def _counterpart(variant: Variant) -> str:
    """The official instrumentation doing the same job."""
    return f"{_OFFICIAL}/{'off' if variant.name in ('metrics', 'tail', 'bare') else variant.name}"


def _text(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _ratio(mine: float | None, theirs: float | None) -> str:
    if mine is None or theirs is None or theirs <= 0:
        return ""
    if mine <= 0:
        return "0"
    return f"1/{theirs / mine:.1f}" if mine < theirs else f"{mine / theirs:.1f}"


def _cell(peer: Peer, case: Case, value: str) -> str:
    return "-" if why_not(peer, case) else value


def _name(peer: Peer, variant: Variant) -> str:
    title = peer.title if peer.name == "bare" else f"{peer.title}, {variant.title}"
    return f"**{title}**" if peer.name == "django-otel" else title


def tables(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    figures = Figures(results)
    cases = [case for case in CASES if figures.bare_ki(case.name) is not None or figures.bare_us(case.name) is not None]
    measured = [
        (peer, variant)
        for peer, variant in configurations()
        if f"{peer.name}/{variant.name}" in {**results.get("instructions", {}), **results.get("wall", {})}
    ]
    parts = []
    if results.get("instructions"):
        rows = [["bare Django (whole request)", *(_text(figures.bare_ki(case.name)) for case in cases)]]
        for peer, variant in measured:
            if peer.name == "bare":
                continue
            name = f"{peer.name}/{variant.name}"
            rows.append(
                [
                    _name(peer, variant),
                    *(_cell(peer, case, _text(figures.added_ki(name, case.name))) for case in cases),
                ]
            )
        parts.append("### Thousand instructions added per request\n\n" + table(["", *(c.title for c in cases)], rows))
        rows = [
            [
                _name(peer, variant),
                *(
                    _cell(
                        peer,
                        case,
                        _ratio(
                            figures.added_ki(f"{peer.name}/{variant.name}", case.name),
                            figures.added_ki(_counterpart(variant), case.name),
                        ),
                    )
                    for case in cases
                ),
            ]
            for peer, variant in measured
            if peer.name not in ("bare", _OFFICIAL)
        ]
        parts.append(
            "### The same against the official instrumentation doing the same job\n\n"
            + table(["", *(c.title for c in cases)], rows)
        )
    if results.get("wall"):
        rows = [["bare Django (whole request)", *(_text(figures.bare_us(case.name)) for case in cases)]]
        for peer, variant in measured:
            if peer.name == "bare":
                continue
            row = [_name(peer, variant)]
            for case in cases:
                name = f"{peer.name}/{variant.name}"
                # With export another thread works at the same time: the processor's time is what it costs.
                clock = "cpu_us" if variant.exports else "wall_us"
                added = figures.added_us(name, case.name, clock)
                ratio = figures.wall_ratio(name, _counterpart(variant), case.name, clock)
                text = _text(added)
                if peer.name != _OFFICIAL and ratio is not None and text:
                    text += f" ({_ratio(ratio, 1.0)})"
                row.append(_cell(peer, case, text))
            rows.append(row)
        parts.append(
            "### Microseconds added per request, and the ratio to the official instrumentation\n\n"
            + table(["", *(c.title for c in cases)], rows)
        )
    idle = [
        f"{peer.title} {found:.0f}"
        for peer, variant in configurations()
        if peer.name != "bare" and (found := figures.idle_ki(f"{peer.name}/{variant.name}")) is not None
    ]
    if idle:
        parts.append(
            "Threads that work by the clock are not part of a request. What they cost is measured apart, in thousand "
            "instructions of a second in which nothing is asked for: " + ", ".join(idle) + "."
        )
    notes = [f"{peer.title}, {case.title}: {why_not(peer, case)}" for peer in PEERS.values() for case in CASES
             if why_not(peer, case) and any(found is peer for found, _ in measured)]  # fmt: skip
    if notes:
        parts.append("`-`: " + "; ".join(notes) + ".")
    unproved = [
        f"{name}, {case}: {'; '.join(found['faults'])}"
        for name, by_case in results.get("emission", {}).items()
        for case, found in by_case.items()
        if found["faults"]
    ]
    if unproved:
        parts.append("Not shown, because they did not emit what they claim:\n\n- " + "\n- ".join(unproved))
    return "\n\n".join(parts)


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """The figures worth keeping: rounds as medians of what was added."""
    figures = Figures(results)
    found: dict[str, Any] = {
        key: results[key] for key in ("machine", "versions", "rounds", "made_at") if key in results
    }
    found["idle_ki"] = {
        f"{peer.name}/{variant.name}": round(value, 1)
        for peer, variant in configurations()
        if (value := figures.idle_ki(f"{peer.name}/{variant.name}")) is not None
    }
    found["configurations"] = {}
    for peer, variant in configurations():
        name = f"{peer.name}/{variant.name}"
        cases: dict[str, Any] = {}
        for case in CASES:
            if peer.name == "bare":
                values = {"ki": figures.bare_ki(case.name), "us": figures.bare_us(case.name)}
            else:
                values = {
                    "ki": figures.added_ki(name, case.name),
                    "us": figures.added_us(name, case.name),
                    "cpu_us": figures.added_us(name, case.name, "cpu_us"),
                }
            kept = {key: round(value, 1) for key, value in values.items() if value is not None}
            if kept:
                cases[case.name] = kept
        if cases:
            found["configurations"][name] = cases
    return found


# --- The chart. ---

#: (title, case, variant by peer); django-prometheus has one variant for all.
_PANELS = (
    ("JSON view, nothing sampled", "json", "off"),
    ("JSON view, all sampled", "json", "all"),
    ("10 queries (PostgreSQL), all sampled", "postgres-queries", "all"),
    ("async view under ASGI, all sampled", "async", "all"),
)
_TITLE = "Thousand instructions added to a request; less is better"
_WIDTH, _PANEL_WIDTH, _BAR, _GAP = 960, 460, 20, 8
_LABEL_WIDTH, _VALUE_WIDTH = 160, 70
_STYLE = """
      text { fill: #16222e; }
      .ground { fill: #ffffff; }
      .soft { fill: #41566b; font-size: 12px; }
      .title { font-weight: bold; }
      .theirs { fill: #9fb1c3; }
      .ours { fill: #1f7a8c; }
      .own { font-weight: bold; }
      @media (prefers-color-scheme: dark) {
        text { fill: #e6edf3; }
        .ground { fill: #0d1117; }
        .soft { fill: #9fb1c3; }
        .theirs { fill: #56677a; }
        .ours { fill: #45b5ca; }
      }"""


def chart(results: dict[str, Any]) -> str:
    """An SVG of what the ways to observe a request add, in thousand instructions, readable on light and dark."""
    figures = Figures(results)
    panels = []
    for title, case_name, variant in _PANELS:
        case = next(case for case in CASES if case.name == case_name)
        bars: list[tuple[str, float | None, bool]] = []
        for peer in PEERS.values():
            if peer.name == "bare":
                continue
            own = "metrics" if "metrics" in peer.variants else variant
            value = None if why_not(peer, case) else figures.added_ki(f"{peer.name}/{own}", case_name)
            label = peer.title + (" (metrics only)" if own == "metrics" else "")
            bars.append((label, value, peer.name == "django-otel"))
        if any(value is not None for _, value, _ in bars):
            # Shortest first; those without an answer last.
            bars.sort(key=lambda bar: (bar[1] is None, bar[1] or 0.0))
            panels.append((title, bars))
    rows = max((len(bars) for _, bars in panels), default=0)
    panel_height = 44 + rows * (_BAR + _GAP)
    height = 66 + (len(panels) + 1) // 2 * panel_height
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="DejaVu Sans, Helvetica, Arial, sans-serif" font-size="13" role="img" '
        'aria-labelledby="title description">'
    )
    lines = [
        head,
        '  <title id="title">What observing a request adds</title>',
        f'  <desc id="description">{escape(_describe(panels))}</desc>',
        f"  <style>{_STYLE}\n  </style>",
        f'  <rect class="ground" width="{_WIDTH}" height="{height}" rx="6"/>',
        f'  <text class="title" x="20" y="28" font-size="16">{_TITLE}</text>',
        '  <text class="soft" x="20" y="46">counted by callgrind, one process each, the same Django project</text>',
    ]
    for number, (title, bars) in enumerate(panels):
        left, top = 20 + number % 2 * (_PANEL_WIDTH + 10), 78 + number // 2 * panel_height
        longest = max(value for _, value, _ in bars if value is not None)
        lines.append(f'  <text class="title" x="{left}" y="{top}">{escape(title)}</text>')
        for row, (label, value, is_ours) in enumerate(bars):
            y = top + 14 + row * (_BAR + _GAP)
            own = ' class="own"' if is_ours else ""
            lines.append(
                f'  <text{own} x="{left + _LABEL_WIDTH - 8}" y="{y + 15}" text-anchor="end" font-size="12">'
                f"{escape(label)}</text>"
            )
            x = left + _LABEL_WIDTH
            if value is None:
                lines.append(f'  <text class="soft" x="{x}" y="{y + 15}">-</text>')
                continue
            width = max(1.5, value / longest * (_PANEL_WIDTH - _LABEL_WIDTH - _VALUE_WIDTH))
            kind = "ours" if is_ours else "theirs"
            lines.append(f'  <rect class="{kind}" x="{x}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2"/>')
            lines.append(f'  <text{own} x="{x + width + 6:.1f}" y="{y + 15}" font-size="12">{value:,.0f}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _describe(panels: list[tuple[str, list[tuple[str, float | None, bool]]]]) -> str:
    return " ".join(
        f"{title}: " + ", ".join(f"{label} {value:.0f}" for label, value, _ in bars if value is not None) + "."
        for title, bars in panels
    )
