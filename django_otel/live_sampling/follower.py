"""The admin's sampling policy: from its rows in the database to the sampler of every process.

The process that saves swaps when its transaction commits and writes the policy
into a folder that all processes of the host share (`multiprocess.host_registry`); the others
look at that file every half second, without a connection of their own. One of
them is elected to ask the database each `SAMPLING.REFRESH_S`, for what other
hosts or plain SQL have changed, and sooner when a shared cache says that there
is news. A new process applies the file before its first decision. Where no
folder can be used every process asks the database for itself. Nothing here runs
on the path of a request, except the one that saves.

`policy_rows` alone decides what the rows mean; of two readings the one that
began later is applied, whichever process made it.
"""

from __future__ import annotations

import math
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from django.db import connections, transaction

from django_otel import runtime
from django_otel.base import forks, guard
from django_otel.base.suppression import suppress_instrumentation
from django_otel.config.schema import Config
from django_otel.live_sampling import hosts, log_levels, policy_rows
from django_otel.live_sampling.conditions import is_live, is_under_test_runner, reason_not_to_run
from django_otel.live_sampling.policy_cache import CacheNews, tell_cache
from django_otel.live_sampling.policy_folder import group_name, open_registry
from django_otel.live_sampling.policy_rows import (
    NO_DATABASE,
    RowFaultyError,
    TableMissingError,
    UnreadableError,
    missing_table_text,
    policy_alias,
    tables_exist,
)
from django_otel.sampling.policy import Policy
from django_otel.sampling.sampler import LiveSampler
from django_otel.signals import log_levels_changed, sampling_changed

if TYPE_CHECKING:
    from django_otel.models import SamplingState
    from django_otel.multiprocess.host_registry import HostRegistry, Reading


#: While the database does not answer, the pause between two attempts doubles up to this.
_LONGEST_PAUSE_S = 30.0
#: How often a process looks at the shared file, in seconds.
_TICK_S = 0.5
#: After so many seconds without a sign of the elected process the others ask for themselves.
_SILENT_S = 10.0
#: How often a process that found no folder tries again, in seconds.
_REOPEN_S = 30.0
#: How long the first decision of a process waits for the first reading, in seconds, if no process of its host has one.
_FIRST_S = 1.0
#: How often the thread looks until then, in seconds.
_FIRST_TICK_S = 0.02


def _publish(registry: HostRegistry, reading: Reading) -> None:
    try:
        registry.publish(reading)
    except OSError:
        # As on a full disk: each process leads in turn, and asks the database for itself.
        registry.resign()
        raise


