"""Parses `settings.OTEL` and the environment into a `Config`, or reports every problem at once."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

from django_otel.config.schema import PROPAGATORS, SECRET_KEYS, SURROUNDINGS, Batch, Config, ConfigError, Problem, walk
from django_otel.config.signals import SIGNALS, find_protocol, signal_url
from django_otel.config.validators import Misfit, show


def parse(
    mapping: object,
    environ: Mapping[str, str],
    default_service_name: str = "django",
    is_propagator: Callable[[str], bool] = PROPAGATORS.__contains__,
) -> Config:
    """Build the configuration from `settings.OTEL` and the environment.

    Reads nothing else but whether the files exist that variables name; imports nothing of the project's.
    `is_propagator(name)` says whether a propagation format that the environment names is installed.
    Errors: `ConfigError` with every problem at once. A faulty environment
    variable is not an error: it is ignored, with an entry in `warnings`
    (OpenTelemetry specification, "Parsing environment variables").
    """
    problems: list[Problem] = []
    given: dict[str, object] = {}
    if mapping is None:
        mapping = {}
    if isinstance(mapping, Mapping):
        _read_section(Config, mapping, "", given, problems)
    else:
        problems.append(Problem("django_otel.E002", f"OTEL is a {type(mapping).__name__}; expected a dict."))
    _check_together(given, problems)
    if problems:
        raise ConfigError(problems)

    sources = {dotted: "default" for dotted, _ in walk(Config)}
    sources.update(dict.fromkeys(given, "settings"))
    warnings: list[str] = []
    if any(name.startswith("OTEL_") for name in environ):
        # Late: the table of all variables, for those who set one.
        from django_otel.config.environment import read_environment

        for dotted, (value, variable) in read_environment(environ, given, warnings, is_propagator).items():
            given[dotted] = value
            sources[dotted] = f"environment {variable}"
    _resolve(given, sources, environ, default_service_name)
    config: Config = _build_section(Config, given, "")
    surroundings = {name: environ[name] for name in SURROUNDINGS if name in environ}
    return dataclasses.replace(config, sources=sources, warnings=tuple(warnings), surroundings=surroundings)


def _place(dotted: str) -> str:
    return "OTEL" + "".join(f'["{part}"]' for part in dotted.split(".") if part)


def _read_section(
    kind: type, mapping: Mapping[object, object], prefix: str, given: dict[str, object], problems: list[Problem]
) -> None:
    known = {entry.name.upper(): entry for entry in dataclasses.fields(kind) if "internal" not in entry.metadata}
    for name, value in mapping.items():
        entry = known.get(name) if isinstance(name, str) else None
        if entry is None:
            problems.append(_unknown_key(name, prefix, tuple(known)))
            continue
        dotted = prefix + str(name)
        nested = entry.metadata.get("section")
        if nested is not None:
            if isinstance(value, Mapping):
                _read_section(nested, value, dotted + ".", given, problems)
            else:
                keys = ", ".join(item.name.upper() for item in dataclasses.fields(nested))
                problems.append(
                    Problem(
                        "django_otel.E002", f"{_place(dotted)} is {_show(dotted, value)}; expected a dict with {keys}."
                    )
                )
            continue
        try:
            given[dotted] = entry.metadata["rule"](value)
        except Misfit as misfit:
            message = f"{_place(dotted)} is {_show(dotted, value)}; expected {misfit.expected}."
            if misfit.hint:
                message += f" {misfit.hint}"
            problems.append(Problem(misfit.problem_id, message, misfit.hint))


def _show(dotted: str, value: object) -> str:
    if dotted in SECRET_KEYS or re.search(r"(?i)token|secret|password|header", dotted):
        return f"a {type(value).__name__}"
    return show(value)


def _unknown_key(name: object, prefix: str, known: tuple[str, ...]) -> Problem:
    place = _place(prefix.rstrip("."))
    message = f"{place} has no key {name!r}."
    near = ""
    if isinstance(name, str):
        here = max(known, key=lambda candidate: _likeness(name, candidate))
        everywhere = [dotted for dotted, _ in walk(Config)]
        there = max(everywhere, key=lambda dotted: _likeness(name, dotted.rsplit(".", 1)[-1]))
        likeness_here, likeness_there = _likeness(name, here), _likeness(name, there.rsplit(".", 1)[-1])
        # A key of this very section is the likelier slip, unless another fits much better.
        if likeness_here >= 0.6 and likeness_here + 0.15 >= likeness_there:
            near = _place(prefix + here)
        elif likeness_there >= 0.75:
            near = _place(there)
    hint = f"Did you mean {near}?" if near else "Its keys are " + ", ".join(known) + "."
    return Problem("django_otel.E001", f"{message} {hint}", hint)


def _likeness(found: str, key: str) -> float:
    """Return how alike two keys are, 0 to 1: as a whole, or in one word of each ("SAMPLE_RATE" and "RATIO")."""
    found = found.upper()
    whole_key = difflib.SequenceMatcher(None, found, key).ratio()
    words = (
        difflib.SequenceMatcher(None, one, other).ratio() * 0.95
        for one in found.split("_")
        for other in key.split("_")
        if len(one) > 2 and len(other) > 2
    )
    return max(whole_key, *words, 0.0)


def _check_together(given: Mapping[str, object], problems: list[Problem]) -> None:
    """Rules that involve several keys."""
    batch_size = given.get("TRACES.BATCH.BATCH_SIZE", Batch.__dataclass_fields__["batch_size"].default)
    queue_size = given.get("TRACES.BATCH.QUEUE_SIZE", Batch.__dataclass_fields__["queue_size"].default)
    if isinstance(batch_size, int) and isinstance(queue_size, int) and batch_size > queue_size:
        problems.append(
            Problem(
                "django_otel.E002",
                f'OTEL["TRACES"]["BATCH"]["BATCH_SIZE"] is {batch_size}; '
                f"expected at most QUEUE_SIZE, which is {queue_size}.",
            )
        )
    for signal in ("TRACES", "METRICS", "LOGS"):
        url = given.get(f"{signal}.ENDPOINT")
        chosen = given.get(f"{signal}.EXPORTERS", ())
        if (
            isinstance(url, str)
            and "://" not in url
            and "otlp-grpc" not in (chosen if isinstance(chosen, tuple) else ())
        ):
            problems.append(
                Problem(
                    "django_otel.E002",
                    f'OTEL["{signal}"]["ENDPOINT"] is {url!r}; expected a URL such as \'http://localhost:4318\'. '
                    f"Write 'http://{url}'.",
                    f"Write 'http://{url}'.",
                )
            )
    if given.get("METRICS_VIEW.ALLOW") == "token" and not given.get("METRICS_VIEW.TOKEN"):
        problems.append(
            Problem(
                "django_otel.E002",
                'OTEL["METRICS_VIEW"]["ALLOW"] is \'token\', but OTEL["METRICS_VIEW"]["TOKEN"] is not set; '
                "expected a token that the scraper sends as 'Authorization: Bearer ...'.",
                'Set OTEL["METRICS_VIEW"]["TOKEN"].',
            )
        )


def _build_section(kind: type, given: Mapping[str, object], prefix: str) -> Any:
    values: dict[str, object] = {}
    for entry in dataclasses.fields(kind):
        if "internal" in entry.metadata:
            continue
        dotted = prefix + entry.name.upper()
        nested = entry.metadata.get("section")
        if nested is not None:
            values[entry.name] = _build_section(nested, given, dotted + ".")
        elif dotted in given:
            values[entry.name] = given[dotted]
    return kind(**values)


# --- Values that depend on others. ---


def _resolve(
    given: dict[str, object], sources: dict[str, str], environ: Mapping[str, str], default_service_name: str
) -> None:
    if given.get("SERVICE_NAME") is None:
        given["SERVICE_NAME"] = default_service_name
    for signal, path in SIGNALS.items():
        dotted = f"{signal}.ENDPOINT"
        if isinstance(url := given.get(dotted), str) and sources[dotted] == "settings":
            given[dotted] = signal_url(url, path)
    traces_url = given.get("TRACES.ENDPOINT")
    if isinstance(traces_url, str) and sources["TRACES.ENDPOINT"] == "settings":
        for signal in ("METRICS", "LOGS"):
            if given.get(f"{signal}.ENDPOINT") is None:
                _follow_traces(signal, traces_url, given, sources)
    if given.get("TRACES.EXPORTERS", "auto") == "auto":
        chosen = (find_protocol(environ, "TRACES") or "otlp",) if isinstance(traces_url, str) else ()
        given["TRACES.EXPORTERS"] = chosen
        if sources["TRACES.EXPORTERS"] == "default" or sources["TRACES.EXPORTERS"] == "settings":
            sources["TRACES.EXPORTERS"] += " (auto)"


def _follow_traces(signal: str, traces_url: str, given: dict[str, object], sources: dict[str, str]) -> None:
    if "://" not in traces_url:
        url = traces_url
    elif traces_url.endswith("/v1/traces"):
        url = traces_url.removesuffix("traces") + SIGNALS[signal]
    else:
        return
    given[f"{signal}.ENDPOINT"] = url
    sources[f"{signal}.ENDPOINT"] = "TRACES.ENDPOINT"
    for name in ("HEADERS", "TIMEOUT_S", "COMPRESSION"):
        if f"{signal}.{name}" not in given and f"TRACES.{name}" in given:
            given[f"{signal}.{name}"] = given[f"TRACES.{name}"]
            sources[f"{signal}.{name}"] = f"TRACES.{name}"
