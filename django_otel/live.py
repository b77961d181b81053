"""The admin's sampling policy: from its row in the database to the sampler of every process.

The process that saves swaps when its transaction commits. Every other process
has one background thread that reads the row each `SAMPLING.REFRESH_S` and
closes its connection again. Nothing here runs on the path of a request, except
the one that saves the row.

What a row means is decided in one place, `_read_policy`; what was read last is
applied, however it was read.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import threading
import time
from collections.abc import Iterable
from datetime import datetime
from functools import partial
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseFault
from django.db import connections, router, transaction
from django.utils import timezone
from opentelemetry.instrumentation.utils import suppress_instrumentation

from django_otel import runtime
from django_otel.core import guard
from django_otel.core.config import Config
from django_otel.core.policy import Policy, Rule
from django_otel.core.sampling import LiveSampler

#: While the database does not answer, the pause between two attempts doubles up to this.
_LONGEST_PAUSE_S = 30.0
_NO_DATABASE = "django.db.backends.dummy"


class _UnreadableError(Exception):
    """The row could not be read; the text says why, without anything from the database's own message."""


class _TableMissingError(_UnreadableError):
    """The table is not there, so no policy can be."""


class _RowFaultyError(_UnreadableError):
    """The row is there and makes no sense."""


class Follower:
    """Keeps this process's sampler equal to the row. One per process, made when it is first needed.

    Its lock and event are made with it, so after gevent has patched `threading`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._tickets = itertools.count(1)
        self._applied_ticket = 0
        self._pause_s = 0.0
        self.wanted = False
        self.applied_at_s: float | None = None
        self.read_at_s: float | None = None
        self.fault = ""

    @property
    def is_following(self) -> bool:
        """Whether the background thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the background thread, unless it runs or this process must not have one."""
        with self._lock:
            self.wanted = True
            if self.is_following or _reason_not_to_follow():
                return
            self._stopping = False
            self._wake.clear()
            self._thread = threading.Thread(target=self._run, name="django_otel-sampling-policy", daemon=True)
            self._thread.start()

    def stop(self, timeout_s: float = 0.0) -> None:
        """Ask the thread to end, and wait for it up to `timeout_s` seconds."""
        with self._lock:
            self.wanted = False
            self._stopping = True
            thread = self._thread
        self._wake.set()
        if thread is not None and timeout_s > 0:
            thread.join(timeout_s)

    def wake(self) -> None:
        """Read the row now rather than at the next turn."""
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping:
            pause_s = _LONGEST_PAUSE_S
            with guard.contained("following the sampling policy"):
                if _reason_not_to_follow():
                    break
                pause_s = self.poll()
            self._wake.wait(pause_s)
            self._wake.clear()

    def poll(self) -> float:
        """Read and apply the row on a connection that is closed again.

        Units: returns the seconds to wait before the next poll: a little under
            `REFRESH_S` (so that the workers of a server do not all ask at
            once), or more while the database does not answer.
        """
        alias = policy_alias()
        try:
            is_readable = self.read_and_apply(alias)
        finally:
            with guard.contained("closing the connection of the sampling policy"):
                connections[alias].close()
                # With DEBUG Django keeps the text of every query, and no request ever ends here to forget it.
                connections[alias].queries_log.clear()
        refresh_s = runtime.current().config.sampling.refresh_s
        if is_readable:
            self._pause_s = 0.0
            return refresh_s * random.uniform(0.85, 1.0)  # noqa: S311 (spreads load, keeps no secret)
        self._pause_s = min(max(self._pause_s * 2, refresh_s), max(_LONGEST_PAUSE_S, refresh_s))
        return self._pause_s

    def read_and_apply(self, alias: str) -> bool:
        """Read the row through this thread's connection and apply it. False when it could not be read."""
        # Of two readings that overlap, the one that began later saw the newer row: only it may be applied last.
        ticket = next(self._tickets)
        fault = ""
        policy: Policy | None = None
        try:
            with suppress_instrumentation():
                policy = _read_policy(alias)
        except (_TableMissingError, _RowFaultyError) as problem:
            fault = str(problem)
        except _UnreadableError as problem:
            # The last policy stays: an operator who has turned tracing down must not see it rise with an outage.
            self._note(str(problem))
            return False
        self._apply(ticket, policy)
        self._note(fault)
        return True

    def _apply(self, ticket: int, policy: Policy | None) -> None:
        with self._lock:
            sampler = _sampler()
            if ticket < self._applied_ticket:
                return
            self._applied_ticket = ticket
            self.read_at_s = time.time()
            if not _is_live():
                # Switched off while the row was being read.
                policy = None
            if sampler.live == policy:
                return
            sampler.swap(policy)
            self.applied_at_s = self.read_at_s
        now = sampler.policy
        guard.logger.info("The sampling ratio is now %g (%s, version %d).", now.ratio, now.source, now.version)

    def _note(self, fault: str) -> None:
        """Say once that something is wrong, and once that it is over."""
        with self._lock:
            before, self.fault = self.fault, fault
        if fault and fault != before:
            guard.logger.warning("django_otel: %s", fault)
        elif before and not fault:
            guard.logger.info("django_otel: the sampling policy can be read again.")


