"""Rules of single settings: each takes a value and returns it in its final form, or raises `Misfit`."""

from __future__ import annotations

import difflib
import ipaddress
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from django_otel.base.patterns import lazy_pattern
from django_otel.base.text import printable
from django_otel.sampling.policy import MAX_RULES
from django_otel.sampling.policy import Rule as SamplingRule

Rule = Callable[[object], object]

#: The most a number without a bound of its own becomes. As seconds they are 23 days, more than anything is waited for;
#: the operating system takes no time-out above 24.
MOST = 2_000_000.0
#: The same for whole numbers: no container of Python is larger.
MOST_WHOLE = sys.maxsize

ALLOW = ("auto", "private", "token", "staff", "all")


#: A word this long with letters and digits is more likely a key or a token than a mistyped choice.
_LIKE_A_TOKEN = lazy_pattern(r"(?=[^\d]*\d)(?=[^A-Za-z]*[A-Za-z])[\w.+=~-]{20,}")


def show(value: object) -> str:
    """A value as a message may show it: never a secret, never long. Of a dict only the keys, of an object its type."""
    try:
        return _show(value)
    except Exception:
        # An integer of thousands of digits, or a key that cannot be written.
        return f"a {type(value).__name__}"


def _show(value: object) -> str:
    if value is None or isinstance(value, bool | int | float):
        shown = repr(value)
        return shown if len(shown) <= 80 else shown[:77] + "..."
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return _show_text(value)
    if isinstance(value, Mapping):
        shown = "{" + ", ".join(f"{_show_text(str(name))}: ..." for name in value) + "}"
    elif isinstance(value, list | tuple | set | frozenset):
        shown = "[" + ", ".join(map(show, value)) + "]"
    else:
        return f"a {type(value).__name__}"
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _show_text(value: str) -> str:
    # Imported where a message is made; a start without a fault needs no part of it.
    from django_otel.redaction.scrub import Scrubber

    if _LIKE_A_TOKEN.fullmatch(value):
        return f"a text of {len(value)} characters"
    # Of an address, user and password, and whatever follows its path.
    plain = re.sub(r"(?s)^(\s*[\w+.-]*:?/*).*@", r"\1[redacted]@", value) if "@" in value else value
    plain = re.sub(r"[?#].*", "?[redacted]", plain, flags=re.DOTALL) if "://" in plain else plain
    shown = repr(Scrubber().text(plain))
    return shown if len(shown) <= 80 else shown[:77] + "..."


