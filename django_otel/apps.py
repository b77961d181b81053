"""The Django app."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, Tags
from django.core.checks import register as register_check
from django.utils.translation import gettext_lazy

if TYPE_CHECKING:
    from django_otel.health import HealthChecks

logger = logging.getLogger("django_otel")


#: Commands of Django that refuse to run when a check finds an error, and ours, which shows it.
_CHECKING_COMMANDS = frozenset({
    "check", "collectstatic", "createsuperuser", "flush", "inspectdb", "loaddata", "makemigrations", "migrate", "otel",
    "runserver", "showmigrations", "sqlmigrate", "test", "testserver",
})  # fmt: skip


#: Modules that measure Django and libraries.
_PARTS = "django_otel.instrumentation"
#: The part for tasks, imported last, because a test or a project may use the hooks directly.
_TASK_LIBRARIES = ("celery", "rq", "dramatiq", "django.tasks", "django_tasks", f"{_PARTS}.tasks")


def _is_checking(command: str | None) -> bool:
    """Return whether this command reports problems of the settings."""
    return command in _CHECKING_COMMANDS and "--skip-checks" not in sys.argv


class DjangoOTelConfig(AppConfig):
    """Starts telemetry in `ready()`: no query, no URLconf, no socket, no thread."""

    name = "django_otel"
    label = "django_otel"
    verbose_name = gettext_lazy("OpenTelemetry")
    default_auto_field = "django.db.models.BigAutoField"

    def __init__(self, app_name: str, app_module: Any) -> None:
        super().__init__(app_name, app_module)
        from django_otel import _prepare
        from django_otel.base import late_psutil, log_fields

        _prepare()
        # Before the models of any app are imported, which may log, and of which ours load the SDK.
        log_fields.stand_by()
        late_psutil.import_resources()

    def ready(self) -> None:
        from django_otel import conf, runtime
        from django_otel.config.schema import ConfigError

        _register_checks()
        conf.on_change(runtime.restart)
        self._connect_parts()
        _connect_runserver_line()
        try:
            runtime.start(conf.get_config())
        except ConfigError as error:
            runtime.refuse(error.problems)
            # Commands that run the system checks say it themselves, with the errors of everything else.
            logger.log(
                logging.DEBUG if _is_checking(runtime.command_name()) else logging.ERROR,
                "django_otel is off because settings.OTEL is invalid:\n%s",
                "\n".join(f"- {problem.message} ({problem.id})" for problem in error.problems),
            )
        except Exception as error:
            from django_otel.base import guard

            runtime.refuse([])
            guard.report("starting django_otel", error)

    @cached_property
    def health_checks(self) -> HealthChecks:
        """The checks of this process. Late: the first probe asks for them."""
        from django_otel.health import HealthChecks

        return HealthChecks()

    def _connect_parts(self) -> None:
        """Each part switches itself on and off with the settings."""
        from django_otel import business, logs, runtime
        from django_otel.base import guard
        from django_otel.console import failures
        from django_otel.instrumentation import (
            auth,
            cache,
            callbacks,
            connections,
            database,
            instrumentors,
            migrations,
            origins,
            outbound_times,
            process_metrics,
            security,
            templates,
            transactions,
            view_times,
        )
        from django_otel.instrumentation.late_parts import LatePart
        from django_otel.live_sampling import follower

        # Instrumentors first: the stable conventions are opted in before any of them loads.
        parts = (
            instrumentors, logs, database, cache, auth, security,
            LatePart(f"{_PARTS}.email", "django.core.mail.backends.base"),
            LatePart(f"{_PARTS}.tasks.switch", *_TASK_LIBRARIES), business, failures, view_times, templates,
            outbound_times, LatePart(f"{_PARTS}.middleware_spans", is_wanted=lambda config: config.middleware_spans),
            LatePart("django_otel.console.notify", is_wanted=lambda config: bool(config.errors.notify)),
            LatePart(f"{_PARTS}.commands", is_wanted=lambda config: bool(config.commands)),
            migrations, connections, transactions,
            LatePart(f"{_PARTS}.feature_flags", "waffle", "openfeature.api"),
            LatePart(f"{_PARTS}.copies", "django.db.backends.postgresql.base"),
            LatePart(f"{_PARTS}.sql_comments", is_wanted=lambda config: bool(config.database.comments)),
            LatePart(f"{_PARTS}.django_prometheus", is_wanted=lambda config: config.metrics.names != "otel"),
            process_metrics, LatePart(f"{_PARTS}.graphql_names", "graphql.execution.execute"), origins,
        )  # fmt: skip
        for part in parts:
            runtime.on_config_change(part.install)
            # A format of LOGGING may name the trace's id, whatever the settings say.
            runtime.on_refusal(logs.stand_by if part is logs else part.uninstall)
        runtime.store.around_callbacks = callbacks.own_connections
        runtime.on_prepare(follower.ensure_started)
        if "django.core.handlers.asgi" in sys.modules:
            from django_otel import asgi

            asgi.answer_lifespan()
        with guard.contained("looking for otel.py modules"):
            business.autodiscover()


def _connect_runserver_line() -> None:
    from django_otel import runtime

    if runtime.command_name() == "runserver":
        from django_otel.instrumentation import runserver_line

        runtime.on_config_change(runserver_line.install)
        runtime.on_refusal(runserver_line.uninstall)


def _register_checks() -> None:
    """Register our system checks, which are imported when they run: a server never runs them."""
    register_check(_build_check("check_configuration"), "django_otel")
    register_check(_build_check("check_project"), "django_otel")
    register_check(_build_check("check_deployment"), "django_otel", deploy=True)
    register_check(_build_check("check_live_table"), Tags.database)


def _build_check(name: str) -> Callable[..., list[CheckMessage]]:
    def check(app_configs: object = None, **kwargs: object) -> list[CheckMessage]:
        from django_otel.operations import checks

        found: list[CheckMessage] = getattr(checks, name)(app_configs, **kwargs)
        return found

    check.__name__ = check.__qualname__ = name
    return check
