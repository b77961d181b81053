"""The sampling policy of an operator or the settings, with its rules, as frozen data.

A policy is a layer. What it leaves open (None, or no rule that matches) is left
to the layer below: the admin's policy stands above that of settings and
environment. What comes out when layers are put together, and how it is decided
for a request, stands in `sampling.sampler`.
"""

from __future__ import annotations

import fnmatch
import json
import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from django_otel.base.frozen import record

#: The methods that a rule can name, which are the values of the metrics' label. In the order of a list to choose from:
#: the most usual first. "_OTHER" is the last.
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE", "QUERY", "_OTHER")
#: Longest path glob or route of a rule, in characters.
MAX_PATTERN = 200
#: Most rules that are applied; matching must stay quick, and every rule is a value of a metric's label.
MAX_RULES = 200
#: How the path or route of a rule for tasks begins; a task's name follows.
TASK_PREFIX = "task:"
#: Version of the JSON form; another one is refused by `Policy.from_json`.
FORMAT = 1

_RULE_KEYS = ("path", "route", "method", "ratio")


def check_ratio(value: object, what: str = "The sampling ratio") -> float:
    """`value` as a share. Errors: `ValueError` when it is not a number from 0.0 to 1.0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        is_percentage = isinstance(value, int | float) and not isinstance(value, bool) and 1.0 < value <= 100.0
        hint = f" For {value:g} % write {value / 100:g}." if is_percentage else ""  # type: ignore[operator]
        raise ValueError(f"{what} is {value!r}; expected a number from 0.0 to 1.0.{hint}")
    return float(value)


def _check_time(value: object, what: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{what} is {value!r}; expected seconds since the Unix epoch or None.")
    return float(value)


def check_positive(value: object, what: str) -> float | None:
    """A number above 0 or None. Errors: `ValueError`."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < math.inf:
        raise ValueError(f"{what} is {value!r}; expected a number above 0, or None.")
    return float(value)


