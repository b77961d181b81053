"""Sign-ins, sign-outs and failed sign-ins, counted through Django's signals; never a user's name.

On by default (`AUTH`). Metric `django.auth.events`. A sign-in costs one cell update; requests without one cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from django.apps import apps
from django.dispatch import Signal

from django_otel import runtime
from django_otel.base import guard
from django_otel.config.schema import Config


@guard.guarded("counting a sign-in", None)
def _count(event: str) -> None:
    runtime.store.catalogued("django.auth.events").series({"django.auth.event": event}).add(1.0)


def _on_login(sender: object, **_: object) -> None:
    _count("login")


def _on_logout(sender: object, **_: object) -> None:
    _count("logout")


def _on_login_failed(sender: object, **_: object) -> None:
    _count("login_failed")


def _find_signals() -> dict[Signal, Callable[..., None]]:
    """The receiver of each signal; a project without django.contrib.auth does not import it for this."""
    if not apps.is_installed("django.contrib.auth"):
        return {}
    from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed

    return {user_logged_in: _on_login, user_logged_out: _on_logout, user_login_failed: _on_login_failed}


def install(config: Config) -> None:
    """Follow the settings: connect to the signals, or disconnect. May be called again and again."""
    if not (config.enabled and config.auth):
        uninstall()
        return
    for signal, receiver in _find_signals().items():
        signal.connect(receiver, dispatch_uid="django_otel.auth")


def uninstall() -> None:
    """Disconnect from the signals."""
    for signal in _find_signals():
        signal.disconnect(dispatch_uid="django_otel.auth")
