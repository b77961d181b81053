"""`manage.py otel sampling`: the admin's sampling policy from the command line."""

from __future__ import annotations

import argparse
import datetime
import textwrap
import time
from collections.abc import Callable, Sequence
from typing import Any

from django.core.management.base import CommandParser
from django.db import router, transaction
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.text import capfirst
from django.utils.translation import gettext, ngettext

from django_otel import models
from django_otel.base import guard
from django_otel.base.text import printable, printable_json
from django_otel.config.schema import Config
from django_otel.live_sampling import command_history, policy_rows, preview
from django_otel.live_sampling import wording as text
from django_otel.live_sampling.command_history import RefusedError
from django_otel.live_sampling.command_parts import add_user, argument, run_action
from django_otel.models import SamplingPolicy, SamplingRule
from django_otel.sampling.effective import EffectivePolicy
from django_otel.sampling.policy import MAX_RULES, METHODS, Policy

_EXAMPLES = """\
  manage.py otel sampling get
  manage.py otel sampling set 0.1 --for 15m --note "incident 7"
  manage.py otel sampling rule add "/checkout/*" 100% --for 15m
  manage.py otel sampling rule add --route "/orders/<int:pk>/" 0.5 --method POST --priority 10
  manage.py otel sampling rule remove 3
  manage.py otel sampling reset
"""


def _epilog() -> str:
    parts = (
        gettext("Examples:") + f"\n{_EXAMPLES}",
        gettext(
            "Every worker process follows within SAMPLING.REFRESH_S seconds, without a restart; a policy or "
            "rule with an end expires by itself."
        ),
        gettext(
            "Exit codes: 0 success; 1 the database does not answer, a table is missing, or there is no such "
            "rule; 2 the command line is wrong; 3 settings.OTEL is invalid."
        ),
    )
    return "\n".join("\n".join(textwrap.wrap(part, 78)) + "\n" if "\n" not in part else part for part in parts)


# --- The command line. ---