class Follower:
    """Keeps this process's sampler equal to the rows. One per process, made when it is first needed.

    Its lock and event are made with it, so after gevent has patched `threading`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Event()
        #: Set once this process has what is known: from the folder, or from the database that was asked.
        self._knows = threading.Event()
        self._thread: threading.Thread | None = None
        self._stopping = False
        #: When the reading began that is applied, on the clock of `time.monotonic()`.
        self._applied_began_s = -math.inf
        self._pause_s = 0.0
        self._has_polled = False
        # On that clock as well.
        self._next_poll_s = -math.inf
        self._next_open_s = -math.inf
        self._next_share_s = -math.inf
        self._hurries_until_s = -math.inf
        self._cache = CacheNews()
        self._reporter = hosts.HostReporter()
        self.log_levels = log_levels.LevelFollower()
        self.registry: HostRegistry | None = None
        self.wanted = False
        self.applied_at_s: float | None = None
        self.read_at_s: float | None = None
        self.fault = ""

    @property
    def is_following(self) -> bool:
        """Return whether the background thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Apply the policy known on this host, and start the thread unless it runs or is not allowed here."""
        with self._lock:
            self.wanted = True
            if self.is_following or reason_not_to_run():
                return
            self._stopping = False
            self._wake.clear()
        # Before the first decision of this process. A file or two; no database, no socket.
        with guard.contained("looking for the sampling policy of this host"):
            self._open()
            self._share()
            self._look_at_log_levels()
            if self.registry is not None and is_live() and self.registry.lead():
                # No process has read lately: what the folder says may be of long ago.
                self._knows.clear()
        with self._lock:
            if self.is_following:
                return
            self._hurries_until_s = time.monotonic() + _FIRST_S
            self._thread = threading.Thread(target=self._run, name="django_otel-sampling-policy", daemon=True)
            self._thread.start()
        if is_live():
            self._knows.wait(_FIRST_S)

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
        """Read the rows now rather than at the next turn."""
        self._next_poll_s = -math.inf
        self._wake.set()

    def abandon(self) -> None:
        """Close files that a forked child has inherited; the parent's locks stay as they are."""
        found, self.registry = self.registry, None
        if found is not None:
            found.close()

    # --- The thread. ---

    def _run(self) -> None:
        try:
            while not self._stopping:
                with guard.contained("following the sampling policy"):
                    if reason_not_to_run():
                        break
                    self.tick()
                now_s = time.monotonic()
                is_hurried = not self._knows.is_set() and now_s < self._hurries_until_s
                # The one that polls: not a tick later than is due.
                until_poll_s = self._next_poll_s - now_s if self._next_poll_s > now_s else _TICK_S
                self._wake.wait(_FIRST_TICK_S if is_hurried else min(_TICK_S, until_poll_s))
                self._wake.clear()
        finally:
            with guard.contained("ending log levels"):
                self.log_levels.end()
            if self.registry is not None:
                self.registry.resign()

    def tick(self) -> None:
        """One turn: look at the file, ask the database if this process leads and that is due, report."""
        with guard.contained("looking at the sampling policy of this host"):
            self._look_after_folder()
        self._look_at_log_levels()
        if is_live():
            is_leader = self.registry is None
            with guard.contained("electing who asks for the sampling policy"):
                # A leader without a heartbeat is stopped, or waits for the database: then all ask.
                is_leader = self.registry is None or self.registry.lead() or self.registry.silent_s() > _SILENT_S
            if is_leader and (time.monotonic() >= self._next_poll_s or self._cache.is_there()):
                self._next_poll_s = time.monotonic() + self.poll()
        with guard.contained("reporting the effective sampling policy"):
            self._share()
            self._report()
        if is_live():
            with guard.contained("telling other hosts what this one applies"):
                self._report_to_hosts()

    def _look_at_log_levels(self) -> None:
        if is_live():
            with guard.contained("looking at the log levels of this host"):
                self.log_levels.tick(self.registry)

    def _look_after_folder(self) -> None:
        if self.registry is not None and not self.registry.is_intact():
            # Deleted while in use.
            self.abandon()
        if self.registry is None:
            self._open()
        elif self.registry.has_changed():
            self._apply_file()

    def _open(self) -> None:
        if self.registry is not None or time.monotonic() < self._next_open_s:
            return
        self._next_open_s = time.monotonic() + _REOPEN_S
        try:
            found = open_registry()
            found.join()
        except OSError as error:
            guard.warn_once(
                "sampling folder",
                "django_otel: the processes of this host cannot share the sampling policy (%s); each asks the "
                "database for itself. Set METRICS.SHARED_DIR to a folder they may write to.",
                error,
            )
            return
        self.registry = found
        self._apply_file()
        self._report()

    def _apply_file(self) -> None:
        if self.registry is None or not is_live():
            return
        try:
            reading = self.registry.read()
        except (OSError, ValueError, RecursionError) as error:
            # The elected process puts a good one in its place, because it cannot read this one either.
            guard.warn_once("sampling file", "django_otel: the file with the sampling policy is ignored: %s", error)
            self._next_poll_s = -math.inf
            return
        if reading is not None:
            self._apply(reading)
            self._note(reading.fault, is_reported=True)
            if not self.registry.is_leading:
                self._knows.set()

    def poll(self) -> float:
        """Read and apply the rows on a connection that is closed again.

        Units: returns the seconds to wait before the next poll: `REFRESH_S`; less after the first one, so that hosts
            that start together do not go on asking together; more while the database does not answer.
        """
        from django_otel.live_sampling.rows_together import RowsTogether

        alias = policy_alias()
        together = RowsTogether()
        try:
            try:
                is_readable = self.read_and_apply(alias, together.read)
            finally:
                self._knows.set()
            if is_readable:
                together.pass_on(alias, self.registry, self.log_levels, None if self.fault else self._reporter)
        finally:
            with guard.contained("closing the connection of the sampling policy"):
                connections[alias].close()
                # With DEBUG Django keeps the text of every query, and no request ever ends here to forget it.
                connections[alias].queries_log.clear()
        refresh_s = runtime.current().config.sampling.refresh_s
        if is_readable:
            self._pause_s = 0.0
            is_first, self._has_polled = not self._has_polled, True
            return refresh_s * random.uniform(0.5, 1.0) if is_first else refresh_s  # noqa: S311 (keeps no secret)
        self._pause_s = min(max(self._pause_s * 2, refresh_s), max(_LONGEST_PAUSE_S, refresh_s))
        return self._pause_s

    def read_and_apply(self, alias: str, read: Callable[[str], SamplingState] | None = None) -> bool:
        """Read the rows (by `models.read_state`), apply and share them. False when they could not be read."""
        began_s = time.monotonic()
        fault = ""
        policy: Policy | None = None
        try:
            with suppress_instrumentation():
                policy = policy_rows.read_policy(alias, read)
        except (TableMissingError, RowFaultyError) as problem:
            fault = str(problem)
        except UnreadableError as problem:
            # The last policy stays: an operator who has turned tracing down must not see it rise with an outage.
            self._note(str(problem))
            with guard.contained("sharing the sampling policy"):
                found = self.publisher()
                if found is not None:
                    found.publish_fault(str(problem), began_s)
            return False
        from django_otel.multiprocess.host_registry import Reading

        reading = Reading(policy, began_s, time.time(), fault)
        self._apply(reading)
        self._note(fault)
        with guard.contained("sharing the sampling policy"):
            found = self.publisher()
            if found is not None:
                _publish(found, reading)
        return True

    def publisher(self) -> HostRegistry | None:
        """The folder to write to, also for a process that only saves and does not follow."""
        if self.registry is not None or is_under_test_runner():
            return self.registry
        try:
            return open_registry()
        except OSError:
            return None

    def _apply(self, reading: Reading) -> None:
        with self._lock:
            sampler = _sampler()
            if reading.began_s < self._applied_began_s:
                return
            self._applied_began_s = reading.began_s
            self.read_at_s = reading.read_at_s
            # Switched off while the rows were being read?
            policy = reading.policy if is_live() else None
            if sampler.live == policy:
                if self.applied_at_s is None:
                    self.applied_at_s = time.time()
                return
            sampler.swap(policy)
            self.applied_at_s = time.time()
        now = sampler.policy
        guard.logger.info("The sampling ratio is now %g (%s, version %d).", now.ratio, now.source, now.version)

    def _note(self, fault: str, *, is_reported: bool = False) -> None:
        """Log a problem once, and its end once, unless another process has logged it already."""
        with self._lock:
            before, self.fault = self.fault, fault
        if is_reported:
            return
        if fault and fault != before:
            guard.logger.warning("django_otel: %s", fault)
        elif before and not fault:
            guard.logger.info("django_otel: the sampling policy can be read again.")

    # --- What the others see. ---

    def _report_to_hosts(self) -> None:
        """The processes of this host, for a page that another host answers; only the elected process does."""
        if self.registry is None or not self.registry.is_leading or not self._reporter.is_due():
            return
        alias = policy_alias()
        try:
            with suppress_instrumentation():
                self._reporter.report(alias, hosts.name_of(self.registry.folder), self.registry.members())
        finally:
            connections[alias].close()
            connections[alias].queries_log.clear()

    def _share(self) -> None:
        """Divide the limit per second among the processes of this server that live now."""
        sampler = _sampler()
        if self.registry is None or sampler.policy.max_per_second is None or time.monotonic() < self._next_share_s:
            return
        self._next_share_s = time.monotonic() + 2 * _TICK_S
        group = group_name()
        groups = [str(member.get("group")) for member in self.registry.members()]
        clock = None
        with guard.contained("sharing the limit of traces per second"):
            clock = self.registry.clock(group)
            if self.registry.is_leading:
                self.registry.sweep_clocks({group, *groups})
        sampler.share(groups.count(group), clock)

    def _report(self) -> None:
        if self.registry is not None:
            self.registry.report(_describe_process(self.applied_at_s, self.fault))