#: By process id: after a fork, however it was made, the child finds none and makes its own.
_followers: dict[int, Follower] = {}


def follower() -> Follower:
    """This process's follower."""
    pid = os.getpid()
    found = _followers.get(pid)
    if found is None:
        found = _followers.setdefault(pid, Follower())
        for inherited in [other for other in _followers if other != pid]:
            _followers.pop(inherited, None)
    return found


def ensure_started() -> None:
    """Begin to follow the admin's policy in this process; called at its first request.

    Never blocks on the database: the first reading happens in the background,
    and the settings hold until then. Does nothing when the process follows
    already, when `SAMPLING.LIVE` is False, or under a test runner.
    """
    found = _followers.get(os.getpid())
    if found is not None and found.wanted:
        return
    with guard.contained("starting to follow the sampling policy"):
        follower().start()


def stop(timeout_s: float = 0.0) -> None:
    """Stop following; the policy in force stays. Waits for the thread up to `timeout_s` seconds."""
    found = _followers.get(os.getpid())
    if found is not None:
        found.stop(timeout_s)


def after_commit(using: str) -> None:
    """The row changed through the database alias `using`: apply it in this process once that is committed."""
    with guard.contained("noticing a change of the sampling policy"):
        if using != policy_alias() or not _is_live():
            return
        connection = connections[using]
        if connection.in_atomic_block or connection.get_autocommit():
            transaction.on_commit(partial(_apply_committed, using), using=using, robust=True)
        # Else the project manages transactions by hand and Django has no hook; the next poll sees the row.


def _apply_committed(using: str) -> None:
    # The row is read again instead of taking over what was saved: another
    # save may have been committed since, or a manual savepoint rolled back.
    with guard.contained("applying the sampling policy"):
        follower().read_and_apply(using)


def policy_alias() -> str:
    """The database alias of the row. The one for writing: a replica that lags would bring back the old policy."""
    from django_otel.models import SamplingPolicy

    return router.db_for_write(SamplingPolicy)


def _read_policy(alias: str) -> Policy | None:
    """The admin's policy as the database has it; None when there is no row or it is not enabled.

    Errors: `_TableMissingError`, `_RowFaultyError`, or `_UnreadableError` for anything else.
    """
    from django_otel.models import SamplingPolicy

    rows = SamplingPolicy._base_manager.using(alias).filter(pk=SamplingPolicy.ONLY_ID)
    fields = ("enabled", "ratio", "expires_at", "note", "version")
    try:
        row = next(iter(rows.values_list(*fields)[:1]), None)
    except (DatabaseFault, ImproperlyConfigured, OSError) as error:
        if _table_exists(alias) is False:
            raise _TableMissingError(_missing_table_text(alias)) from error
        raise _UnreadableError(
            f'The sampling policy could not be read from database "{alias}" ({type(error).__name__}); '
            "the policy in force stays, and reading is tried again."
        ) from error
    except (ValueError, TypeError, OverflowError) as error:
        raise _RowFaultyError(_faulty_row_text(f"a value that is none ({type(error).__name__})")) from error
    return None if row is None else _build_policy(*row)


def _build_policy(enabled: Any, ratio: Any, expires_at: datetime | None, note: str, version: int) -> Policy | None:
    if not enabled:
        return None
    try:
        return Policy(ratio=float(ratio), source="admin", version=version, expires_at_s=epoch_s(expires_at), note=note)
    except (ValueError, TypeError, OverflowError) as error:
        raise _RowFaultyError(_faulty_row_text(f"the ratio {ratio!r}")) from error


def policy_from_rows(row: Any, rules: Iterable[Any] = ()) -> Policy | None:
    """The admin's policy, from its row (or None) and the rows of its rules; None where nothing is set.

    A row that is not enabled ignores its rules as well. Rules without a row, or
    beside one that has run out, apply above the settings: each has its own end.
    `row` has `enabled`, `ratio`, `expires_at`, `note`, `version`, `max_per_second`,
    `keep_errors`, `keep_slow_s`; a rule has `path`, `route`, `method`, `ratio`,
    `priority`, `expires_at`, `note`.

    Errors: `ValueError` for values that make no sense.
    """
    if row is not None and not row.enabled:
        return None
    built = tuple(
        Rule(
            rule.ratio, path=rule.path or "", route=rule.route or "", method=rule.method or "",
            priority=rule.priority, expires_at_s=epoch_s(rule.expires_at), note=rule.note or "",
        )
        for rule in rules
    )  # fmt: skip
    if row is None:
        return Policy(None, source="admin", rules=built) if built else None
    return Policy(
        float(row.ratio), source="admin", version=row.version, expires_at_s=epoch_s(row.expires_at), note=row.note,
        rules=built, max_per_second=row.max_per_second, keep_errors=row.keep_errors, keep_slow_s=row.keep_slow_s,
    )  # fmt: skip


