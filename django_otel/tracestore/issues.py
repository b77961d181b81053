"""Issues: equal exceptions of a service, counted over all processes, with their state and their notices.

Equal are exceptions of one type out of one function, wherever in it the line stands now.
"""

from __future__ import annotations

import hashlib
import linecache
import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from django_otel.redaction.scrub import Scrubber
from django_otel.tracestore.errors import MAX_ROUTES, OTHER_ROUTES, PendingError, Raised, SeenIn, find_place
from django_otel.tracestore.packing import pack

OPEN, RESOLVED, IGNORED = "open", "resolved", "ignored"
STATES = (OPEN, RESOLVED, IGNORED)
#: Of each issue: traces, releases; the chart's steps for this long, in seconds.
MAX_TRACES = 20
MAX_RELEASES = 30
STEPS_KEPT_S = 7 * 86_400
MAX_ISSUES = 500
#: At least this much of the file for each issue.
_BYTES_PER_ISSUE = 128 << 10
_MAX_MESSAGE = 2000
#: A claimed notice whose process did not say how it ended is tried again after this time, in seconds.
CLAIM_S = 600.0
#: Times a notice is tried, and the first wait, in seconds, which doubles.
MAX_ATTEMPTS = 8
RETRY_S = 15.0


@dataclass(frozen=True, slots=True)
class StoredErrors:
    """Exceptions of one process: `release` is its SERVICE_VERSION, `started_s` when it started.

    `targets` are those that are notified of new issues, at most every `quiet_s` seconds of each issue.
    """

    service: str
    release: str
    started_s: float
    errors: Sequence[PendingError]
    scrubber: Scrubber
    targets: Sequence[str] = ()
    quiet_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class Notice:
    """Contents of a notice: `reason` is "new" or "back"."""

    id: int
    issue: int
    target: str
    reason: str
    attempts: int


def key_of(target: str) -> str:
    """The name of a target in the store: the address of a webhook is a secret."""
    return f"webhook {hashlib.sha256(target.encode()).hexdigest()[:16]}" if "://" in target else target


def fingerprint_of(service: str, error_type: str, module: str, function: str) -> str:
    """The identity of an issue: stable over other lines, messages and routes."""
    return hashlib.sha256("\0".join((service, error_type, module, function)).encode("utf-8", "replace")).hexdigest()[
        :32
    ]


