"""Database source of the sampling policy: the admin's rows, read and made into a `Policy`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseFault
from django.db import connections, router
from django.utils import timezone

from django_otel.base import guard
from django_otel.base.suppression import suppress_instrumentation
from django_otel.live_sampling.wording import FAULTS
from django_otel.sampling.policy import Policy, Rule

if TYPE_CHECKING:
    from django.db.models import Model

    from django_otel.models import SamplingState

NO_DATABASE = "django.db.backends.dummy"


class UnreadableError(Exception):
    """The rows could not be read; the text says why, without anything from the database's own message."""


class TableMissingError(UnreadableError):
    """The table is not there, so no policy can be."""


class RowFaultyError(UnreadableError):
    """The rows are there and make no sense."""


def policy_alias() -> str:
    """The database alias of the row. The one for writing: a replica that lags would bring back the old policy."""
    from django_otel.models import SamplingPolicy

    return router.db_for_write(SamplingPolicy)


def read_policy(alias: str, read: Callable[[str], SamplingState] | None = None) -> Policy | None:
    """The admin's policy in the database; None when nothing is set there or it is not enabled.

    `read` is the way to the rows, by default `models.read_state`.

    Errors: `TableMissingError`, `RowFaultyError`, or `UnreadableError` for anything else.
    """
    from django_otel.models import read_state

    try:
        state = (read or read_state)(alias)
    except (DatabaseFault, ImproperlyConfigured, OSError) as error:
        if tables_exist(alias) is False:
            raise TableMissingError(missing_table_text(alias)) from error
        raise UnreadableError(FAULTS["unreadable"] % {"database": alias, "error": type(error).__name__}) from error
    except (ValueError, TypeError, OverflowError) as error:
        raise RowFaultyError(_faulty_row_text(f"it has an invalid value ({type(error).__name__}).")) from error
    try:
        return policy_from_state(state)
    except (ValueError, TypeError, OverflowError) as error:
        raise RowFaultyError(_faulty_row_text(str(error))) from error


def policy_from_state(state: SamplingState) -> Policy | None:
    """The admin's policy in the database at one moment; None where nothing is set.

    Errors: `ValueError`, `TypeError`, `OverflowError` for values that make no sense.
    """
    return policy_from_rows(state.policy, state.rules, state.version)


def policy_from_rows(row: Any, rules: Iterable[Any] = (), version: int | None = None) -> Policy | None:
    """The admin's policy, from its row (or None) and its rules; None where nothing is set.

    A row that is not enabled ignores its rules as well. Rules without a row, or
    beside one that has run out, apply above the settings: each has its own end.
    `version` is that of both; by default the row's.

    Errors: `ValueError`, `TypeError`, `OverflowError` for values that make no sense.
    """
    if row is not None and not row.enabled:
        return None
    built = tuple(
        Rule(
            rule.ratio, path=rule.path, route=rule.route, method=rule.method, priority=rule.priority,
            expires_at_s=epoch_s(rule.expires_at), note=rule.note,
        )
        for rule in rules
    )  # fmt: skip
    if row is None:
        return Policy(None, source="admin", version=version or 0, rules=built) if built else None
    return Policy(
        float(row.ratio), source="admin", version=row.version if version is None else version,
        expires_at_s=epoch_s(row.expires_at), note=row.note, rules=built, max_per_second=row.max_per_second,
        keep_errors=bool(row.keep_errors), keep_slow_s=row.keep_slow_s,
    )  # fmt: skip


def epoch_s(moment: datetime | None) -> float | None:
    """A moment of the database in seconds since the Unix epoch; None stays None."""
    if moment is None:
        return None
    # With USE_TZ = False Django hands out local times without a zone: of TIME_ZONE, also in requests with another.
    if timezone.is_naive(moment):
        moment = timezone.make_aware(moment, timezone.get_default_timezone())
    return moment.timestamp()


def _faulty_row_text(found: str) -> str:
    return FAULTS["faulty"] % {"reason": found}


def migrate_command(alias: str) -> str:
    """Return the command that makes the tables in the database `alias`."""
    return f"manage.py migrate django_otel{'' if alias == 'default' else f' --database {alias}'}"


def missing_table_text(alias: str) -> str:
    return FAULTS["missing"] % {"database": alias, "command": migrate_command(alias)}


def lacks_a_table(alias: str) -> bool:
    """Return whether a table that the policy is read from is missing; False when that is unknown."""
    from django_otel.models import SamplingPolicy, SamplingRule, SamplingVersion

    return tables_exist(alias, (SamplingPolicy, SamplingRule, SamplingVersion), with_columns=False) is False


def tables_exist(alias: str, models: Iterable[type[Model]] = (), *, with_columns: bool = True) -> bool | None:
    """Return whether the tables are there as this version has them; None when that is unknown.

    Those of an earlier version, which lack a table or a column, are not. `models` are those whose tables are meant,
    by default those of the sampling policy; without `with_columns` they need not have all columns.
    """
    from django_otel.models import SamplingHost, SamplingPolicy, SamplingRule, SamplingVersion

    try:
        connection = connections[alias]
        with suppress_instrumentation(), connection.cursor() as cursor:
            there = connection.introspection.table_names(cursor)
            for model in models or (SamplingPolicy, SamplingRule, SamplingVersion, SamplingHost):
                table = model._meta.db_table
                if table not in there:
                    return False
                if not with_columns:
                    continue
                found = {column.name for column in connection.introspection.get_table_description(cursor, table)}
                if not {field.column for field in model._meta.concrete_fields} <= found:
                    return False
    except Exception as error:
        guard.pass_on(error)
        # No driver knows then.
        return None
    return True
