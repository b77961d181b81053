"""Evaluations of feature flags as events of the current span: django-waffle and the OpenFeature SDK, where installed.

Off by default (`FEATURE_FLAGS`). Event `feature_flag.evaluation` while a span is recorded; who was evaluated for is
never read. An evaluation outside of a recorded span costs a look at the current span; requests without one, nothing.
Source: OpenTelemetry semantic conventions, "Feature flag evaluations".
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from django.apps import apps
from opentelemetry.trace import get_current_span

from django_otel.base import guard, import_hooks
from django_otel.base.text import encodable
from django_otel.config.schema import Config

EVENT = "feature_flag.evaluation"
_OPENFEATURE = "openfeature.api"
_MAX_TEXT = 256

#: Set while a flag of waffle is evaluated: one that is missing is made, and evaluated again.
_is_inside: ContextVar[bool] = ContextVar("django_otel_in_flag", default=False)


class _State:
    """Effective settings."""

    is_on = False
    #: Our hook in the list of OpenFeature's API, which cannot take single ones out again, but all of them.
    hook: object = None
    #: The methods of waffle's models as they were.
    plain: dict[type, Callable[..., object]] = {}


def _add_event(key: object, provider: str, **more: object) -> None:
    """Add the event to the current span, which is being recorded; values that are None are left out."""
    attributes: dict[str, str | bool | int | float] = {"feature_flag.key": encodable(str(key)[:_MAX_TEXT])}
    if provider:
        attributes["feature_flag.provider.name"] = provider
    for name, value in more.items():
        if isinstance(value, bool | int | float):
            attributes[name] = value
        elif isinstance(value, str):
            attributes[name] = encodable(value[:_MAX_TEXT])
    get_current_span().add_event(EVENT, attributes)


# --- django-waffle. ---


def _build_is_active(plain: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(plain)
    def is_active(self: Any, *args: object, **kwargs: object) -> object:
        if _is_inside.get() or not get_current_span().is_recording():
            return plain(self, *args, **kwargs)
        token = _is_inside.set(True)
        try:
            found = plain(self, *args, **kwargs)
        finally:
            _is_inside.reset(token)
        with guard.contained("the event of a feature flag"):
            variant = "on" if found else "off"
            more: dict[str, object] = {"feature_flag.result.variant": variant, "feature_flag.result.value": bool(found)}
            _add_event(self.name, "waffle", **more)
        return found

    return is_active


def _watch_waffle() -> None:
    if not apps.is_installed("waffle") or _State.plain:
        return
    from waffle import models

    for name in ("AbstractBaseFlag", "AbstractBaseSwitch", "AbstractBaseSample"):
        model = getattr(models, name, None)
        if model is not None:
            _State.plain[model] = model.is_active
            model.is_active = _build_is_active(model.is_active)


def _forget_waffle() -> None:
    for model, plain in _State.plain.items():
        model.is_active = plain  # type: ignore[attr-defined]
    _State.plain.clear()


# --- OpenFeature. ---


def _watch_openfeature() -> None:
    from openfeature import api
    from openfeature.hook import Hook

    if _State.hook in api.get_hooks():
        return

    class EvaluationHook(Hook):  # type: ignore[misc, unused-ignore]
        """Adds the event after each evaluation, failed ones included."""

        def finally_after(self, hook_context: object, details: object, hints: object = None) -> None:
            if _State.is_on and get_current_span().is_recording():
                with guard.contained("the event of a feature flag"):
                    _describe(hook_context, details)

    hook = EvaluationHook()
    api.add_hooks([hook])
    _State.hook = hook


def _describe(hook_context: object, details: object) -> None:
    provider = getattr(getattr(hook_context, "provider_metadata", None), "name", "") or ""
    error = getattr(details, "error_code", None)
    reason = getattr(details, "reason", None)
    more: dict[str, object] = {
        "feature_flag.result.variant": getattr(details, "variant", None),
        # A structure may hold anything, about anyone.
        "feature_flag.result.value": getattr(details, "value", None),
        "feature_flag.result.reason": _name(reason),
        "error.type": _name(error),
    }
    _add_event(getattr(details, "flag_key", ""), str(provider), **more)


def _name(found: object) -> str | None:
    """A constant of the SDK as the conventions write it."""
    return None if found is None else str(getattr(found, "value", found)).lower()


def install(config: Config) -> None:
    """Follow the settings: watch evaluations, or leave everything as it was. May be called again and again."""
    if not (config.enabled and config.feature_flags):
        uninstall()
        return
    _State.is_on = True
    with guard.contained("watching django-waffle"):
        _watch_waffle()
    if not import_hooks.when_imported(_OPENFEATURE, _watch_openfeature):
        with guard.contained("watching OpenFeature"):
            _watch_openfeature()


def uninstall() -> None:
    """Take everything back; the hook of OpenFeature stays and does nothing."""
    _State.is_on = False
    _forget_waffle()
    if _OPENFEATURE not in sys.modules:
        import_hooks.forget(_OPENFEATURE)
