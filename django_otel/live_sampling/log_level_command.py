"""`manage.py otel logs level`: temporary log levels, from the command line."""

from __future__ import annotations

import argparse
import datetime
import socket
from collections.abc import Callable, Mapping
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone
from django.utils.translation import gettext, ngettext

from django_otel.base import log_levels
from django_otel.base.text import printable, printable_json
from django_otel.config.schema import Config
from django_otel.live_sampling import command_history, policy_rows
from django_otel.live_sampling import wording as text
from django_otel.live_sampling.command_history import RefusedError
from django_otel.live_sampling.command_parts import add_user, argument, run_action
from django_otel.live_sampling.log_levels import level_alias
from django_otel.log_level_model import TooManyError, set_level
from django_otel.models import LogLevel

DEFAULT_LASTS_S = 600
_NAME = "logs level"


def add_arguments(actions: argparse._SubParsersAction[CommandParser]) -> None:
    """Add `level` to the actions of `manage.py otel logs`."""
    level = actions.add_parser(
        "level",
        help=gettext("set the level of a logger temporarily, in every process"),
        description=gettext(
            "Sets the level of a logger in every process: on this host within a second, on others within "
            "SAMPLING.REFRESH_S. It expires by itself; the logger then has its previous level again. Without a "
            "logger, lists the levels that are set."
        ),
    )
    level.add_argument("logger", nargs="?", help=gettext('name of a logger, such as django.request; "root" for all'))
    level.add_argument(
        "level", nargs="?", type=argument(_level), help=gettext("DEBUG, INFO, WARNING, ERROR or CRITICAL")
    )
    level.add_argument(
        "--for", dest="lasts_s", type=argument(_lasts_s), default=DEFAULT_LASTS_S, metavar="DURATION",
        help=gettext("expire after this time, at most a day: 90s, 15m, 1h30m (default 10m)"),
    )  # fmt: skip
    level.add_argument("--end", action="store_true", help=gettext("end the level of this logger now"))
    level.add_argument("--note", default="", help=gettext("the reason, shown in the history"))
    add_user(level)
    level.add_argument("--format", choices=("text", "json"), default="text")


def _level(given: str) -> str:
    name = given.upper()
    if log_levels.level_number(name) is None:
        message = gettext("%(level)s is not a log level; expected one of %(levels)s")
        values = {"level": repr(given), "levels": ", ".join(log_levels.level_names())}
        raise ValueError(message % values)
    return name


def _lasts_s(given: str) -> int:
    lasts_s = text.parse_duration_s(given)
    if lasts_s > log_levels.MAX_LASTS_S:
        message = gettext("%(text)s is longer than a day, which is the maximum")
        raise ValueError(message % {"text": repr(given)})
    return lasts_s


class LogLevelCommand:
    """Runs `manage.py otel logs level` with parsed options; `write` prints a line."""

    def __init__(self, config: Config, write: Callable[[str], object]) -> None:
        self._config = config
        self._print = write
        self._alias = level_alias()

    def run(self, options: Mapping[str, Any]) -> int:
        """Run the command and return the exit code."""
        missing = gettext('The table of the log levels is missing in database "%(database)s". Run: %(command)s')
        return run_action(
            lambda: self._do(options), self._write, alias=self._alias, missing=missing, tables=(LogLevel,)
        )

    def _do(self, options: Mapping[str, Any]) -> None:
        if options["logger"] is None:
            self._list(options["format"])
        elif options["end"]:
            self._end(options)
        elif options["level"] is None:
            message = gettext("Name a level for %(logger)s (%(levels)s), or end the one that is set with --end.")
            values = {"logger": options["logger"], "levels": ", ".join(log_levels.level_names())}
            raise RefusedError(message % values)
        else:
            self._set(options)

    def _set(self, options: Mapping[str, Any]) -> None:
        if problem := text.why_no_level(self._config):
            raise RefusedError(problem)
        user = command_history.find_user(options["user"])
        author = user.name if user.row is not None else f"{user.name}@{socket.gethostname()}"
        end = text.now() + datetime.timedelta(seconds=options["lasts_s"])
        try:
            row = set_level(
                self._alias, options["logger"], options["level"], end, set_by=author, note=options["note"]
            )  # fmt: skip
        except TooManyError as refusal:
            raise RefusedError(str(refusal)) from None
        said = text.level_for(row.level, options["lasts_s"], row.note)
        history = command_history.write(user, row, said, command=_NAME)
        end_text = text.until(policy_rows.epoch_s(row.expires_at) or 0.0)
        message = gettext("%(logger)s has level %(level)s until %(end)s, set by %(user)s.")
        self._write(message % {"logger": row.logger, "level": row.level, "end": end_text, "user": author})
        self._write(
            gettext(
                "Every process on this host applies it within a second, processes on other hosts within %(seconds)s s."
            )
            % {"seconds": f"{self._config.sampling.refresh_s:g}"}
        )
        if history:
            self._write(history)

    def _end(self, options: Mapping[str, Any]) -> None:
        name = options["logger"].strip() or log_levels.ROOT
        row = LogLevel._base_manager.using(self._alias).filter(logger=name).first()
        if row is None:
            raise RefusedError(gettext("No level is set for %(logger)s.") % {"logger": name})
        user = command_history.find_user(options["user"])
        history = command_history.write(user, row, gettext("Ended"), command=_NAME)
        row.delete(using=self._alias)
        self._write(gettext("The level of %(logger)s ends.") % {"logger": name})
        if history:
            self._write(history)

    def _list(self, form: str) -> None:
        rows = list(LogLevel._base_manager.using(self._alias).filter(expires_at__gt=timezone.now()).order_by("logger"))
        if form == "json":
            self._print(
                printable_json(
                    [
                        {
                            "logger": row.logger, "level": row.level, "note": row.note, "set_by": row.set_by,
                            "expires_at_s": policy_rows.epoch_s(row.expires_at),
                        }
                        for row in rows
                    ]
                )
            )  # fmt: skip
            return
        if not rows:
            self._write(gettext("No temporary log level is set."))
            return
        message = ngettext("%(count)d log level is set:", "%(count)d log levels are set:", len(rows))
        self._write(message % {"count": len(rows)})
        for row in rows:
            end_text = text.until(policy_rows.epoch_s(row.expires_at) or 0.0)
            message = gettext("%(logger)s has level %(level)s until %(end)s, set by %(user)s.")
            line = message % {"logger": row.logger, "level": row.level, "end": end_text, "user": row.set_by}
            self._write(f"{line} {row.note}".rstrip())

    def _write(self, line: str) -> None:
        """Print a line, with control characters escaped: it holds texts of other users."""
        self._print(printable(line))
