"""`manage.py otel traces`, `trace`, `errors`, `slow`, `n-plus-one` and `logs`: the store in a terminal."""

from __future__ import annotations

import argparse
import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from django.core.management.base import CommandParser
from django.urls import NoReverseMatch, reverse
from django.utils.translation import gettext, pgettext

from django_otel import conf
from django_otel.base.private_files import Unusable
from django_otel.base.text import printable, printable_json
from django_otel.config.schema import Config
from django_otel.console.answers import DEFAULT_ROWS, MAX_ROWS, SEVERITIES, Answer, Answers, Scope
from django_otel.live_sampling import wording
from django_otel.tracestore.reader import TraceFilter, read
from django_otel.tracestore.record_reader import LogFilter
from django_otel.tracestore.writer import TraceStore, find_store

OK = 0
NOT_WORKING = 1
NAMES = ("traces", "trace", "errors", "slow", "n-plus-one", "logs")
#: Every line of a table fits.
_WIDTH = 80
_Rows = list[Mapping[str, Any]]


class NoStoreError(Exception):
    """There is nothing to read; the text gives the reason and the advice."""


def add_arguments(commands: argparse._SubParsersAction[CommandParser]) -> None:
    """Add the subcommands but `logs`, which has another action."""
    traces = commands.add_parser("traces", help=gettext("recent traces that the console has stored"))
    traces.add_argument("--route", default="", help=gettext("only this route, or routes that contain this text"))
    traces.add_argument("--status", default="", help=gettext("only this status: 404, 5xx"))
    traces.add_argument("--errors", action="store_true", help=gettext("only failed traces"))
    traces.add_argument(
        "--min-ms", type=float, default=0.0, metavar="MS", help=gettext("only traces at least this long")
    )  # fmt: skip
    trace = commands.add_parser("trace", help=gettext("one trace: its spans and log records"))
    trace.add_argument("id", help=gettext("the trace id, or its beginning"))
    errors = commands.add_parser("errors", help=gettext("exceptions of stored traces, by type and place"))
    slow = commands.add_parser("slow", help=gettext("routes by 95th percentile"))
    repeated = commands.add_parser("n-plus-one", help=gettext("queries that requests repeat, and how to fix them"))
    for parser in (traces, trace, errors, slow, repeated):
        add_scope(parser)


def add_log_arguments(logs: CommandParser) -> None:
    """Add the search options of `logs`."""
    logs.add_argument("--search", default="", metavar="TEXT", help=gettext("only records with these words"))
    logs.add_argument(
        "--level", type=str.upper, choices=tuple(SEVERITIES), default=None, help=gettext("this level and above")
    )  # fmt: skip
    logs.add_argument("--logger", default="", help=gettext("only this logger and its children"))
    logs.add_argument("--trace", default="", metavar="ID", help=gettext("only this trace"))
    add_scope(logs)


def add_scope(parser: CommandParser) -> None:
    """Add the options of every list."""
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument(
        "--since", type=_duration_s, default=None, metavar="DURATION",
        help=gettext("only the last 15m, 2h, 1d (default: everything stored)"),
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=_rows, default=DEFAULT_ROWS, metavar="N",
        help=gettext("maximum number of rows (default %(default)s)").replace("%(default)s", str(DEFAULT_ROWS)),
    )  # fmt: skip


def _duration_s(given: str) -> int:
    try:
        return wording.parse_duration_s(given)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _rows(given: str) -> int:
    if not given.isdigit() or not 1 <= int(given) <= MAX_ROWS:
        message = gettext("%(text)s is not a number from 1 to %(most)d")
        raise argparse.ArgumentTypeError(message % {"text": repr(given), "most": MAX_ROWS})
    return int(given)


# --- The store. ---


def address_of(config: Config) -> Callable[[str], str]:
    """Return where a trace can be looked at: its page in the admin, else `TRACE_URL`; "" where there is neither."""
    some = "0" * 32
    with contextlib.suppress(NoReverseMatch):
        path = reverse("admin:django_otel_trace_detail", args=[some])
        return lambda trace_id: path.replace(some, trace_id)
    url = config.trace_url
    return lambda trace_id: url.replace("{trace_id}", trace_id) if url else ""


def open_store(config: Config) -> TraceStore:
    """The store of this project; its file is made when it is first used. Errors: `NoStoreError`."""
    if not config.enabled or not conf.is_console_on(config):
        raise NoStoreError(
            gettext(
                'The console is off, so no traces are stored: set OTEL["CONSOLE"] = {"ENABLED": True}, or DEBUG, for '
                "the server and for this command."
            )
        )
    try:
        return find_store(config, conf.deployment_identity(config))
    except (Unusable, OSError) as error:
        raise _failure(error) from error