def epoch_s(moment: datetime | None) -> float | None:
    """A moment of the database in seconds since the Unix epoch; None stays None."""
    if moment is None:
        return None
    # With USE_TZ = False Django hands out local times without a zone.
    return (timezone.make_aware(moment) if timezone.is_naive(moment) else moment).timestamp()


def _faulty_row_text(found: str) -> str:
    return (
        f"The sampling policy in the database is ignored: it has {found}; expected a ratio from 0.0 to 1.0. "
        "The settings apply until it is saved anew in the admin."
    )


def _missing_table_text(alias: str) -> str:
    return (
        f'The table of the sampling policy is missing in database "{alias}"; the settings apply. '
        f"Run: manage.py migrate django_otel{'' if alias == 'default' else f' --database {alias}'}"
    )


def _table_exists(alias: str) -> bool | None:
    """Whether the table is there; None when the database cannot tell."""
    from django_otel.models import SamplingPolicy

    connection = connections[alias]
    try:
        with suppress_instrumentation(), connection.cursor() as cursor:
            return SamplingPolicy._meta.db_table in connection.introspection.table_names(cursor)
    except Exception:
        # Whatever the driver says here, it cannot tell.
        return None


def table_problem() -> str | None:
    """What to say when live sampling is on and its table is missing; None when all is well or nobody can tell.

    Asks the database: for checks that may (`databases` is not None).
    """
    if not _is_live():
        return None
    alias = policy_alias()
    if connections[alias].settings_dict["ENGINE"] == _NO_DATABASE:
        return None
    return _missing_table_text(alias) if _table_exists(alias) is False else None


def status() -> dict[str, Any]:
    """What this process applies now and why; read from memory, without a query.

    Units: every `*_s` is seconds; `since_s`, `read_at_s` and `expires_at_s`
        since the Unix epoch, None where there is no such moment.
    """
    current = runtime.current()
    sampler = current.sampler
    found = _followers.get(os.getpid())
    policy, live = sampler.policy, sampler.live
    expired = live is not None and live.is_expired(time.time())
    since_s = found.applied_at_s if found is not None else None
    if live is not None and expired:
        since_s = live.expires_at_s
    return {
        "pid": os.getpid(),
        "enabled": current.enabled,
        "foreign": current.is_foreign,
        "live": _is_live(),
        "following": found is not None and found.is_following,
        "ratio": policy.ratio,
        "source": policy.source,
        "version": policy.version,
        "note": policy.note,
        "expires_at_s": policy.expires_at_s,
        "expired": expired,
        "since_s": since_s,
        "base_ratio": sampler.base.ratio,
        "base_source": current.config.sources.get("SAMPLING.RATIO", "default"),
        "read_at_s": found.read_at_s if found is not None else None,
        "refresh_s": current.config.sampling.refresh_s,
        "error": found.fault if found is not None else "",
    }


def _sampler() -> LiveSampler:
    return runtime.current().sampler


def _is_live() -> bool:
    current = runtime.current()
    return current.enabled and current.config.sampling.live


def _reason_not_to_follow() -> str:
    """Why this process must have no thread of ours; empty when it may."""
    if not _is_live():
        return "SAMPLING.LIVE is False or telemetry is off"
    if runtime.current().is_foreign:
        return "another tool's tracer provider decides"
    if _is_under_test_runner():
        # A connection of a thread of ours would keep PostgreSQL from dropping the test database.
        return "a test runner is active"
    if connections[policy_alias()].settings_dict["ENGINE"] == _NO_DATABASE:
        return "there is no database"
    return ""


def _is_under_test_runner() -> bool:
    # Django's test environment, also as pytest-django sets it up, is known by the outbox it puts there.
    mail = sys.modules.get("django.core.mail")
    return mail is not None and hasattr(mail, "outbox")


def _on_config_change(config: Config) -> None:
    if not config.sampling.live:
        _sampler().swap(None)
        return
    found = _followers.get(os.getpid())
    if found is not None and found.wanted:
        # Runs again if it had ended, and gives a new sampler the policy at once.
        found.start()
        found.wake()


runtime.on_config_change(_on_config_change)