def _describe_process(applied_at_s: float | None, fault: str) -> dict[str, object]:
    """Return the report of this process; `applied_at_s` is seconds since the Unix epoch."""
    sampler = _sampler()
    live, policy = sampler.live, sampler.policy
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "group": group_name(),
        "command": runtime.command_name() or "",
        "started_at_s": runtime.current().started_at_s,
        "ratio": policy.ratio,
        "source": policy.source,
        "version": live.version if live is not None else 0,
        "fingerprint": live.fingerprint if live is not None else "",
        "applied_at_s": applied_at_s,
        # Among how many this one divides the limit per second, where there is one.
        "sharers": sampler.processes,
        "error": fault,
    }


#: By process id: after a fork, however it was made, the child finds none and makes its own.
_followers: dict[int, Follower] = {}


def follower() -> Follower:
    """This process's follower."""
    pid = os.getpid()
    found = _followers.get(pid)
    if found is None:
        found = _followers.setdefault(pid, Follower())
        for inherited in [other for other in _followers if other != pid]:
            before = _followers.pop(inherited, None)
            if before is not None:
                before.abandon()
    return found


def _abandon_inherited() -> None:
    pid = os.getpid()
    for inherited in [other for other in _followers if other != pid]:
        with guard.contained("leaving the parent's folder after a fork"):
            _followers.pop(inherited).abandon()


