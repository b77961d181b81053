"""From measured figures to tables and the chart."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.peers.catalogue import CASES, PEERS, VARIANTS, Case, Peer, Variant, configurations, why_not
from benchmarks.publication import table

_OURS, _OFFICIAL = "django-otel", "official"
#: The tables: what is recorded, and the variants that do it.
_SHARES = (
    ("nothing sampled", ("off", "tail", "metrics")),
    ("10 % sampled", ("10",)),
    ("all sampled", ("all",)),
    ("10 % sampled, exported", ("10+export",)),
    ("all sampled, exported", ("all+export",)),
)


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
        """Instructions of one request."""
        line = self._line(name, case)
        return None if line is None else line[0]

    def _line(self, name: str, case: str) -> tuple[float, float] | None:
        """Instructions of one request, and of a loop whatever its length.

        The least of several counts is taken, because a background thread can
        only add to it. Where a share of the requests is recorded, chance made
        it a little more or less than wanted; each count is set right by what a
        recorded request costs more than one that is not. With export chance
        also decides whether a short loop has anything to send at all: there
        what is the same for each loop, sending once among it, is taken from
        where all is sampled.
        """
        found = self._instructions.get(name, {}).get(case)
        if not found or not self.is_proved(name, case):
            return None
        peer, _, variant_name = name.partition("/")
        variant, more, fixed = VARIANTS[variant_name], 0.0, None
        if 0 < variant.ratio < 1:
            off = self._line(f"{peer}/off", case)
            everything = self._line(f"{peer}/all" + ("+export" if variant.exports else ""), case)
            if off is None or everything is None:
                return None
            more = everything[0] - off[0]
            fixed = everything[1] if variant.exports else None
        few, many = sorted(map(int, found))
        least = {
            length: min(
                instructions - ((recorded - variant.ratio * length) * more if more else 0.0)
                for instructions, recorded in found[str(length)]
            )
            for length in (few, many)
        }
        each = (least[many] - least[few]) / (many - few) if fixed is None else (least[many] - fixed) / many
        return each, least[few] - few * each

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
    """How much `mine` is of `theirs`, as one reads it: 1/12, 1/3.4, 2.1."""
    if mine is None or theirs is None or theirs <= 0:
        return ""
    if mine <= 0:
        return "0"
    times = theirs / mine if mine < theirs else mine / theirs
    text = f"{times:.0f}" if times >= 9.95 else f"{times:.1f}"
    return f"1/{text}" if mine < theirs and text != "1.0" else text


def _clock(variant: Variant) -> str:
    """With export another thread works at the same time: there the processor's time is what it costs."""
    return "cpu_us" if variant.exports else "wall_us"


def _row_title(peer: Peer, variant: Variant) -> str:
    """A configuration within the table of its share."""
    note = {"metrics": " (metrics only)", "tail": ", errors kept"}.get(variant.name, "")
    return f"**{peer.title}{note}**" if peer.name == _OURS else peer.title + note