@record
class Rule:
    """The share of new traces for the requests it matches.

    `path` is a glob over the path (`/checkout/*`; `*`, `?`, `[abc]`, case
    matters, `*` crosses slashes) and known at once; `route` is a URL pattern as
    the metrics' label shows it (`/orders/<int:pk>/`, also as a glob), known once
    Django has resolved the path. Both may name tasks instead: `task:` and a
    task's name, also as a glob (`task:orders.*`). A rule names one of them or
    none; `method` narrows it down, "" is every method. Of the rules of a policy
    the first that matches decides: the highest `priority` first, among equals in
    the order given.

    Units: `ratio` is a share from 0.0 to 1.0, `expires_at_s` seconds since the
        Unix epoch (None: never).
    Errors: `ValueError` for a rule that could never match or is out of range;
        the text says what fits.
    """

    ratio: float
    path: str = ""
    route: str = ""
    method: str = ""
    priority: int = 0
    expires_at_s: float | None = None
    note: str = ""
    #: The glob as a regular expression for `re.match`; "" without path and route.
    pattern: str = field(init=False, repr=False, compare=False)
    _match: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "ratio", check_ratio(self.ratio, "The ratio of a sampling rule"))
        for name in ("path", "route", "method", "note"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"The {name} of a sampling rule is {getattr(self, name)!r}; expected a string.")
        put(self, "path", self.path.strip())
        put(self, "route", self.route.strip())
        put(self, "method", self.method.strip().upper())
        if isinstance(self.priority, bool) or not isinstance(self.priority, int):
            raise ValueError(f"The priority of a sampling rule is {self.priority!r}; expected a whole number.")
        put(self, "expires_at_s", _check_time(self.expires_at_s, "The end of a sampling rule"))
        if self.path and self.route:
            raise ValueError(
                f"A sampling rule has both the path {self.path!r} and the route {self.route!r}; expected one of them."
            )
        if not (self.path or self.route or self.method):
            raise ValueError(
                "A sampling rule names neither path, route nor method; expected one of them, such as "
                "'/checkout/*'. For all requests there is the ratio."
            )
        if len(self.path) > MAX_PATTERN or len(self.route) > MAX_PATTERN:
            raise ValueError(f"The pattern of a sampling rule is longer than {MAX_PATTERN} characters.")
        if self.is_for_tasks:
            # Tasks have none: with one the rule would never match.
            put(self, "method", "")
        if self.path and self.path[0] not in "/*?[" and not self.is_for_tasks:
            raise ValueError(
                f"The path of a sampling rule is {self.path!r} and could never match; "
                f"expected a glob that begins with a slash, such as {'/' + self.path!r}."
            )
        if self.route and self.route[0] not in "/*?[" and not self.is_for_tasks:
            # As it stands in a URLconf.
            put(self, "route", "/" + self.route)
        if self.method and self.method not in METHODS:
            raise ValueError(
                f"The method of a sampling rule is {self.method!r}; expected one of "
                + ", ".join(sorted(METHODS)) + ", or '' for all."
            )  # fmt: skip
        glob = self.path or self.route
        put(self, "pattern", fnmatch.translate(glob) if glob else "")
        put(self, "_match", re.compile(self.pattern).match if glob else None)

    def __str__(self) -> str:
        return f"{self.label} {self.ratio:g}"

    @property
    def label(self) -> str:
        """The rule in one short text, as the metrics and the pages show it: `GET /checkout/*`."""
        return f"{self.method} {self.path or self.route}".strip()

    def is_expired(self, now_s: float) -> bool:
        """Return whether the rule has run out at `now_s` (seconds since the Unix epoch)."""
        return self.expires_at_s is not None and now_s >= self.expires_at_s

    @property
    def is_for_tasks(self) -> bool:
        """Return whether the rule names tasks (`task:orders.send_invoice`, `task:orders.*`), so matches no request."""
        return (self.path or self.route).startswith(TASK_PREFIX)

    def matches(self, method: str, path: str, route: str | None = None) -> bool:
        """Return whether the rule is for this request; one with a route never matches while `route` is None."""
        if self.method and self.method != method:
            return False
        if self.path:
            return self._match(path) is not None
        if self.route:
            return route is not None and self._match(route) is not None
        return True

    def to_json(self) -> dict[str, object]:
        """As a dict of plain values; what has its default is left out."""
        found: dict[str, object] = {"ratio": self.ratio}
        for name in ("path", "route", "method", "priority", "expires_at_s", "note"):
            value = getattr(self, name)
            if value not in ("", 0, None) or (name == "expires_at_s" and value is not None):
                found[name] = value
        return found

    @classmethod
    def from_json(cls, content: object) -> Rule:
        """The rule of `to_json`. Errors: `ValueError` for anything else."""
        return cls(**_keywords(content, "sampling rule", (*_RULE_KEYS, "priority", "expires_at_s", "note")))

    @classmethod
    def from_settings(cls, content: object) -> Rule:
        """The rule of an entry of `SAMPLING.RULES`. Errors: `ValueError`."""
        return cls(**_keywords(content, "sampling rule", _RULE_KEYS))


