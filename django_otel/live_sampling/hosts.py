"""Versions applied by processes of other hosts, reported through the database while the page is open.

On one host the processes see each other in a folder (`multiprocess.host_registry`). Over hosts
the database is all they have in common. So a page that is open says so in the
row of the version, and the elected process of each host, which asks the
database anyway, answers with a row of its own. While no page is open, nothing is written.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from django.db.models.functions import Now

#: A page that is open says so this often, in seconds.
_RENEW_S = 4.0
#: For so long after it has said so it is answered, in seconds.
_WATCHED_S = 20.0
#: Intervals of reports in seconds: with news, and without.
_REPORT_S, _REPEAT_S = 1.0, 5.0
#: A host that has not answered for so long is not shown, and later forgotten, in seconds.
_SHOWN_S, _FORGOTTEN_S = 20.0, 3600.0


def name_of(folder: Path) -> str:
    """This host, or of several servers on it that share no folder, this one."""
    return f"{socket.gethostname()[:200]}/{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"


def watch(using: str) -> None:
    """Ask the other hosts to report what they apply, for an open page. Errors: the database's."""
    from django_otel.models import SamplingVersion

    versions = SamplingVersion._base_manager.using(using).filter(pk=SamplingVersion.ONLY_ID)
    row = versions.annotate(now=Now()).values_list("watched_at", "now").first()
    if row is None:
        SamplingVersion._base_manager.using(using).bulk_create([SamplingVersion()], ignore_conflicts=True)
    elif _is_within(_RENEW_S, *row):
        return
    versions.update(watched_at=Now())


def members_elsewhere(using: str, own_name: str) -> list[dict[str, Any]]:
    """Return the reports of the processes of other hosts, each with `reported_s_ago`. Errors: the database's."""
    from django_otel.models import SamplingHost

    found = []
    rows = SamplingHost._base_manager.using(using).exclude(pk=own_name).annotate(now=Now())
    for text, told_at, now in rows.values_list("members", "told_at", "now"):
        if _is_within(_SHOWN_S, told_at, now):
            ago_s = max(0.0, (now - told_at).total_seconds())
            found += [{**member, "reported_s_ago": ago_s, "is_here": False} for member in json.loads(text)]
    return found


class HostReporter:
    """The leader's part: notices an open page, and reports the versions of this host's processes."""

    def __init__(self) -> None:
        self._watched_at: datetime.datetime | None = None
        # On the clock of `time.monotonic()`.
        self._watched_until_s = -math.inf
        self._next_s = -math.inf
        self._repeat_s = -math.inf
        self._told = ""

    def look(self, using: str) -> None:
        """Find out whether a page is open; one query. Errors: the database's."""
        from django_otel.models import SamplingVersion

        versions = SamplingVersion._base_manager.using(using).filter(pk=SamplingVersion.ONLY_ID)
        self.note(*next(iter(versions.annotate(now=Now()).values_list("watched_at", "now")[:1]), (None, None)))

    def note(self, watched_at: datetime.datetime | None, now: datetime.datetime | None) -> None:
        """Note when a page was last open, and the current time, both by the database."""
        if watched_at != self._watched_at:
            # That it has changed is enough.
            if self._watched_at is not None or _is_within(_WATCHED_S, watched_at, now):
                self._watched_until_s = time.monotonic() + _WATCHED_S
            self._watched_at = watched_at

    def is_due(self) -> bool:
        """Return whether a report is due."""
        now_s = time.monotonic()
        return self._next_s <= now_s < self._watched_until_s

    def report(self, using: str, name: str, members: Sequence[Mapping[str, object]]) -> bool:
        """Write this host's row if there is news, or for long was none; whether it did. Errors: the database's."""
        from django_otel.models import SamplingHost

        now_s = time.monotonic()
        self._next_s = now_s + _REPORT_S
        text = json.dumps(list(members), sort_keys=True)
        if text == self._told and now_s < self._repeat_s:
            return False
        hosts = SamplingHost._base_manager.using(using)
        if not hosts.filter(pk=name).update(members=text, told_at=Now()):
            hosts.bulk_create([SamplingHost(name=name, members=text, told_at=Now())], ignore_conflicts=True)
            hosts.filter(told_at__lt=Now() - datetime.timedelta(seconds=_FORGOTTEN_S)).delete()
        self._told, self._repeat_s = text, now_s + _REPEAT_S
        return True


def _is_within(seconds: float, moment: datetime.datetime | None, now: datetime.datetime | None) -> bool:
    """Return whether `moment` was less than `seconds` ago, and not still to come.

    Both are the database's own times: with USE_TZ = False those of SQLite are UTC and of others local, and clocks of
    hosts differ. One that is still to come is of an hour that the clock repeats, or of before it was set back.
    """
    return moment is not None and now is not None and -1.0 <= (now - moment).total_seconds() < seconds