def tables(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    figures = Figures(results)
    cases = [case for case in CASES if figures.bare_ki(case.name) is not None or figures.bare_us(case.name) is not None]
    measured = [
        (peer, variant)
        for peer, variant in configurations()
        if f"{peer.name}/{variant.name}" in {**results.get("instructions", {}), **results.get("wall", {})}
    ]
    parts = [_what_each_does(results, [peer for peer, _ in measured])]
    if results.get("instructions"):
        text = (
            "### Thousand instructions added per request\n\nIn brackets what that is of what the official "
            "instrumentation adds for the same job. "
            + _base("Bare Django itself needs", "thousand instructions", cases, figures.bare_ki)
        )
        parts += [text, *_by_share(measured, cases, lambda name, case: _counted(figures, name, case))]
    if results.get("wall"):
        rounds = results.get("rounds")
        text = (
            "### Microseconds added per request\n\n"
            + (f"Medians of {rounds} interleaved rounds; in brackets the median of the rounds' ratios to the official "
               "instrumentation. " if rounds else "")
            + "With export it is the processor's time, in all threads. What is below zero, or has no ratio, "
            "is less than chance does to the times. "
            + _base("Bare Django itself needs", "microseconds", cases, figures.bare_us)
        )  # fmt: skip
        parts += [text, *_by_share(measured, cases, lambda name, case: _timed(figures, name, case))]
    parts += [_not_below(figures), *_notes(results, figures, [peer for peer, _ in measured])]
    return "\n\n".join(part for part in parts if part)


def _what_each_does(results: dict[str, Any], peers: list[Peer]) -> str:
    """Because a small figure may be that of a small job."""
    versions: dict[str, dict[str, str]] = results.get("versions", {})
    rows = [
        [
            f"{peer.title} {versions.get(peer.name, {}).get(peer.distribution, '')}".strip(),
            peer.spans,
            peer.metrics,
            peer.unsampled,
            peer.leaves,
        ]
        for peer in dict.fromkeys(peers)
        if peer.name != "bare"
    ]
    head = ["", "spans of", "metrics that the process itself shows", "an unsampled request is", "leaves by"]
    text = "### What each does\n\n" + table(head, rows, numbers=False)
    machine = results.get("machine")
    if machine:
        django = versions.get("bare", {}).get("django", "")
        text += (
            f"\n\nMeasured with Python {machine['python']}{f' and Django {django}' if django else ''} on "
            f"{machine['cores']} cores of {machine['processor']}, {results.get('made_at', '')}."
        )
        dates = sorted({found["on"] for found in results.get("counted", {}).values()})
        if len(dates) > 1:
            text += f" Instructions were counted from {dates[0]} to {dates[-1]}."
    return text


def _base(start: str, unit: str, cases: list[Case], value: Callable[[str], float | None]) -> str:
    found = [f"{case.title} {amount:.0f}" for case in cases if (amount := value(case.name)) is not None]
    return f"{start}, in {unit}: {'; '.join(found)}."


#: Cell of a configuration's name and a case's.
_Cell = Callable[[str, str], str]


def _counted(figures: Figures, name: str, case: str) -> str:
    added = figures.added_ki(name, case)
    return _with_ratio(name, _text(added), _ratio(added, figures.added_ki(_counterpart_of(name), case)))


def _timed(figures: Figures, name: str, case: str) -> str:
    clock = _clock(VARIANTS[name.partition("/")[2]])
    ratio = figures.wall_ratio(name, _counterpart_of(name), case, clock)
    # Below zero is less than chance does to the times, and has no ratio.
    return _with_ratio(name, _text(figures.added_us(name, case, clock)), _ratio(ratio, 1.0) if (ratio or 0) > 0 else "")


def _counterpart_of(name: str) -> str:
    return _counterpart(VARIANTS[name.partition("/")[2]])


def _with_ratio(name: str, added: str, ratio: str) -> str:
    return f"{added} ({ratio})" if added and ratio and not name.startswith(f"{_OFFICIAL}/") else added


def _by_share(measured: list[tuple[Peer, Variant]], cases: list[Case], cell: _Cell) -> Iterator[str]:
    """A table for each share of recorded traces, with and without export."""
    for title, names in _SHARES:
        rows = [
            [
                _row_title(peer, variant),
                *("-" if why_not(peer, case) else cell(f"{peer.name}/{variant.name}", case.name) for case in cases),
            ]
            for peer, variant in measured
            if variant.name in names
        ]
        if rows:
            yield table([title, *(case.title for case in cases)], rows)


def _rivals(variant: Variant) -> Iterator[tuple[Peer, Variant]]:
    """What a variant of ours is compared with: the same job, and django-prometheus, which has no spans, always."""
    same = "off" if variant.keeps_errors else variant.name
    for peer, other in configurations():
        if peer.name not in ("bare", _OURS) and other.name in (same, "metrics"):
            yield peer, other


def _not_below(figures: Figures) -> str:
    """Every place where django_otel adds at least as much as another."""
    ours = [variant for peer, variant in configurations() if peer.name == _OURS]
    parts = []
    for what, unit, added in (
        ("By instructions", "thousand", lambda name, case, variant: figures.added_ki(name, case)),
        ("By time", "us", lambda name, case, variant: figures.added_us(name, case, _clock(variant))),
    ):
        compared, found = 0, []
        for variant in ours:
            for peer, other in _rivals(variant):
                for case in CASES:
                    mine = added(f"{_OURS}/{variant.name}", case.name, variant)
                    theirs = added(f"{peer.name}/{other.name}", case.name, variant)
                    if mine is None or theirs is None or why_not(peer, case):
                        continue
                    compared += 1
                    if mine >= theirs:
                        title = _row_title(peer, other)
                        found.append(f"{case.title}, {variant.title}: {mine:.0f} {unit}, {title} {theirs:.0f}")
        if compared:
            count = f"{what}, in {len(found) or 'none'} of {compared} comparisons"
            parts.append(f"{count}{':' if found else '.'}" + "".join(f"\n- {line}" for line in found))
    if not parts:
        return ""
    return (
        "### Where django_otel is not below another\n\n"
        "Compared case by case with each peer doing the same job. Keeping "
        "errors is compared with a peer's unsampled requests, and every share with django-prometheus.\n\n"
        + "\n\n".join(parts)
    )


def _notes(results: dict[str, Any], figures: Figures, peers: list[Peer]) -> Iterator[str]:
    idle = [
        f"{peer.title} {found:.0f}"
        for peer, variant in configurations()
        if peer.name != "bare" and (found := figures.idle_ki(f"{peer.name}/{variant.name}")) is not None
    ]
    if idle:
        yield (
            "Threads that work by the clock are not part of a request. What they cost is measured apart, in thousand "
            "instructions of a second in which nothing is asked for: " + ", ".join(idle) + "."
        )
    notes = [
        f"{peer.title}, {case.title}: {why_not(peer, case)}"
        for peer in dict.fromkeys(peers)
        for case in CASES
        if why_not(peer, case)
    ]
    if notes:
        yield "`-`: " + "; ".join(notes) + "."
    unproved = [
        f"{name}, {case}: {'; '.join(found['faults'])}"
        for name, by_case in results.get("emission", {}).items()
        for case, found in by_case.items()
        if found["faults"]
    ]
    if unproved:
        yield "Not shown, because they did not emit what they claim:\n\n- " + "\n- ".join(unproved)


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
_SUBTITLE = "counted by callgrind, the same Django project, a process for each; every panel has a scale of its own"
_WIDTH, _PANEL_WIDTH, _BAR, _GAP = 960, 460, 20, 8
_LABEL_WIDTH, _VALUE_WIDTH = 214, 56
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
            lacks = "metrics only" if own == "metrics" else "no /metrics" if peer.metrics == "none" else ""
            label = f"{peer.title} ({lacks})" if lacks else peer.title
            if value is not None or why_not(peer, case):
                bars.append((label, value, peer.name == _OURS))
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
        f'  <text class="soft" x="20" y="46">{_SUBTITLE}</text>',
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
                lines.append(f'  <text class="soft" x="{x}" y="{y + 15}">does not do it</text>')
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