def add_arguments(commands: argparse._SubParsersAction[CommandParser]) -> None:
    """Add `sampling` to the subcommands of `manage.py otel`."""
    sampling = commands.add_parser(
        "sampling",
        help=gettext("show or set the share of recorded traces, as in the admin"),
        description=gettext("Shows or sets the share of recorded traces: the admin's policy and its rules."),
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = sampling.add_subparsers(dest="action", metavar="action", required=True)

    get = actions.add_parser("get", help=gettext("the effective sampling policy and its source"))
    get.add_argument("--format", choices=("text", "json"), default="text")

    set_ = actions.add_parser("set", help=gettext("set the ratio of the policy and the given options"))
    set_.add_argument("ratio", type=argument(text.parse_ratio), help=_ratio_help())
    _add_end(set_)
    set_.add_argument("--note", default=None, help=gettext("the reason, shown in the history"))
    set_.add_argument(
        "--max-per-second", type=argument(_number_or_none), default=argparse.SUPPRESS, metavar="NUMBER",
        help=gettext('maximum new traces per second of a server; "none": as in the settings'),
    )  # fmt: skip
    set_.add_argument(
        "--keep-errors", action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS,
        help=gettext("record every request that ends in an error"),
    )  # fmt: skip
    set_.add_argument(
        "--keep-slow", type=argument(_number_or_none), default=argparse.SUPPRESS, metavar="SECONDS",
        help=gettext('record every request that takes at least this long; "none": as in the settings'),
    )  # fmt: skip
    add_user(set_)

    reset = actions.add_parser("reset", help=gettext("remove the policy and its rules: the settings apply again"))
    add_user(reset)

    rule = actions.add_parser("rule", help=gettext("rules: a ratio for some paths, routes or methods"))
    rules = rule.add_subparsers(dest="rule_action", metavar="action", required=True)
    add = rules.add_parser("add", help=gettext("add a rule"))
    add.add_argument("pattern", help=gettext('a path with wildcards, such as "/checkout/*"'))
    add.add_argument("ratio", type=argument(text.parse_ratio), help=_ratio_help())
    add.add_argument(
        "--route", action="store_true", help=gettext("the pattern is a URL pattern, such as /orders/<int:pk>/")
    )
    add.add_argument("--method", type=str.upper, choices=METHODS, default="", help=gettext("only for this method"))
    add.add_argument(
        "--priority", type=int, default=0, help=gettext("the highest is evaluated first; at equal priority, the newest")
    )
    _add_end(add)
    add.add_argument("--note", default="", help=gettext("the reason, shown in the history"))
    add_user(add)
    list_ = rules.add_parser("list", help=gettext("every rule, in the order of evaluation"))
    list_.add_argument("--format", choices=("text", "json"), default="text")
    remove = rules.add_parser("remove", help=gettext("remove rules by the number that list shows"))
    remove.add_argument("id", type=int, nargs="+", help=gettext("the number of a rule"))
    add_user(remove)


def _ratio_help() -> str:
    # argparse formats it again.
    return gettext("from 0 to 1, or a percentage such as %(example)s") % {"example": "10%%"}


def _add_end(parser: argparse.ArgumentParser) -> None:
    end = parser.add_mutually_exclusive_group()
    end.add_argument(
        "--for", dest="lasts_s", type=argument(text.parse_duration_s), metavar="DURATION",
        help=gettext("expire after this time: 90s, 15m, 1h30m, 2d (default: until it is changed)"),
    )  # fmt: skip
    end.add_argument(
        "--until", type=argument(_parse_moment), metavar="TIME",
        help=gettext(
            "expire at this time: 2030-01-31T18:00, in the time zone of the settings unless it names one"
        ),
    )  # fmt: skip


def _number_or_none(given: str) -> float | None:
    if given.lower() == "none":
        return None
    try:
        return float(given)
    except ValueError:
        raise ValueError(gettext('%(text)s is neither a number nor "none"') % {"text": repr(given)}) from None


def _parse_moment(given: str) -> datetime.datetime:
    try:
        found = parse_datetime(given)
    except ValueError:
        found = None
    if found is None:
        raise ValueError(gettext("%(text)s is not a time; write it like 2030-01-31T18:00") % {"text": repr(given)})
    is_zoned = timezone.is_aware(timezone.now())
    if timezone.is_naive(found) and is_zoned:
        found = timezone.make_aware(found)
    elif timezone.is_aware(found) and not is_zoned:
        found = timezone.make_naive(found)
    if found <= text.now():
        raise ValueError(gettext("%(text)s has passed") % {"text": repr(given)})
    return found


# --- What it does. ---


class SamplingCommand:
    """Runs `manage.py otel sampling` with parsed options; `write` prints a line."""

    def __init__(self, config: Config, write: Callable[[str], object]) -> None:
        self._config = config
        self._print = write
        self._alias = router.db_for_write(SamplingPolicy)

    def run(self, options: dict[str, object]) -> int:
        """Run the subcommand and return the exit code."""
        action = options["action"] if options["action"] != "rule" else f"rule_{options['rule_action']}"
        missing = gettext(
            'The tables of the sampling policy in database "%(database)s" are not those of this version. '
            "Run: %(command)s"
        )
        do = getattr(self, f"_{action}")
        return run_action(lambda: do(options), self._write, alias=self._alias, missing=missing)

    def _get(self, options: dict[str, object]) -> None:
        effective, state = self._effective()
        if options["format"] == "json":
            self._write_json(_as_json(self._config, effective, state))
            return
        self._write(gettext("%(percent)s of new traces are recorded.") % {"percent": text.percent(effective.ratio)})
        for line in self._reasons(effective, state):
            self._write(line)
        if effective.rules:
            self._write("")
            self._write_rules(
                [
                    ("", rule.label, rule.ratio, rule.priority, rule.expires_at_s, rule.note, source)
                    for rule, source in zip(effective.rules, effective.rule_sources, strict=True)
                ]
            )

    def _set(self, options: dict[str, Any]) -> None:
        with transaction.atomic(using=self._alias):
            models.lock_version(self._alias)
            row = SamplingPolicy._base_manager.using(self._alias).filter(pk=SamplingPolicy.ONLY_ID).first()
            before = {} if row is None else _policy_values(row)
            row = row or SamplingPolicy()
            row.enabled, row.ratio, row.note = True, options["ratio"], options["note"] or ""
            row.expires_at = self._end(options)
            for option, field in (
                ("max_per_second", "max_per_second"), ("keep_errors", "keep_errors"), ("keep_slow", "keep_slow_s"),
            ):  # fmt: skip
                if option in options:
                    setattr(row, field, options[option])
            row.full_clean(exclude=["id"], validate_unique=False)
            row.save(using=self._alias)
            after = _policy_values(row)
            message = text.list_changes(before, after) if before else text.list_values(after, always=(_label("ratio"),))
            history = self._log(options["user"], message, is_new=not before)
        self._done(history)

    def _reset(self, options: dict[str, Any]) -> None:
        with transaction.atomic(using=self._alias):
            models.lock_version(self._alias)
            rules = SamplingRule._base_manager.using(self._alias)
            policies = SamplingPolicy._base_manager.using(self._alias)
            if not rules.exists() and not policies.exists():
                self._write(gettext("There is no policy and no rule; the settings apply."))
                return
            with models.single_change(self._alias):
                policies.all().delete()
                rules.all().delete()
            history = self._log(options["user"], gettext("Removed, with every rule"))
        self._done(history)

    def _rule_add(self, options: dict[str, Any]) -> None:
        rule = SamplingRule(
            ratio=options["ratio"], method=options["method"], priority=options["priority"], note=options["note"],
            expires_at=self._end(options), **{"route" if options["route"] else "path": options["pattern"]},
        )  # fmt: skip
        rule.full_clean()
        with transaction.atomic(using=self._alias):
            models.lock_version(self._alias)
            if SamplingRule._base_manager.using(self._alias).count() >= MAX_RULES:
                message = ngettext(
                    "There is %(number)d rule already, which is the maximum. Remove it first.",
                    "There are %(number)d rules already, which is the maximum. Remove some first.",
                    MAX_RULES,
                )
                raise RefusedError(message % {"number": MAX_RULES})
            rule.save(using=self._alias)
            names = ("ratio", "priority", "expires_at", "note")
            listed = text.list_values({_label(name): getattr(rule, name) for name in names}, always=(_label("ratio"),))
            message = gettext("Rule %(name)s added (%(values)s)") % {"name": text.rule_name(rule), "values": listed}
            history = self._log(options["user"], message)
        said = gettext("Rule %(number)s: %(rule)s.") % {"number": rule.pk, "rule": rule}
        self._write(f"{said} {_preview(rule)}".rstrip())
        self._done(history)

    def _rule_list(self, options: dict[str, object]) -> None:
        state = models.read_state(self._alias)
        if options["format"] == "json":
            self._write_json([_rule_as_json(rule) for rule in state.rules])
            return
        if not state.rules:
            self._write(gettext("There are no rules."))
            return
        rows = [
            (
                str(rule.id),
                text.rule_name(rule),
                rule.ratio,
                rule.priority,
                policy_rows.epoch_s(rule.expires_at),
                rule.note,
                "",
            )
            for rule in state.rules
        ]
        self._write_rules(rows)
        if state.policy is not None and not state.policy.enabled:
            self._write("")
            self._write(gettext("The policy is not enabled, so no rule applies."))

    def _rule_remove(self, options: dict[str, Any]) -> None:
        numbers = list(dict.fromkeys(options["id"]))
        with transaction.atomic(using=self._alias):
            models.lock_version(self._alias)
            rules = SamplingRule._base_manager.using(self._alias).in_bulk(numbers)
            missing = [str(number) for number in numbers if number not in rules]
            if missing:
                message = ngettext(
                    "There is no rule %(numbers)s; nothing was removed. Look at: sampling rule list",
                    "There are no rules %(numbers)s; nothing was removed. Look at: sampling rule list",
                    len(missing),
                )
                raise RefusedError(message % {"numbers": ", ".join(missing)})
            with models.single_change(self._alias):
                for rule in rules.values():
                    rule.delete(using=self._alias)
            removed = gettext("Rule %(name)s removed")
            message = "; ".join(removed % {"name": text.rule_name(rules[number])} for number in numbers)
            history = self._log(options["user"], message)
        self._done(history)

    def _end(self, options: dict[str, Any]) -> datetime.datetime | None:
        if options["lasts_s"] is not None:
            return text.now() + datetime.timedelta(seconds=options["lasts_s"])
        until: datetime.datetime | None = options["until"]
        return until

    # --- The effective policy. ---

    def _effective(self) -> tuple[EffectivePolicy, models.SamplingState]:
        """As a worker process decides that has read the rows just now."""
        state = models.read_state(self._alias)
        sampling = self._config.sampling
        source = self._config.sources.get("SAMPLING.RATIO", "default").split(" ")[0]
        base = Policy(
            sampling.ratio, source, rules=sampling.rules, max_per_second=sampling.max_per_second,
            keep_errors=sampling.keep_errors, keep_slow_s=sampling.keep_slow_s,
        )  # fmt: skip
        above = self._policy(state) if self._config.enabled and sampling.live else None
        return EffectivePolicy(base, above, time.time(), None, None), state

    def _policy(self, state: models.SamplingState) -> Policy | None:
        try:
            return policy_rows.policy_from_state(state)
        except (ValueError, TypeError, OverflowError) as error:
            said = gettext("The policy in the database is invalid, so the settings apply.")
            raise RefusedError(f"{said} {error}") from None

    def _reasons(self, effective: EffectivePolicy, state: models.SamplingState) -> list[str]:
        said = []
        if not self._config.enabled:
            said.append(gettext("Telemetry is off (ENABLED), so nothing is recorded at all."))
        if not self._config.sampling.live:
            said.append(self._source())
            said.append(gettext("SAMPLING.LIVE is False, so the policy of the admin has no effect."))
        elif effective.source == "admin":
            said += self._reasons_of_policy(effective, state.version)
        else:
            said += [self._source(), _why_no_policy(state.policy)]
        if effective.note:
            said.append(gettext("Note: %(note)s") % {"note": effective.note})
        if effective.max_per_second is not None:
            said.append(gettext("At most %(limit)s.") % {"limit": text.limit(effective.max_per_second)})
        kept = text.kept(effective.keep_errors, effective.keep_slow_s)
        if kept:
            said.append(gettext("Kept at any ratio: %(kept)s.") % {"kept": kept})
        return said

    def _reasons_of_policy(self, effective: EffectivePolicy, version: int) -> list[str]:
        said = [gettext("Set by the policy of the admin, version %(version)s.") % {"version": version}]
        name = self._config.sources.get("SAMPLING.RATIO", "default")
        values = {"otherwise": text.sourced(self._config.sampling.ratio, name)}
        if effective.expires_at_s is not None:
            values["end"] = text.until(effective.expires_at_s)
            said.append(gettext("Until %(end)s; then %(otherwise)s.") % values)
        else:
            said.append(gettext("Until it is changed. Without it: %(otherwise)s.") % values)
        return said

    def _source(self) -> str:
        return text.source(self._config.sources.get("SAMPLING.RATIO", "default"))

    # --- The history and what is printed. ---

    def _log(self, user_name: str | None, message: str, *, is_new: bool = False) -> str:
        """Write the admin's history where there is one; return a sentence about it."""
        author = command_history.find_user(user_name)
        row = SamplingPolicy._base_manager.using(self._alias).filter(pk=SamplingPolicy.ONLY_ID).first()
        # After `reset` there is none.
        shown = row or SamplingPolicy(pk=SamplingPolicy.ONLY_ID)
        return command_history.write(author, shown, message, command="sampling", is_new=is_new)

    def _done(self, history: str) -> None:
        self._get({"format": "text"})
        if history:
            self._write(history)
        if self._config.enabled and self._config.sampling.live:
            message = gettext("Every process applies it within %(seconds)s s.")
            self._write(message % {"seconds": f"{self._config.sampling.refresh_s:g}"})

    def _write(self, line: str) -> None:
        """Print a line, with control characters escaped: it holds texts of other users."""
        self._print(printable(line))

    def _write_json(self, content: object) -> None:
        self._print(printable_json(content))

    def _write_rules(self, rows: Sequence[tuple[str, str, float, int, float | None, str, str]]) -> None:
        head = (gettext("number"), gettext("rule"), *map(_name, ("ratio", "priority", "expires_at", "note")))
        lines: list[tuple[str, ...]] = [head]
        for number, name, ratio, priority, expires_at_s, note, source in rows:
            end = "" if expires_at_s is None else text.until(expires_at_s)
            notes = "; ".join(filter(None, (note, gettext("from the settings") if source not in ("", "admin") else "")))
            lines.append((number, name, text.percent(ratio), str(priority), end, notes))
        if not any(row[0] for row in rows):
            lines = [line[1:] for line in lines]
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        for line in lines:
            self._write("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _as_json(config: Config, effective: EffectivePolicy, state: models.SamplingState) -> dict[str, object]:
    return {
        "ratio": effective.ratio,
        "source": effective.source,
        "version": state.version,
        "expires_at_s": effective.expires_at_s,
        "note": effective.note,
        "max_per_second": effective.max_per_second,
        "keep_errors": effective.keep_errors,
        "keep_slow_s": effective.keep_slow_s,
        "enabled": config.enabled,
        "live": config.sampling.live,
        "base_ratio": config.sampling.ratio,
        "base_source": config.sources.get("SAMPLING.RATIO", "default"),
        "rules": [
            {
                "path": rule.path, "route": rule.route, "method": rule.method, "ratio": rule.ratio,
                "priority": rule.priority, "expires_at_s": rule.expires_at_s, "note": rule.note, "source": source,
            }
            for rule, source in zip(effective.rules, effective.rule_sources, strict=True)
        ],
    }  # fmt: skip


def _preview(rule: SamplingRule) -> str:
    # The command works also where the URLconf cannot be imported.
    with guard.contained("reading the URLconf"):
        routes = preview.project_routes()
        matches = preview.match_rules([rule], routes)[0]
        if matches is None:
            return gettext("It is too complex to say which routes it matches.")
        if not matches:
            return gettext("It matches no route of the project.")
        named = ", ".join(match.route for match in matches[:3])
        more = len(matches) - 3
        if more <= 0:
            return gettext("It matches %(routes)s.") % {"routes": named}
        message = ngettext("It matches %(routes)s and %(more)d more.", "It matches %(routes)s and %(more)d more.", more)
        return message % {"routes": named, "more": more}
    return ""


def _why_no_policy(row: models.PolicyRow | None) -> str:
    if row is None:
        return gettext("There is no policy in the admin.")
    values = {"percent": text.percent(row.ratio), "end": text.show(row.expires_at)}
    if not row.enabled:
        return gettext("The policy of the admin (%(percent)s) is not enabled.") % values
    return gettext("The policy of the admin (%(percent)s) expired at %(end)s.") % values


def _policy_values(row: SamplingPolicy) -> dict[str, object]:
    names = ("enabled", "ratio", "expires_at", "note", "max_per_second", "keep_errors", "keep_slow_s")
    return {_label(name): getattr(row, name) for name in names}


def _name(field: str) -> str:
    """The name of a field of the policy or a rule."""
    model = SamplingRule if field == "priority" else SamplingPolicy
    return str(model._meta.get_field(field).verbose_name)  # type: ignore[union-attr]


def _label(field: str) -> str:
    """The name of a field, as a heading."""
    return capfirst(_name(field))


def _rule_as_json(rule: models.RuleRow) -> dict[str, object]:
    return {
        "id": rule.id, "path": rule.path, "route": rule.route, "method": rule.method, "ratio": rule.ratio,
        "priority": rule.priority, "expires_at_s": policy_rows.epoch_s(rule.expires_at), "note": rule.note,
    }  # fmt: skip