def _failure(error: Exception) -> NoStoreError:
    reason = str(error) if isinstance(error, Unusable) else type(error).__name__
    return NoStoreError(gettext("The trace store cannot be used: %(reason)s") % {"reason": reason})


@contextlib.contextmanager
def open_answers(config: Config) -> Iterator[Answers]:
    """Answers from the store of this project. Errors: `NoStoreError`."""
    store = open_store(config)
    try:
        if not store.path.exists():
            message = gettext("There is no trace store at %(path)s yet: no process of this project has written one.")
            raise NoStoreError(message % {"path": store.path})
        with read(store) as reader:
            yield Answers(reader, address_of(config))
    except (Unusable, sqlite3.Error, OSError) as error:
        raise _failure(error) from error


# --- The commands. ---


def run(name: str, options: Mapping[str, Any], config: Config, write: Callable[[str], object]) -> int:
    """Run one of `NAMES` with parsed options, and return the exit code."""
    is_json = options["format"] == "json"
    answer: Answer | None
    try:
        with open_answers(config) as answers:
            answer = _ask(name, options, answers)
        problem = gettext("There is no trace %(id)s in the store.") % {"id": options["id"]} if answer is None else ""
    except NoStoreError as error:
        answer, problem = None, str(error)
    if answer is None:
        write(printable_json({"problem": problem}) if is_json else printable(problem))
        return NOT_WORKING
    if is_json:
        write(printable_json(answer))
        return OK
    for line in _lines(name, answer):
        write(shorten(printable(line), _WIDTH))
    return OK


def _ask(name: str, options: Mapping[str, Any], answers: Answers) -> Answer | None:
    scope = Scope(options["since"], options["limit"])
    if name == "traces":
        wanted = TraceFilter(
            route=options["route"], status=_status(options["status"]), has_error=options["errors"],
            min_duration_s=options["min_ms"] / 1000 or None,
        )  # fmt: skip
        return answers.list_traces(scope, wanted)
    if name == "trace":
        return answers.get_trace(answers.find_id(options["id"]))
    if name == "errors":
        return answers.list_errors(scope)
    if name == "slow":
        return answers.list_slow_routes(scope)
    if name == "n-plus-one":
        return answers.list_n_plus_one(scope)
    wanted_logs = LogFilter(
        text=options["search"], severity=SEVERITIES.get(options["level"] or "", 0), logger=options["logger"],
        trace_id=options["trace"].lower(),
    )  # fmt: skip
    return answers.search_logs(scope, wanted_logs)


def _status(given: str) -> str:
    """A status or a class of them; anything else fits nothing."""
    text = given.lower()
    is_class = len(text) == 3 and text[0] in "12345" and text[1:] == "xx"
    return text if is_class or not text or (text.isascii() and text.isdigit() and len(text) == 3) else "999"


# --- Text. ---