def _keywords(content: object, what: str, known: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise ValueError(f"A {what} is a {type(content).__name__}; expected a dict with {', '.join(known)}.")
    for key in content:
        if key not in known:
            raise ValueError(f"A {what} has the key {key!r}; expected {', '.join(known)}.")
    if "ratio" in known and what != "sampling policy" and "ratio" not in content:
        raise ValueError(f"A {what} has no ratio; expected a number from 0.0 to 1.0.")
    return dict(content)


@record
class Policy:
    """A sampling policy and its source; None leaves a value to the layer below.

    `source` is "settings", "environment", "default" or "admin"; `version` the
    version of the admin's row, 0 for any other source. `expires_at_s` ends
    everything but the rules, which have ends of their own.

    Units: `ratio` is a share from 0.0 to 1.0, `max_per_second` traces per
        second and server group, `keep_slow_s` seconds, `expires_at_s` seconds
        since the Unix epoch (None: never).
    Errors: `ValueError` for a value out of range.
    """

    ratio: float | None
    source: str = "settings"
    version: int = 0
    expires_at_s: float | None = None
    note: str = ""
    rules: tuple[Rule, ...] = ()
    max_per_second: float | None = None
    keep_errors: bool | None = None
    keep_slow_s: float | None = None
    #: Whether a remote parent's decision is taken over; the settings alone say so.
    follows_parent: bool = True
    #: Whether nothing of the layer below is to show through (tests that override the sampling).
    is_whole: bool = False

    def __post_init__(self) -> None:
        put = object.__setattr__
        if self.ratio is not None:
            put(self, "ratio", check_ratio(self.ratio))
        if not isinstance(self.source, str) or not isinstance(self.note, str):
            raise ValueError("The source or the note of a sampling policy is not a string.")
        if isinstance(self.version, bool) or not isinstance(self.version, int):
            raise ValueError(f"The version of a sampling policy is {self.version!r}; expected a whole number.")
        put(self, "expires_at_s", _check_time(self.expires_at_s, "The end of a sampling policy"))
        put(self, "max_per_second", check_positive(self.max_per_second, "The limit of traces per second"))
        put(self, "keep_slow_s", check_positive(self.keep_slow_s, "The time from which a request is slow"))
        if self.keep_errors not in (None, True, False):
            raise ValueError(f"keep_errors is {self.keep_errors!r}; expected True, False or None.")
        rules = tuple(self.rules)
        if len(rules) > MAX_RULES:
            raise ValueError(f"A sampling policy has {len(rules)} rules; expected at most {MAX_RULES}.")
        # Stable: among equals the order given.
        put(self, "rules", tuple(sorted(rules, key=lambda rule: -rule.priority)))

    def is_expired(self, now_s: float) -> bool:
        """Return whether the policy, its rules aside, has run out at `now_s` (seconds since the Unix epoch)."""
        return self.expires_at_s is not None and now_s >= self.expires_at_s

    @property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits that differ for different content, to compare applied policies."""
        return f"{zlib.crc32(json.dumps(self.to_json(), sort_keys=True).encode()):08x}"

    def to_json(self) -> dict[str, object]:
        """As a dict of plain values for `json.dumps`; what has its default is left out."""
        found: dict[str, object] = {
            "format": FORMAT,
            "ratio": self.ratio,
            "source": self.source,
            "version": self.version,
        }
        for name in ("expires_at_s", "max_per_second", "keep_errors", "keep_slow_s"):
            value = getattr(self, name)
            if value is not None:
                found[name] = value
        if self.note:
            found["note"] = self.note
        if self.rules:
            found["rules"] = [rule.to_json() for rule in self.rules]
        return found

    @classmethod
    def from_json(cls, content: object) -> Policy:
        """The policy of `to_json`. Errors: `ValueError` for anything else, also for another format."""
        known = ("format", "ratio", "source", "version", "expires_at_s", "max_per_second", "keep_errors",
                 "keep_slow_s", "note", "rules")  # fmt: skip
        keywords = _keywords(content, "sampling policy", known)
        if keywords.pop("format", None) != FORMAT:
            raise ValueError("A sampling policy of another format.")
        rules = keywords.pop("rules", [])
        if not isinstance(rules, list | tuple):
            raise ValueError(f"The rules of a sampling policy are a {type(rules).__name__}; expected a list.")
        if "ratio" not in keywords:
            raise ValueError("A sampling policy has no ratio; expected a number from 0.0 to 1.0 or None.")
        return cls(rules=tuple(Rule.from_json(rule) for rule in rules), **keywords)
