"""Common parts of the subcommands over rows of ours: arguments, and texts and exit codes of failures."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.db import Error as DatabaseFault
from django.utils.translation import gettext

from django_otel.live_sampling import policy_rows
from django_otel.live_sampling.command_history import RefusedError

if TYPE_CHECKING:
    from django.db.models import Model

#: Exit codes.
OK = 0
NOT_WORKING = 1

_Parsed = TypeVar("_Parsed")


def add_user(parser: argparse.ArgumentParser) -> None:
    """Add `--user`, the author of a change."""
    parser.add_argument(
        "--user",
        default=None,
        help=gettext("user to name as the author in the admin's history (default: your login)"),
    )


def argument(parse: Callable[[str], _Parsed]) -> Callable[[str], _Parsed]:
    """Return `parse` for argparse, which shows the text of this error only."""

    def parse_argument(given: str) -> _Parsed:
        try:
            return parse(given)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse_argument


def run_action(
    action: Callable[[], object],
    write: Callable[[str], object],
    *,
    alias: str,
    missing: str,
    tables: Iterable[type[Model]] = (),
) -> int:
    """Run `action` and return the exit code; errors are printed.

    `missing` is the text for missing `tables` (by default those of the sampling policy) in the database `alias`.
    """
    try:
        action()
    except RefusedError as refusal:
        write(str(refusal))
    except ValidationError as error:
        write(gettext("Not saved: %(problems)s") % {"problems": " ".join(error.messages)})
    except (DatabaseFault, ImproperlyConfigured, OSError) as error:
        if policy_rows.tables_exist(alias, tables) is False:
            write(missing % {"database": alias, "command": policy_rows.migrate_command(alias)})
        else:
            # The driver's own text may name hosts and users.
            message = gettext('The database "%(database)s" does not answer (%(error)s).')
            write(message % {"database": alias, "error": type(error).__name__})
    else:
        return OK
    return NOT_WORKING