def table(head: Sequence[str], rows: Sequence[Sequence[object]], wide: int) -> list[str]:
    """A table of at most 80 columns; column `wide` gets what the others leave, and is cut."""
    cells = [list(head), *([printable("" if value is None else str(value)) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    rest = _WIDTH - sum(widths) + widths[wide] - 2 * (len(head) - 1)
    widths[wide] = min(widths[wide], max(8, rest))
    lines = []
    for row in cells:
        shown = [shorten(cell, width).ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(shown).rstrip()[:_WIDTH])
    return lines


def shorten(text: str, width: int) -> str:
    """The text in at most `width` characters."""
    return text if len(text) <= width else f"{text[: max(0, width - 3)]}..."[:width]


def _items(answer: Answer, key: str) -> _Rows:
    rows = answer.get(key)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _clock(moment: str) -> str:
    return moment[11:19]


def _milliseconds(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, int | float) else ""


def _traces(rows: _Rows) -> list[str]:
    head = (
        gettext("trace"), gettext("time"), gettext("ms"), gettext("status"), pgettext("database", "queries"),
        gettext("request"),
    )  # fmt: skip
    return table(
        head,
        [
            (row["trace_id"], _clock(row["time"]), _milliseconds(row["duration_ms"]), row["status"] or "",
             row["queries"], f"{row['method']} {row['route']}".strip() or row["name"])
            for row in rows
        ],
        5,
    )  # fmt: skip


def _trace(answer: Answer) -> list[str]:
    title = f"{answer['method']} {answer['route']}".strip() or str(answer["name"])
    lines = [shorten(f"{title} {answer['status'] or ''} {_milliseconds(answer['duration_ms'])} ms", _WIDTH)]
    if answer["address"]:
        lines.append(str(answer["address"]))
    spans = [
        (_milliseconds(span["at_ms"]), _milliseconds(span["duration_ms"]),
         f"{'  ' * min(12, span['depth'])}{span['name']}{' !' if span.get('status') == 'ERROR' else ''}")
        for span in _items(answer, "spans")
    ]  # fmt: skip
    lines += table((gettext("at ms"), gettext("ms"), gettext("span")), spans, 2)
    shown, total = len(spans), answer["span_count"]
    if isinstance(total, int) and total > shown:
        lines.append(gettext("%(shown)d of %(total)d spans") % {"shown": shown, "total": total})
    logs = _items(answer, "log_records")
    if logs:
        rows = [(_milliseconds(log["at_ms"]), log["level"], log["text"]) for log in logs]
        lines += ["", *table((gettext("at ms"), gettext("level"), gettext("log record")), rows, 2)]
    return lines


def _errors(rows: _Rows) -> list[str]:
    lines = []
    for row in rows:
        lines.append(shorten(f"{row['count']} x {row['type']}: {row['message']}", _WIDTH))
        lines.append(shorten(f"    {row['place']}  {', '.join(row['routes'])}", _WIDTH))
        lines.append(f"    {row['last'][:19]}  {row['trace_id']}")
    return lines


def _slow(rows: _Rows) -> list[str]:
    head = (
        pgettext("95th percentile", "p95 ms"), pgettext("median", "p50 ms"), gettext("longest"), gettext("requests"),
        gettext("failed"), pgettext("database", "queries"), gettext("route"),
    )  # fmt: skip
    lines = table(
        head,
        [
            (_milliseconds(row["p95_ms"]), _milliseconds(row["p50_ms"]), _milliseconds(row["longest_ms"]),
             row["requests"], row["errors"], row["queries"], f"{row['method']} {row['route']}".strip())
            for row in rows
        ],
        6,
    )  # fmt: skip
    changed = [row for row in rows if row["change"] in ("broken", "slower") and row["before"]]
    if changed:
        lines += ["", gettext("Since the last release:")]
        lines += [shorten(_changed(row), _WIDTH) for row in changed]
    return lines


def _changed(row: Mapping[str, Any]) -> str:
    before, after = row["before"], row["after"]
    message = gettext("p95 %(p95)s ms, failed %(failed)s: %(route)s")
    return message % {
        "p95": f"{_milliseconds(before['p95_ms'])} -> {_milliseconds(after['p95_ms'])}",
        "failed": f"{before['errors']}/{before['requests']} -> {after['errors']}/{after['requests']}",
        "route": printable(f"{row['method']} {row['route']}".strip()),
    }


def _n_plus_one(rows: _Rows) -> list[str]:
    lines = []
    for row in rows:
        lines.append(shorten(f"{row['in_one_request']} x {row['statement']}", _WIDTH))
        details = "  ".join(filter(None, (str(row["route"]), str(row["line"]))))
        if details:
            lines.append(shorten(f"    {details}", _WIDTH))
        if row["advice"]:
            lines.append(shorten(f"    {row['advice']}", _WIDTH))
        lines.append(f"    {row['trace_id']}")
    return lines


def _logs(rows: _Rows) -> list[str]:
    head = (gettext("time"), gettext("level"), gettext("logger"), gettext("text"))
    return table(
        head,
        [(_clock(row["time"]), row["level"], shorten(row["logger"], 20), row["text"]) for row in reversed(rows)],
        3,
    )


#: Of each list: the key of its rows, and the lines that show them.
_LISTS: dict[str, tuple[str, Callable[[_Rows], list[str]]]] = {
    "traces": ("traces", _traces), "errors": ("errors", _errors), "slow": ("routes", _slow),
    "n-plus-one": ("statements", _n_plus_one), "logs": ("log_records", _logs),
}  # fmt: skip


def _lines(name: str, answer: Answer) -> list[str]:
    """The text of an answer to one of `NAMES`."""
    if name == "trace":
        return _trace(answer)
    key, show = _LISTS[name]
    rows = _items(answer, key)
    return show(rows) if rows else [gettext("Nothing stored matches.")]
