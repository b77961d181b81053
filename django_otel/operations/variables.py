"""State of every `OTEL_*` variable, for `manage.py otel config`: obeyed, read by a package, ignored, or not set."""

from __future__ import annotations

import re
from collections.abc import Mapping

from django.utils.translation import gettext, gettext_noop

from django_otel.config.schema import Config
from django_otel.config.signals import SIGNALS, find_protocol
from django_otel.config.variables import VARIABLES, Variable

# English in JSON; `say_state` translates them for the terminal.
NOT_SET = gettext_noop("not set")
OBEYED = gettext_noop("obeyed")
OBEYED_IN_PART = gettext_noop("obeyed in part")
IGNORED = gettext_noop("ignored")
OVERRIDDEN = gettext_noop("no effect: nothing uses it, or another variable takes precedence")
IDLE = gettext_noop("asks for what happens anyway")
_READ = gettext_noop("read by %(reader)s")


def list_states(config: Config, environ: Mapping[str, str], *, all_variables: bool) -> dict[str, dict[str, str]]:
    """Return state and effect of the variables that are set, or of all, by name; values may be secret.

    Keys of each: "state", "effect".
    """
    found = {}
    for variable in VARIABLES.values():
        state = find_state(variable, config, environ)
        if all_variables or state != NOT_SET:
            found[variable.name] = {"state": state, "effect": variable.effect.replace("`", "")}
    return found


def find_state(variable: Variable, config: Config, environ: Mapping[str, str]) -> str:
    """Return the state of one variable, where `config` was made from `environ`."""
    if not environ.get(variable.name, "").strip():
        return NOT_SET
    word = re.compile(rf"\b{variable.name}\b")
    is_obeyed = any(word.search(source) for source in config.sources.values()) or _is_protocol_used(
        variable, config, environ
    )
    if any(word.search(warning) for warning in config.warnings):
        return OBEYED_IN_PART if is_obeyed else IGNORED
    if variable.reader:
        return _READ % {"reader": variable.reader}
    if is_obeyed:
        return OBEYED
    # One that asks for the default (OTEL_SDK_DISABLED=false) sets nothing.
    return IDLE if not variable.is_obeyed or _asks_for_default(variable, environ) else OVERRIDDEN


def say_state(name: str, state: str) -> str:
    """Return the state of the variable `name` in the language of the terminal."""
    values = {"reader": VARIABLES[name].reader}
    return gettext(_READ) % values if state == _READ % values else gettext(state)


def _asks_for_default(variable: Variable, environ: Mapping[str, str]) -> bool:
    try:
        return variable.convert is not None and variable.convert(environ[variable.name].strip()) is None
    except (ValueError, KeyError):
        return False


def _is_protocol_used(variable: Variable, config: Config, environ: Mapping[str, str]) -> bool:
    """Return whether an exporter is the one that a variable of a protocol asks for."""
    if not variable.name.endswith("_PROTOCOL"):
        return False
    for signal, part in SIGNALS.items():
        own = f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL"
        decides = own if find_protocol({own: environ.get(own, "")}, signal) else "OTEL_EXPORTER_OTLP_PROTOCOL"
        if variable.name == decides and find_protocol(environ, signal) in getattr(config, part).exporters:
            return True
    return False