def write_errors(connection: sqlite3.Connection, item: StoredErrors, file_bytes: int) -> None:
    """Count exceptions into their issues, inside the caller's transaction."""
    for error in item.errors:
        _write_error(connection, item, error)
    most = max(8, min(MAX_ISSUES, file_bytes // _BYTES_PER_ISSUE))
    (count,) = connection.execute("SELECT count(*) FROM issue").fetchone()
    if count > most:
        # Resolved and ignored ones first, then those that were seen longest ago.
        victims = connection.execute(
            "SELECT id FROM issue ORDER BY state = 'open', last_s LIMIT ?", (count - most,)
        ).fetchall()
        for (issue,) in victims:
            forget_issue(connection, issue)


def forget_issue(connection: sqlite3.Connection, issue: int) -> None:
    """Delete an issue and all that belongs to it."""
    connection.execute("DELETE FROM issue WHERE id = ?", (issue,))
    for table in ("issue_route", "issue_release", "issue_step", "issue_trace", "notice"):
        connection.execute(f"DELETE FROM {table} WHERE issue = ?", (issue,))


def _write_error(connection: sqlite3.Connection, item: StoredErrors, error: PendingError) -> None:
    scrub = item.scrubber
    release = scrub.text(item.release)
    error_type = scrub.text(error.type)
    fingerprint = fingerprint_of(item.service, error.type, error.module, error.function)
    place = find_place(error.chain[0].frames) if error.chain else None
    file, line = (place.file, place.line) if place is not None else ("", 0)
    message = scrub.text(error.chain[0].message)[:_MAX_MESSAGE] if error.chain else ""
    stack = pack(_describe_chain(error.chain, scrub))
    if release:
        note_release(connection, item.service, release, error.first_s)
    row = connection.execute(
        "SELECT id, state, changed_s, resolved_release, notified_s FROM issue WHERE fingerprint = ?", (fingerprint,)
    ).fetchone()
    reason = ""
    if row is None:
        cursor = connection.execute(
            "INSERT INTO issue (fingerprint, service, type, module, function, file, line, message, first_s, last_s, "
            "count, first_release, last_release, stack) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                fingerprint, item.service, error_type, error.module, error.function, file, line, message,
                error.first_s, error.last_s, error.count, release, release, stack,
            ),
        )  # fmt: skip
        issue, notified_s, reason = int(cursor.lastrowid or 0), 0.0, "new"
    else:
        issue, state, changed_s, resolved_release, notified_s = row
        connection.execute(
            "UPDATE issue SET count = count + ?, first_s = min(first_s, ?), last_s = max(last_s, ?), last_release = ? "
            "WHERE id = ?",
            (error.count, error.first_s, error.last_s, release, issue),
        )
        if error.chain:
            connection.execute(
                "UPDATE issue SET file = ?, line = ?, message = ?, stack = ? WHERE id = ?",
                (file, line, message, stack, issue),
            )
        is_after = state == RESOLVED and error.last_s > changed_s
        if is_after and _is_newer(connection, item, release, resolved_release, changed_s):
            connection.execute(
                "UPDATE issue SET state = 'open', is_back = 1, changed_s = ? WHERE id = ?", (error.last_s, issue)
            )
            reason = "back"
    if reason and item.targets:
        quiet_until_s = notified_s + item.quiet_s if notified_s else 0.0
        _write_notices(connection, item, issue, reason, max(error.last_s, quiet_until_s))
    _write_parts(connection, issue, error, release)


def _write_notices(connection: sqlite3.Connection, item: StoredErrors, issue: int, reason: str, due_s: float) -> None:
    connection.executemany(
        "INSERT OR IGNORE INTO notice (issue, target, reason, service, due_s) VALUES (?, ?, ?, ?, ?)",
        [(issue, key_of(target), reason, item.service, due_s) for target in item.targets],
    )
    connection.execute("UPDATE issue SET notified_s = ? WHERE id = ?", (due_s, issue))


def _write_parts(connection: sqlite3.Connection, issue: int, error: PendingError, release: str) -> None:
    (known,) = connection.execute("SELECT count(*) FROM issue_route WHERE issue = ?", (issue,)).fetchone()
    for route, count in error.routes.items():
        changed = connection.execute(
            "UPDATE issue_route SET count = count + ? WHERE issue = ? AND route = ?", (count, issue, route)
        ).rowcount
        if not changed:
            known += 1
            connection.execute(
                "INSERT INTO issue_route (issue, route, count) VALUES (?, ?, ?) "
                "ON CONFLICT (issue, route) DO UPDATE SET count = count + excluded.count",
                (issue, route if known <= MAX_ROUTES else OTHER_ROUTES, count),
            )
    connection.execute(
        "INSERT INTO issue_release (issue, name, count, first_s, last_s) VALUES (?, ?, ?, ?, ?) ON CONFLICT "
        "(issue, name) DO UPDATE SET count = count + excluded.count, first_s = min(first_s, excluded.first_s), "
        "last_s = max(last_s, excluded.last_s)",
        (issue, release, error.count, error.first_s, error.last_s),
    )
    connection.execute(
        "DELETE FROM issue_release WHERE issue = ? AND name NOT IN "
        "(SELECT name FROM issue_release WHERE issue = ? ORDER BY last_s DESC LIMIT ?)",
        (issue, issue, MAX_RELEASES),
    )
    connection.executemany(
        "INSERT INTO issue_step (issue, at_s, count) VALUES (?, ?, ?) "
        "ON CONFLICT (issue, at_s) DO UPDATE SET count = count + excluded.count",
        [(issue, at_s, count) for at_s, count in error.steps.items()],
    )
    connection.execute("DELETE FROM issue_step WHERE issue = ? AND at_s < ?", (issue, error.last_s - STEPS_KEPT_S))
    _write_traces(connection, issue, error.traces)


def _write_traces(connection: sqlite3.Connection, issue: int, traces: Sequence[SeenIn]) -> None:
    connection.executemany(
        "INSERT INTO issue_trace (issue, trace_id, span_id, at_s, route) VALUES (?, ?, ?, ?, ?)",
        [(issue, seen.trace_id, seen.span_id, seen.at_s, seen.route) for seen in traces],
    )
    connection.execute(
        "DELETE FROM issue_trace WHERE issue = ? AND id NOT IN "
        "(SELECT id FROM issue_trace WHERE issue = ? ORDER BY id DESC LIMIT ?)",
        (issue, issue, MAX_TRACES),
    )


def _is_newer(
    connection: sqlite3.Connection, item: StoredErrors, release: str, resolved: str, resolved_s: float
) -> bool:
    """Return whether a release came after the one in which an issue was resolved.

    By their numbers where both are versions, else by which was seen first. Without names a process that was started
    after the issue was resolved runs a newer one.
    """
    if release == resolved:
        return not release and item.started_s > resolved_s
    mine, theirs = version_of(release), version_of(resolved)
    if mine and theirs and mine != theirs:
        return mine > theirs
    seen = dict(connection.execute("SELECT name, first_s FROM release WHERE service = ?", (item.service,)).fetchall())
    return bool(seen.get(release, 0.0) > seen.get(resolved, 0.0)) and bool(seen.get(release, 0.0) > 0)


def version_of(release: str) -> tuple[int, ...]:
    """The numbers of a version such as "v1.10.2"; empty for anything else."""
    found = re.fullmatch(r"v?(\d{1,9}(?:\.\d{1,9})*)", release)
    if found is None:
        return ()
    numbers = [int(number) for number in found[1].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers) or (0,)


def _describe_chain(chain: Sequence[Raised], scrub: Scrubber) -> list[dict[str, object]]:
    """The chain as it is stored: texts and source lines redacted."""
    return [
        {
            "type": scrub.text(raised.type),
            "message": scrub.text(raised.message)[:_MAX_MESSAGE],
            "frames": [
                {
                    "module": frame.module, "function": frame.function, "file": frame.file, "line": frame.line,
                    "is_project": frame.is_project,
                    "source": scrub.text(linecache.getline(frame.file, frame.line).strip()[:300]),
                }
                for frame in raised.frames
            ],
        }
        for raised in chain
    ]  # fmt: skip


# --- State, and notices. Each inside the caller's transaction. ---


def change_state(connection: sqlite3.Connection, issue: int, state: str, user: str, now_s: float) -> bool:
    """Resolve, ignore or open an issue; whether it is there."""
    row = connection.execute("SELECT service, last_release FROM issue WHERE id = ?", (issue,)).fetchone()
    if row is None or state not in STATES:
        return False
    # The newest release that is known: one that is being rolled out does not bring it back.
    newest = connection.execute(
        "SELECT name FROM release WHERE service = ? ORDER BY first_s DESC LIMIT 1", (row[0],)
    ).fetchone()
    connection.execute(
        "UPDATE issue SET state = ?, changed_s = ?, changed_by = ?, resolved_release = ?, is_back = 0 WHERE id = ?",
        (state, now_s, user, (newest[0] if newest is not None else row[1]) if state == RESOLVED else "", issue),
    )
    if state != OPEN:
        connection.execute("DELETE FROM notice WHERE issue = ?", (issue,))
    return True


def note_release(connection: sqlite3.Connection, service: str, release: str, now_s: float) -> None:
    """Remember when a release of a service was first seen."""
    connection.execute(
        "INSERT OR IGNORE INTO release (service, name, first_s) VALUES (?, ?, ?)", (service, release, now_s)
    )
    connection.execute(
        "DELETE FROM release WHERE service = ? AND name NOT IN "
        "(SELECT name FROM release WHERE service = ? ORDER BY first_s DESC LIMIT 100)",
        (service, service),
    )


def claim_notice(connection: sqlite3.Connection, service: str, now_s: float) -> Notice | None:
    """Take the oldest notice that is due, so that no other process sends it."""
    row = connection.execute(
        "SELECT id, issue, target, reason, attempts FROM notice WHERE service = ? AND due_s <= ? AND claimed_s < ? "
        "ORDER BY due_s, id LIMIT 1",
        (service, now_s, now_s - CLAIM_S),
    ).fetchone()
    if row is None:
        return None
    connection.execute("UPDATE notice SET claimed_s = ?, attempts = attempts + 1 WHERE id = ?", (now_s, row[0]))
    return Notice(row[0], row[1], row[2], row[3], row[4] + 1)


def settle_notice(connection: sqlite3.Connection, notice: Notice, now_s: float, *, is_sent: bool) -> bool:
    """Forget a notice that was sent, or put it off; whether it will be tried again."""
    if is_sent or notice.attempts >= MAX_ATTEMPTS:
        connection.execute("DELETE FROM notice WHERE id = ?", (notice.id,))
        return False
    wait_s = RETRY_S * 2 ** (notice.attempts - 1)
    connection.execute("UPDATE notice SET claimed_s = 0, due_s = ? WHERE id = ?", (now_s + wait_s, notice.id))
    return True


def next_due_s(connection: sqlite3.Connection, service: str) -> float | None:
    """Return when the next notice of a service is due; None without one."""
    (due_s,) = connection.execute("SELECT min(max(due_s, CASE WHEN claimed_s > 0 THEN claimed_s + ? ELSE 0 END)) "
                                  "FROM notice WHERE service = ?", (CLAIM_S, service)).fetchone()  # fmt: skip
    return None if due_s is None else float(due_s)