# At once: a child that kept the parent's locks open would keep them held when the parent is gone.
forks.register("live_sampling.follower", _abandon_inherited)


def ensure_started() -> None:
    """Begin to follow the admin's policy in this process; called before its first decision.

    Applies the policy that processes of this host know already. If none of them
    asks the database at the moment, a thread does, and is waited for up to
    `_FIRST_S` seconds; when the database takes longer, what was known last (or
    the settings) holds until it answers. Does nothing when the process follows
    already, when `SAMPLING.LIVE` is False, or under a test runner.
    """
    found = _followers.get(os.getpid())
    if found is not None and found.wanted:
        return
    with guard.contained("starting to follow the sampling policy"):
        follower().start()


def stop(timeout_s: float = 0.0) -> None:
    """Stop following; the current policy stays in effect. Waits for the thread up to `timeout_s` seconds."""
    found = _followers.get(os.getpid())
    if found is not None:
        found.stop(timeout_s)


def _on_sampling_changed(*, using: str, **_: object) -> None:
    """The row changed through the database alias `using`: apply it in this process once that is committed."""
    with guard.contained("noticing a change of the sampling policy"):
        if using == policy_alias() and is_live():
            _after_commit(partial(_apply_committed, using), using)


def _on_log_levels_changed(*, using: str, **_: object) -> None:
    """A level was set or ended through the database alias `using`: share it once that is committed."""
    with guard.contained("noticing a change of the log levels"):
        if using == log_levels.level_alias() and is_live():
            _after_commit(_share_log_levels, using)


def _after_commit(action: Callable[[], object], using: str) -> None:
    connection = connections[using]
    if connection.in_atomic_block or connection.get_autocommit():
        transaction.on_commit(action, using=using, robust=True)
    # Else the project manages transactions by hand and Django has no hook; the next poll sees the row.


def _share_log_levels() -> None:
    with guard.contained("sharing the log levels"):
        mine = follower()
        mine.log_levels.poll(mine.publisher(), is_following=mine.is_following)
        if not is_under_test_runner():
            tell_cache()


log_levels_changed.connect(_on_log_levels_changed, dispatch_uid="django_otel.live_sampling.follower.log_levels")
sampling_changed.connect(_on_sampling_changed, dispatch_uid="django_otel.live_sampling.follower")


def _apply_committed(using: str) -> None:
    # The row is read again instead of taking over what was saved: another
    # save may have been committed since, or a manual savepoint rolled back.
    with guard.contained("applying the sampling policy"):
        if follower().read_and_apply(using) and not is_under_test_runner():
            tell_cache()


def table_problem() -> str | None:
    """Return the message for live sampling without its table; None if all is well or it cannot be known.

    Asks the database: for checks that may (`databases` is not None).
    """
    if not is_live():
        return None
    alias = policy_alias()
    if connections[alias].settings_dict["ENGINE"] == NO_DATABASE:
        return None
    return missing_table_text(alias) if tables_exist(alias) is False else None


def processes() -> list[dict[str, object]]:
    """Return the report of every living process of this host that follows the same policy, without a query.

    Each has `host`, `pid`, `group` (its server), `command` (a management
    command, or ""), `started_at_s`, `ratio`, `source`, `version` and
    `fingerprint` (`sampling.policy.Policy`; "" where nothing of the admin's is
    applied), `applied_at_s`, `sharers`, `error`, and `is_here` for this process.

    Units: every `*_s` is seconds since the Unix epoch.
    """
    members: list[dict[str, object]] = []
    with guard.contained("reading what the processes of this host apply"):
        followed = _followers.get(os.getpid())
        shown = followed.registry if followed is not None else None
        members = (shown if shown is not None else open_registry()).members()
    return [{**member, "is_here": member.get("pid") == os.getpid()} for member in members]


def processes_elsewhere() -> list[dict[str, Any]]:
    """Return the last reports of the processes of other hosts, as in `processes`, with `reported_s_ago` in seconds.

    Asks the database, and asks the other hosts to go on telling: for a page
    that is being looked at. They do so within `REFRESH_S`, for as long as it is.
    """
    with guard.contained("reading what the processes of other hosts apply"):
        alias = policy_alias()
        hosts.watch(alias)
        try:
            own_name = hosts.name_of(open_registry().folder)
        except OSError:
            # Without a folder this process reports nothing that would have to be left out.
            own_name = ""
        return hosts.members_elsewhere(alias, own_name)
    return []


def status() -> dict[str, Any]:
    """Return the policy that this process applies now, and why; read from memory, without a query.

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
        "live": is_live(),
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