_HEADER_NAME = lazy_pattern(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class Misfit(Exception):  # noqa: N818 (a value that does not fit is not a fault of the program)
    """A value does not fit its rule. `expected` completes the sentence "expected ..."."""

    def __init__(self, expected: str, hint: str = "", problem_id: str = "django_otel.E002") -> None:
        self.expected = expected
        self.hint = hint
        self.problem_id = problem_id
        super().__init__(expected)


def boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise Misfit("True or False")
    return value


def text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Misfit("a non-empty string")
    return value


def number(low: float, high: float = math.inf, *, hint: str = "", exclusive: bool = False) -> Rule:
    """Rule of a number from `low` to `high`; without a `high`, more than `MOST` is taken for that."""
    if high == math.inf:
        expected = f"a number {'above' if exclusive else 'of at least'} {low}"
    else:
        expected = f"a number from {low} to {high}"

    def rule(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Misfit(expected)
        if not low <= value <= high or value in (math.inf, -math.inf) or (exclusive and value == low):
            fix = hint.format(fraction=f"{value / 100:g}", value=f"{value:g}") if hint and 1 < value <= 100 else ""
            raise Misfit(expected, fix)
        return float(min(value, MOST) if high == math.inf else value)

    return rule


def whole(low: int) -> Rule:
    """Rule of a whole number from `low` on; more than `MOST_WHOLE` is taken for that."""

    def rule(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise Misfit(f"a whole number of at least {low}")
        return min(value, MOST_WHOLE)

    return rule


def one_of(*choices: str) -> Rule:
    def rule(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise Misfit("one of " + ", ".join(repr(choice) for choice in choices), nearest(value, choices))
        return value

    return rule


def optional(rule: Rule) -> Rule:
    return _either("None", lambda value: value is None, rule)


def boolean_or(rule: Rule) -> Rule:
    return _either("True, False", lambda value: isinstance(value, bool), rule)


def _either(names: str, is_one: Callable[[object], bool], rule: Rule) -> Rule:
    """Return the rule for a value of which `is_one` says that it fits as it is, or that `rule` fits."""

    def check(value: object) -> object:
        if is_one(value):
            return value
        try:
            return rule(value)
        except Misfit as misfit:
            raise Misfit(f"{names} or {misfit.expected}", misfit.hint, misfit.problem_id) from None

    return check


def list_of(rule: Rule, what: str) -> Rule:
    def check(value: object) -> tuple[object, ...]:
        if isinstance(value, str) or not isinstance(value, list | tuple | set | frozenset):
            hint = "Write a list, even for one entry." if isinstance(value, str) else ""
            raise Misfit(f"a list of {what}", hint)
        try:
            return tuple(rule(item) for item in value)
        except Misfit as misfit:
            raise Misfit(f"a list of {what}, each {misfit.expected}", misfit.hint, misfit.problem_id) from None

    return check


def off_or_list_of(*choices: str) -> Rule:
    """Return the rule for False or a list out of `choices`, kept in their order."""
    expected = "False, or a list out of " + ", ".join(repr(choice) for choice in choices)

    def rule(value: object) -> object:
        if value is False:
            return False
        if isinstance(value, str) or not isinstance(value, list | tuple):
            hint = f"Write [{value!r}]." if isinstance(value, str) and value in choices else ""
            raise Misfit(expected, hint)
        for item in value:
            if item not in choices:
                raise Misfit(expected, nearest(item, choices) or f"{show(item)} is not one of them.")
        return tuple(choice for choice in choices if choice in value) or False

    return rule


_DOTTED_PATH = lazy_pattern(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def dotted_path(value: object) -> str:
    if not isinstance(value, str) or not _DOTTED_PATH.fullmatch(value):
        raise Misfit("a dotted import path such as 'shop.telemetry.enrich'", problem_id="django_otel.E003")
    return value


def callable_or_path(value: object) -> object:
    return value if callable(value) else dotted_path(value)


def headers(value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise Misfit("a dict that maps header names to strings")
    for name, content in value.items():
        if not isinstance(name, str):
            raise Misfit("a dict that maps header names to strings", f"One of its keys is a {type(name).__name__}.")
        if not isinstance(content, str):
            hint = f'The value of "{printable(name)}" is a {type(content).__name__}.'
            raise Misfit("a dict that maps header names to strings", hint)
        if not is_header(name, content):
            raise Misfit(
                "a dict that maps header names to texts of printable ASCII characters",
                f"Look at {show(name)}: its name or value has other characters, such as a line end.",
            )
    return dict(value)


def is_header(name: str, content: str) -> bool:
    """Return whether a header can be sent: a name by RFC 9110, 5.1, and a value of printable ASCII."""
    return bool(_HEADER_NAME.fullmatch(name)) and content.isascii() and content.isprintable()


def resource(value: object) -> Mapping[str, object]:
    expected = "a dict that maps attribute names to strings, numbers, booleans or lists of one of these"
    if not isinstance(value, Mapping):
        raise Misfit(expected)
    for name, content in value.items():
        items = content if isinstance(content, list | tuple) else [content]
        if (
            not isinstance(name, str)
            or not name
            or not all(isinstance(item, str | bool | int | float) for item in items)
        ):
            raise Misfit(expected, f"Look at {name!r}.")
    return dict(value)


_ENDPOINT = "a URL such as 'http://localhost:4318'"
#: gRPC's own way to write a target.
_TARGET = lazy_pattern(r"(?:[\w.-]+|\[[0-9A-Fa-f:.]+\]):\d+", re.ASCII)


def endpoint(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise Misfit(_ENDPOINT)
    if not value.isprintable() or " " in value:
        raise Misfit(_ENDPOINT, "It has a space or a line end in it.")
    # HTTP needs a scheme, see `_check_endpoints`.
    is_target = _TARGET.fullmatch(value) is not None
    parts = _split(f"//{value}" if is_target else value, _ENDPOINT)
    if not is_target and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise Misfit(_ENDPOINT, "It must begin with http:// or https:// and name a host.")
    try:
        parts.port  # noqa: B018 (reading it validates it)
    except ValueError:
        raise Misfit(_ENDPOINT, "Its port is not a number from 0 to 65535.") from None
    return value


def _split(url: str, expected: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        # An invalid address in brackets, or a character that stands for a slash.
        raise Misfit(expected, "Its host cannot be read.") from None


def exporters(*known: str, auto: bool = False, paths: bool = False) -> Rule:
    expected = "a list of " + ", ".join(repr(name) for name in known)
    expected += " or dotted import paths" if paths else ""
    expected = f"'auto' or {expected}" if auto else expected

    def rule(value: object) -> object:
        if auto and value == "auto":
            return "auto"
        if isinstance(value, str) or not isinstance(value, list | tuple):
            hint = f"Write [{value!r}]." if isinstance(value, str) and value in known else ""
            raise Misfit(expected, hint)
        for item in value:
            if item in known:
                continue
            if paths and isinstance(item, str) and "." in item:
                dotted_path(item)
                continue
            raise Misfit(expected, nearest(item, known) or f"{show(item)} is not one of them.")
        return tuple(item for item in dict.fromkeys(value) if item != "none")

    return rule


def buckets(value: object) -> Mapping[str, tuple[float, ...]]:
    expected = "a dict that maps metric names to ascending lists of numbers"
    if not isinstance(value, Mapping):
        raise Misfit(expected)
    parsed: dict[str, tuple[float, ...]] = {}
    for name, bounds in value.items():
        numbers = isinstance(bounds, list | tuple) and all(
            isinstance(bound, int | float) and not isinstance(bound, bool) and abs(bound) <= sys.float_info.max
            for bound in bounds
        )
        if not isinstance(name, str) or not numbers or not bounds or list(bounds) != sorted(set(bounds)):
            raise Misfit(expected, f"Look at {name!r}: each list must ascend, without repetition or infinity.")
        parsed[name] = tuple(float(bound) for bound in bounds)
    return parsed


#: Labels of the request metrics that are ours, as Prometheus writes them.
_OWN_LABELS = frozenset({
    "error_type", "exception_type", "http_request_method", "http_response_status_code", "http_route", "le",
    "network_protocol_version", "otel_metric_overflow", "quantile", "url_scheme",
})  # fmt: skip
_MOST_VALUES = 10_000


def metric_attributes(value: object) -> Mapping[str, int]:
    expected = f"a dict that maps attribute names to a number of values from 1 to {_MOST_VALUES}"
    if not isinstance(value, Mapping):
        raise Misfit(expected)
    seen: set[str] = set()
    for name, limit in value.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name):
            raise Misfit(expected, f"{show(name)} is not the name of an attribute, such as 'shop.tenant'.")
        label = re.sub(r"[^A-Za-z0-9]+", "_", name)
        if label in _OWN_LABELS:
            raise Misfit(expected, f"{name!r} is an attribute of the request metrics already. Choose another name.")
        if label in seen:
            raise Misfit(expected, f"{name!r} is the same label in Prometheus as another name ({label}).")
        seen.add(label)
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= _MOST_VALUES:
            raise Misfit(expected, f"The limit of {name!r} is {show(limit)}.")
    return dict(value)


def render_spans(value: object) -> Mapping[str, float]:
    expected = 'a dict such as {"MIN_S": 0.001}'
    if not isinstance(value, Mapping):
        raise Misfit(expected)
    unknown = next((name for name in value if name != "MIN_S"), None)
    if unknown is not None:
        raise Misfit(expected, f"There is no key {show(unknown)}.", "django_otel.E001")
    try:
        return {"MIN_S": float(str(number(0)(value["MIN_S"])))} if value else {}
    except Misfit as misfit:
        raise Misfit(f"{expected}, with {misfit.expected}") from None


def absolute_path(value: object) -> str:
    if not isinstance(value, str | os.PathLike) or not Path(value).is_absolute():
        raise Misfit("an absolute path")
    return str(Path(value))


def path_on_disk(value: object) -> str:
    try:
        path = absolute_path(value)
    except Misfit:
        raise Misfit("an absolute path on a disk") from None
    if Path(path).is_relative_to("/dev/shm"):  # noqa: S108 (refused)
        raise Misfit("an absolute path on a disk", "Use a disk: /dev/shm is memory, and small in a container.")
    return path


def trust_inbound(value: object) -> object:
    expected = "True, False or a list of networks such as '10.0.0.0/8'"
    if isinstance(value, bool):
        return value
    if isinstance(value, str) or not isinstance(value, list | tuple):
        raise Misfit(expected)
    networks = []
    for item in value:
        try:
            networks.append(ipaddress.ip_network(item, strict=False))
        except ValueError:
            raise Misfit(expected, f"{show(item)} is not a network.") from None
    return tuple(networks)


def sampling_rules(value: object) -> tuple[SamplingRule, ...]:
    expected = "a list of dicts with path or route, method (optional) and ratio"
    if not isinstance(value, list | tuple):
        raise Misfit(
            expected, "Write a list, even for one rule." if isinstance(value, Mapping) else "", "django_otel.E005"
        )
    if len(value) > MAX_RULES:
        raise Misfit(expected, f"There are {len(value)}; the maximum is {MAX_RULES}.", "django_otel.E005")
    rules = []
    for place, item in enumerate(value):
        try:
            rules.append(SamplingRule.from_settings(item))
        except ValueError as error:
            raise Misfit(expected, f"Look at rule {place + 1}: {error}", "django_otel.E005") from None
    return tuple(rules)


def instrument(value: object) -> Mapping[str, Mapping[str, object]]:
    expected = "a list of instrumentor names, or a dict that maps names to dicts of keyword arguments"
    if isinstance(value, Mapping):
        for name, arguments in value.items():
            if not isinstance(name, str) or not isinstance(arguments, Mapping):
                raise Misfit(expected, f"Look at {name!r}.")
            if not all(isinstance(key, str) for key in arguments):
                raise Misfit(expected, f"The keyword arguments of {name!r} must have strings as names.")
        names: Mapping[str, Mapping[str, object]] = {name: dict(arguments) for name, arguments in value.items()}
    elif isinstance(value, list | tuple) and all(isinstance(name, str) and name for name in value):
        names = {name: {} for name in value}
    else:
        raise Misfit(expected)
    if "django" in names:
        raise Misfit(expected, "Django itself is measured by OTelMiddleware; for the official instrumentor's span set "
                     'OTEL["REQUEST"]["SPANS"] = "instrumentor" instead of naming "django" here.')  # fmt: skip
    return names


HEALTH_CHECKS = ("config", "databases", "caches", "migrations")


def health_check(value: object) -> str:
    """One entry of `HEALTH["READY"]` or `HEALTH["STARTUP"]`."""
    expected = (
        ", ".join(repr(name) for name in HEALTH_CHECKS)
        + ", 'database:<alias>', 'cache:<alias>' or the dotted path of a callable that raises"
    )
    if not isinstance(value, str):
        raise Misfit(expected)
    kind, separator, alias = value.partition(":")
    if value in HEALTH_CHECKS or (separator and alias.strip() and kind in ("database", "cache")):
        return value
    if "." in value and not separator:
        return dotted_path(value)
    raise Misfit(expected, nearest(value, HEALTH_CHECKS))


_MODEL_KEYS = ("created", "updated", "deleted", "transitions", "attributes", "metric")


def business(value: object) -> Mapping[str, Mapping[str, object]]:
    expected = 'a dict that maps "app.Model" to a dict with ' + ", ".join(_MODEL_KEYS)
    if not isinstance(value, Mapping):
        raise Misfit(expected)
    for label, events in value.items():
        if not isinstance(label, str) or label.count(".") != 1:
            raise Misfit(expected, f'{show(label)} is not a model label such as "shop.Order".')
        if not isinstance(events, Mapping):
            raise Misfit(expected, f"The value of {label!r} is a {type(events).__name__}.")
        for key, content in events.items():
            if key not in _MODEL_KEYS:
                near = nearest(key, _MODEL_KEYS)
                raise Misfit(expected, f"{label!r} has no key {key!r}. {near}".strip(), "django_otel.E001")
            if not _fits_model_key(key, content):
                raise Misfit(expected, f"Look at {label!r}: {key!r}.")
    return {label: dict(events) for label, events in value.items()}


def _fits_model_key(key: str, content: object) -> bool:
    if key == "metric":
        return isinstance(content, bool)
    if key == "attributes":
        return isinstance(content, list | tuple) and all(isinstance(name, str) for name in content)
    if key == "transitions":
        return isinstance(content, Mapping) and all(
            isinstance(name, str)
            and isinstance(events, Mapping)
            and all(isinstance(event, str) and event for event in events.values())
            for name, events in content.items()
        )
    return content is None or (isinstance(content, str) and bool(content))


def allow(value: object) -> object:
    if isinstance(value, str) and value in ALLOW:
        return value
    if isinstance(value, str) and "." not in value:
        choices = ", ".join(repr(choice) for choice in ALLOW)
        raise Misfit(f"one of {choices} or a dotted import path", nearest(value, ALLOW))
    return callable_or_path(value)


def trace_url(value: object) -> str:
    expected = "a URL with {trace_id} in it"
    if not isinstance(value, str) or "{trace_id}" not in value:
        raise Misfit(expected, "For Jaeger: 'http://localhost:16686/trace/{trace_id}'.")
    if _split(value, expected).scheme not in ("http", "https", ""):
        raise Misfit(expected, "It must begin with http:// or https:// or a slash.")
    return value


def editor_url(value: object) -> str:
    expected = "an address with {file} and {line} in it"
    if not isinstance(value, str) or "{file}" not in value or "{line}" not in value:
        raise Misfit(expected, "For VS Code: 'vscode://file/{file}:{line}'.")
    if _split(value, expected).scheme in ("", "javascript", "data", "vbscript"):
        raise Misfit(expected, "It must begin with the scheme of an editor, such as vscode:// or pycharm://.")
    return value


def notify_target(value: object) -> str:
    expected = '"mail", an https URL or a dotted path'
    if value == "mail":
        return "mail"
    if not isinstance(value, str):
        raise Misfit(expected)
    if "://" not in value:
        if not _DOTTED_PATH.fullmatch(value):
            raise Misfit(expected)
        return value
    parts = _split(value, expected)
    is_local = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")
    if not value.isprintable() or " " in value or not parts.hostname or not (parts.scheme == "https" or is_local):
        raise Misfit(expected, "A webhook's URL must begin with https:// (http:// for this machine alone).")
    return value


def log_level(value: object) -> str:
    levels = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    if not isinstance(value, str) or value.upper() not in levels:
        raise Misfit("one of " + ", ".join(repr(level) for level in levels))
    return value.upper()


def nearest(value: object, choices: tuple[str, ...]) -> str:
    if isinstance(value, str):
        near = difflib.get_close_matches(value.lower(), choices, n=1, cutoff=0.6)
        if near:
            return f"Did you mean {near[0]!r}?"
    return ""
