"""One query for everything that a host reads each `SAMPLING.REFRESH_S`: version, policy, rules, log levels, open pages.

Four small tables in one statement, which sees one moment of the database: so the policy and its rules always fit
together, and of fifty hosts the database sees fifty queries in that time. Where the statement fails (a table is
missing, a row has an invalid value), each part is read by itself, which reports the fault.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from django.db import Error as DatabaseFault
from django.db import connections
from django.db.models import BooleanField, CharField, F, FloatField, IntegerField, QuerySet, Value
from django.db.models.functions import Now

from django_otel.base import guard
from django_otel.base.frozen import record
from django_otel.base.suppression import suppress_instrumentation
from django_otel.live_sampling import log_levels
from django_otel.live_sampling.policy_rows import TableMissingError, lacks_a_table, missing_table_text

if TYPE_CHECKING:
    from datetime import datetime

    from django.db.models import Model

    from django_otel.live_sampling.hosts import HostReporter
    from django_otel.models import SamplingState
    from django_otel.multiprocess.host_registry import HostRegistry
    from django_otel.multiprocess.level_file import LevelReading

_VERSION, _POLICY, _RULE, _LEVEL = range(4)


@record
class _Row:
    """A row of any of the tables; a column that its table lacks has a value without a meaning."""

    kind: int
    #: The version, or the row's number.
    number: int
    enabled: bool
    ratio: float
    keep_errors: bool
    max_per_second: float | None
    #: The end of it, or when a page was last looked at.
    moment: datetime | None
    keep_slow_s: float | None
    #: The note, or the logger.
    text: str
    #: The path, or the level.
    path: str
    route: str
    method: str
    priority: int
    #: The time, by the database's clock.
    now: datetime | None


class RowsTogether:
    """One reading of everything."""

    def __init__(self) -> None:
        #: None: they have to be read by themselves (they stand in another database, or the statement failed).
        self.levels: LevelReading | None = None
        self.watched_at: datetime | None = None
        #: When that was read, by the database's clock.
        self.now: datetime | None = None
        #: Whether both were read.
        self.is_whole = False
        #: Whether the tables of the sampling policy are not there, so that no others can be.
        self.is_unmigrated = False

    def read(self, alias: str) -> SamplingState:
        """Return the result of `models.read_state`, and keep the rest.

        Errors: those of `read_state`, and `TableMissingError`.
        """
        from django_otel.models import read_state

        began_s = time.monotonic()
        has_levels = log_levels.level_alias() == alias
        try:
            rows = [_Row(*row) for row in _statement(alias, has_levels=has_levels)]
        except (DatabaseFault, ValueError, TypeError, OverflowError) as error:
            wrapper = connections[alias]
            if wrapper.connection is None:
                # Not even a connection: a second attempt would only wait once more.
                raise
            if not wrapper.in_atomic_block and not wrapper.get_autocommit():
                # The fault would be that of the next query as well.
                wrapper.rollback()
            if lacks_a_table(alias):
                # None of the further queries could be answered.
                self.is_unmigrated = True
                raise TableMissingError(missing_table_text(alias)) from error
            return read_state(alias)
        if has_levels:
            found = sorted((row.text, row.path, row.moment) for row in rows if row.kind == _LEVEL)
            self.levels = log_levels.build_reading(found, began_s)
        version = next((row for row in rows if row.kind == _VERSION), None)
        self.watched_at, self.now = (None, None) if version is None else (version.moment, version.now)
        self.is_whole = True
        return _state(rows)

    def pass_on(
        self, alias: str, registry: HostRegistry | None, levels: log_levels.LevelFollower, reporter: HostReporter | None
    ) -> None:
        """Pass on the log levels and open pages that were read, or read them if there was more than one query."""
        with guard.contained("reading the log levels"):
            if self.levels is not None:
                levels.spread(self.levels, registry)
            elif not self.is_unmigrated or log_levels.level_alias() != alias:
                levels.poll(registry)
        if reporter is not None:
            with guard.contained("looking for an open page of the processes"), suppress_instrumentation():
                if self.is_whole:
                    reporter.note(self.watched_at, self.now)
                else:
                    reporter.look(alias)


def _statement(alias: str, *, has_levels: bool) -> QuerySet[Any, tuple[Any, ...]]:
    """Return the rows of all tables in the order of `_Row`."""
    from django_otel.models import LogLevel, SamplingPolicy, SamplingRule, SamplingVersion

    def rows(model: type[Model], kind: int, *columns: object) -> QuerySet[Any, tuple[Any, ...]]:
        named = {f"column_{position}": column for position, column in enumerate((integer(kind), *columns, Now()))}
        found: QuerySet[Any, tuple[Any, ...]] = model._base_manager.using(alias).order_by().annotate(**named)
        return found.values_list(*named)

    def integer(value: int) -> Value:
        return Value(value, IntegerField())

    no, zero, empty = Value(False, BooleanField()), Value(0.0, FloatField()), Value("", CharField())
    # First the one whose columns all have a type: by them Django converts the values of the others.
    parts = [
        rows(
            SamplingPolicy, _POLICY, F("version"), F("enabled"), F("ratio"), F("keep_errors"), F("max_per_second"),
            F("expires_at"), F("keep_slow_s"), F("note"), empty, empty, empty, integer(0),
        ).filter(pk=SamplingPolicy.ONLY_ID),
        rows(
            SamplingVersion, _VERSION, F("version"), no, zero, no, zero,
            F("watched_at"), zero, empty, empty, empty, empty, integer(0),
        ).filter(pk=SamplingVersion.ONLY_ID),
        rows(
            SamplingRule, _RULE, F("id"), no, F("ratio"), no, zero,
            F("expires_at"), zero, F("note"), F("path"), F("route"), F("method"), F("priority"),
        ),
    ]  # fmt: skip
    if has_levels:
        parts.append(
            rows(
                LogLevel, _LEVEL, F("id"), no, zero, no, zero,
                F("expires_at"), zero, F("logger"), F("level"), empty, empty, integer(0),
            )
        )  # fmt: skip
    return parts[0].union(*parts[1:], all=True)


def _state(rows: list[_Row]) -> SamplingState:
    from django_otel.models import PolicyRow, RuleRow, SamplingState

    rules = [
        RuleRow(row.number, row.path, row.route, row.method, row.ratio, row.priority, row.moment, row.text)
        for row in rows
        if row.kind == _RULE
    ]
    # As `models.RULE_ORDER` has it.
    rules.sort(key=lambda rule: (-rule.priority, -rule.id))
    version = next((row.number for row in rows if row.kind == _VERSION), 0)
    found = next((row for row in rows if row.kind == _POLICY), None)
    if found is None:
        return SamplingState(version, None, tuple(rules))
    policy = PolicyRow(
        found.enabled, found.ratio, found.max_per_second, found.keep_errors, found.keep_slow_s, found.moment, found.text
    )
    # A row that was put in by other means than `save()` has a version of its own.
    return SamplingState(max(version, found.number), policy, tuple(rules))
