"""System checks. Ids and meanings stay as documented; messages never contain a secret.

Everything but errors of the configuration is a Warning: an Error keeps
`migrate` and `runserver` from running, which telemetry must not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from urllib.parse import urlsplit

from django.apps import apps
from django.conf import settings
from django.core.cache import caches
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004 (Django's name)
from django.db import connections
from django.utils.module_loading import import_string
from django.utils.translation import gettext, ngettext

from django_otel import business, conf, runtime
from django_otel.base import guard
from django_otel.config.packages import import_path, package_version
from django_otel.config.parse import parse
from django_otel.config.schema import Config, ConfigError, Problem
from django_otel.instrumentation import instrumentors
from django_otel.multiprocess import lease
from django_otel.operations import groups, surroundings
from django_otel.operations.translated import translate
from django_otel.requests.options import DENIED_HEADER

MIDDLEWARE = "django_otel.middleware.OTelMiddleware"
_GRPC_PACKAGE = "opentelemetry-exporter-otlp-proto-grpc"
_HTTP_PACKAGE = "opentelemetry-exporter-otlp-proto-http"


# --- Errors. ---


def check_configuration(app_configs: object = None, **kwargs: object) -> list[CheckMessage]:
    """E001, E002, E003, E004, E005: errors in `settings.OTEL` or in a registration of business events."""
    problems = list(conf.get_problems())
    if not problems:
        problems = list(_find_missing(conf.get_config()))
        known = {problem.id for problem in problems}
        # Problems that only showed when the providers were built, such as an exporter factory that raises.
        problems += [problem for problem in runtime.current().problems if problem.id not in known]
        problems += business.problems(conf.get_config())
    return [_build_error(problem) for problem in problems]


def _build_error(problem: Problem) -> Error:
    hint = None if not problem.hint or problem.hint in problem.message else problem.hint
    return Error(problem.message, hint=hint, id=problem.id)


def _find_missing(config: Config) -> Iterator[Problem]:
    """Find import paths that lead nowhere (E003), unknown aliases (E002) and packages that are not installed (E004)."""
    yield from _find_path_faults(config)
    yield from _find_health_faults(config)
    yield from _find_missing_packages(config)


def _find_path_faults(config: Config) -> Iterator[Problem]:
    for place, path in _iterate_paths(config):
        try:
            found = import_path(path)
        except ConfigError as error:
            cause = error.__cause__
            why = type(cause).__name__
            if isinstance(cause, ImportError | AttributeError):
                # Names of modules and attributes; any other exception may say anything.
                why += f": {cause}"
            yield Problem(
                "django_otel.E003",
                gettext(
                    "%(place)s names %(path)s, which cannot be imported (%(reason)s); expected the dotted path of "
                    "something that can, such as 'shop.telemetry.enrich'."
                )
                % {"place": place, "path": repr(path), "reason": why},
            )
        else:
            if "HEALTH" in place and not callable(found):
                yield Problem(
                    "django_otel.E003",
                    gettext(
                        "%(place)s names %(path)s, which is not callable; expected a callable that raises when a "
                        "service is not healthy."
                    )
                    % {"place": place, "path": repr(path)},
                )


def _find_missing_packages(config: Config) -> Iterator[Problem]:
    for signal in ("TRACES", "METRICS", "LOGS"):
        chosen = getattr(config, signal.lower()).exporters
        for name, package, install in (
            ("otlp", _HTTP_PACKAGE, _HTTP_PACKAGE),
            ("otlp-json", _HTTP_PACKAGE, _HTTP_PACKAGE),
            ("otlp-grpc", _GRPC_PACKAGE, '"django-otel-kit[grpc]"'),
            ("prometheus-registry", "prometheus-client", "prometheus-client"),
        ):
            if name in chosen and not package_version(package):
                yield _missing_package(f'OTEL["{signal}"]["EXPORTERS"]', name, package, install)
    if config.metrics.include_registry and not package_version("prometheus-client"):
        yield _missing_package('OTEL["METRICS"]["INCLUDE_REGISTRY"]', "True", "prometheus-client", "prometheus-client")
    for name in config.propagation.formats:
        if name in ("tracecontext", "baggage", "none"):
            continue
        from importlib.metadata import entry_points

        if not entry_points(group="opentelemetry_propagator", name=name):
            package = f"opentelemetry-propagator-{name.removesuffix('multi')}"
            yield _missing_package('OTEL["PROPAGATION"]["FORMATS"]', name, package, package)


def _find_health_faults(config: Config) -> Iterator[Problem]:
    """Find aliases in `HEALTH` that the project does not have."""
    for key in ("READY", "STARTUP"):
        place = f'OTEL["HEALTH"]["{key}"]'
        for name in getattr(config.health, key.lower()):
            kind, _, alias = name.partition(":")
            aliases = {"database": connections.settings, "cache": caches.settings}.get(kind)
            if aliases is not None and alias not in aliases:
                yield Problem(
                    "django_otel.E002",
                    gettext("%(place)s names %(name)s; expected one of %(names)s.")
                    % {
                        "place": place,
                        "name": repr(name),
                        "names": ", ".join(repr(f"{kind}:{known}") for known in sorted(aliases)),
                    },
                )


def _missing_package(place: str, name: str, package: str, install: str) -> Problem:
    return Problem(
        "django_otel.E004",
        gettext("%(place)s asks for %(name)s, but the package %(package)s is not installed.")
        % {"place": place, "name": repr(name), "package": package},
        gettext("Run: %(command)s") % {"command": f"pip install {install}"},
    )


def _iterate_paths(config: Config) -> Iterator[tuple[str, str]]:
    for name in config.traces.exporters:
        if "." in name:
            yield 'OTEL["TRACES"]["EXPORTERS"]', name
    for key in ("READY", "STARTUP"):
        for name in getattr(config.health, key.lower()):
            if "." in name and ":" not in name:
                yield f'OTEL["HEALTH"]["{key}"]', name
    for target in config.errors.notify:
        if "." in target and "://" not in target:
            yield 'OTEL["ERRORS"]["NOTIFY"]', target
    for place, value in (
        ('OTEL["REQUEST"]["ENRICH"]', config.request.enrich),
        ('OTEL["SCRUB"]["CALLBACK"]', config.scrub.callback),
        ('OTEL["CACHE"]["KEY_GROUP"]', config.cache.key_group),
        ('OTEL["METRICS_VIEW"]["ALLOW"]', config.metrics_view.allow),
    ):
        if isinstance(value, str) and "." in value:
            yield place, value


# --- Warnings. ---


def check_project(app_configs: object = None, **kwargs: object) -> list[CheckMessage]:
    """W001, W002, W003, W005, W007, W009 to W017: settings and middleware that are probably not intended."""
    return list(_run((_check_middleware, _check_double, _check_environment, _check_driver, _check_headers,
                      _check_provider, _check_instrumentors, _check_shared_folder, _check_endpoints, _check_store,
                      _check_nothing, _check_static_files)))  # fmt: skip


def check_deployment(app_configs: object = None, **kwargs: object) -> list[CheckMessage]:
    """W004, W006: fine while developing, rarely meant in production (`check --deploy`)."""
    return list(_run((_check_metrics_access, _check_ratio)))


def check_live_table(
    app_configs: object = None, databases: Sequence[str] | None = None, **kwargs: object
) -> list[CheckMessage]:
    """W008: sampling is to follow the admin, but its table is missing. Asks the database, hence its tag."""
    # migrate itself runs this check before it makes the table.
    if not databases or sys.argv[1:2] == ["migrate"]:
        return []
    return list(_run((_check_table,)))


def _run(checks: Sequence[Callable[[Config], Iterator[CheckMessage]]]) -> Iterator[CheckMessage]:
    try:
        config = conf.get_config()
    except ConfigError:
        # Said by check_configuration.
        return
    if not config.enabled:
        return
    for check in checks:
        with guard.contained(f"the system check {check.__name__}"):
            yield from check(config)


def _middleware() -> list[str]:
    return [str(path) for path in getattr(settings, "MIDDLEWARE", None) or ()]


def find_middleware() -> list[int]:
    """Positions in `settings.MIDDLEWARE` at which OTelMiddleware, or a subclass of it, stands."""
    paths = _middleware()
    exact = [index for index, path in enumerate(paths) if path == MIDDLEWARE]
    return exact or [index for index, path in enumerate(paths) if _is_subclass(path)]


def _is_subclass(path: str) -> bool:
    from django_otel.middleware import OTelMiddleware

    try:
        found = import_string(path)
    except Exception:
        # Django says so itself when it loads the middleware.
        return False
    return isinstance(found, type) and issubclass(found, OTelMiddleware)


def _check_middleware(config: Config) -> Iterator[CheckMessage]:
    positions = find_middleware()
    if not positions:
        yield Warning(
            gettext("OTelMiddleware is not in MIDDLEWARE; requests are neither traced nor counted."),
            hint=gettext('Put "%(path)s" at the beginning of MIDDLEWARE.') % {"path": MIDDLEWARE},
            id="django_otel.W001",
        )
        return
    # The official instrumentor puts itself first, and ours joins its span: that is as it should be.
    before = [path for path in _middleware()[: positions[0]] if path != instrumentors.DJANGO_MIDDLEWARE]
    if before:
        position = len(before)
        yield Warning(
            ngettext(
                "OTelMiddleware is at position %(position)d of MIDDLEWARE; time spent in the %(position)d before it is "
                "not measured.",
                "OTelMiddleware is at position %(position)d of MIDDLEWARE; time spent in the %(position)d before it is "
                "not measured.",
                position,
            )
            % {"position": position},
            hint=gettext("Move it to the beginning of MIDDLEWARE."),
            id="django_otel.W002",
        )


def _check_double(config: Config) -> Iterator[CheckMessage]:
    count = len(find_middleware())
    if count > 1:
        yield Warning(
            ngettext(
                "OTelMiddleware is in MIDDLEWARE %(count)d time; every request would be counted %(count)d time.",
                "OTelMiddleware is in MIDDLEWARE %(count)d times; every request would be counted %(count)d times.",
                count,
            )
            % {"count": count},
            hint=gettext("Keep only the first entry."),
            id="django_otel.W003",
        )
    if config.tasks and "celery" in config.instrument:
        yield Warning(
            gettext("Celery is measured twice: TASKS is on, and INSTRUMENT names its official instrumentor."),
            hint=gettext(
                'Remove "celery" from OTEL["INSTRUMENT"]. With both, the official instrumentor creates the '
                "spans and TASKS the metrics."
            ),
            id="django_otel.W003",
        )
    if instrumentors.is_django_instrumented_elsewhere():
        yield Warning(
            gettext(
                "Another tool has enabled the official DjangoInstrumentor; it measures the same requests as "
                "OTelMiddleware, so http.server.request.duration is counted twice."
            ),
            hint=gettext(
                'Disable "django" in that tool (OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=django under '
                "opentelemetry-instrument); to let the official instrumentor create the request span, set "
                'OTEL["REQUEST"]["SPANS"] = "instrumentor" as well.'
            ),
            id="django_otel.W003",
        )


def _check_shared_folder(config: Config) -> Iterator[CheckMessage]:
    if not {"prometheus", "prometheus-registry"} & set(config.metrics.exporters):
        return
    is_asked_for = config.metrics.shared_dir is not None or config.metrics.group is not None
    if not lease.HAS_LOCKS:
        if is_asked_for:
            yield _warn_shared(
                gettext("this system has no file locks (fcntl)"),
                gettext("Remove %(settings)s.") % {"settings": "METRICS.SHARED_DIR, METRICS.GROUP"},
            )
        return
    obstacle = surroundings.find_sharing_obstacle(config)
    if not obstacle:
        return
    if config.metrics.shared_dir is not None:
        hint = gettext(
            'Make OTEL["METRICS"]["SHARED_DIR"] a folder that exists and that the server\'s user may write to.'
        )
    else:
        hint = gettext(
            'Set OTEL["METRICS"]["SHARED_DIR"] to a folder that the server\'s user may write to; in a container with a '
            "read-only root an emptyDir or a tmpfs."
        )
    yield _warn_shared(obstacle, hint)


def _warn_shared(reason: str, hint: str) -> CheckMessage:
    return Warning(groups.describe_unshared(reason), hint=hint, id="django_otel.W005")


def _check_static_files(config: Config) -> Iterator[CheckMessage]:
    from django_otel.live_sampling import assets

    if not (apps.is_installed("django.contrib.admin") and apps.is_installed("django.contrib.staticfiles")):
        return
    missing = [path for path in assets.FILES if not assets.is_listed(path)]
    if missing:
        yield Warning(
            gettext("The static files manifest does not list %(names)s: our pages in the admin have no styles.")
            % {"names": ", ".join(missing)},
            hint=gettext("Run `manage.py collectstatic`, as after every installation of an app with static files."),
            id="django_otel.W017",
        )


def _check_metrics_access(config: Config) -> Iterator[CheckMessage]:
    if config.metrics_view.allow == "all":
        yield Warning(
            gettext('OTEL["METRICS_VIEW"]["ALLOW"] is "all": anyone who can reach the site can read /metrics.'),
            hint=gettext(
                'Set OTEL["METRICS_VIEW"]["TOKEN"] and ALLOW = "token", or "private" when only a proxy-less network '
                "reaches it."
            ),
            id="django_otel.W004",
        )


def _check_ratio(config: Config) -> Iterator[CheckMessage]:
    leaves = [name for name in config.traces.exporters if name not in ("console", "memory")]
    if leaves and config.sampling.ratio >= 1.0 and config.providers != "none":
        yield Warning(
            gettext('OTEL["SAMPLING"]["RATIO"] is 1.0: every request is traced and exported.'),
            hint=gettext(
                'Set a smaller share for a busy site, for example OTEL["SAMPLING"]["RATIO"] = 0.1. Metrics count '
                "every request all the same."
            ),
            id="django_otel.W006",
        )


def _check_endpoints(config: Config) -> Iterator[CheckMessage]:
    said = set()
    for signal in ("TRACES", "METRICS", "LOGS"):
        part = getattr(config, signal.lower())
        http = [name for name in part.exporters if name in ("otlp", "otlp-json")]
        url = part.endpoint or ""
        try:
            parts = urlsplit(url)
            address = (parts.hostname, parts.port)
        except ValueError:
            continue
        if http and address[1] == 4317 and address not in said:
            said.add(address)
            yield Warning(
                gettext(
                    "%(place)s sends OTLP over HTTP to port 4317 of %(host)s, where OTLP receivers usually speak gRPC."
                )
                % {"place": f'OTEL["{signal}"]', "host": address[0]},
                hint=gettext('Use port 4318, or the exporter "otlp-grpc" (OTEL_EXPORTER_OTLP_PROTOCOL=grpc).'),
                id="django_otel.W014",
            )


def _check_store(config: Config) -> Iterator[CheckMessage]:
    obstacle = surroundings.find_store_obstacle(config)
    if obstacle and config.console.path is None:
        text = gettext("traces cannot be stored: %(reason)s.") % {"reason": obstacle}
        hint = gettext("Set %(setting)s.") % {"setting": 'OTEL["CONSOLE"]["PATH"]'}
        yield Warning(f'OTEL["CONSOLE"]: {text}', hint=hint, id="django_otel.W015")
    elif obstacle:
        yield Warning(
            gettext('The console\'s traces cannot be stored at OTEL["CONSOLE"]["PATH"]: %(reason)s.')
            % {"reason": obstacle},
            hint=gettext("Name a folder that the server's user may write to."),
            id="django_otel.W015",
        )


def _check_nothing(config: Config) -> Iterator[CheckMessage]:
    if getattr(settings, "OTEL", {}) is None:
        yield Warning(
            gettext("OTEL is None, which counts as not set: every setting has its default."),
            hint=gettext('Write OTEL = {}, or OTEL = {"ENABLED": False} to switch telemetry off.'),
            id="django_otel.W016",
        )


def _check_environment(config: Config) -> Iterator[CheckMessage]:
    given = getattr(settings, "OTEL", None)
    if isinstance(given, Mapping):
        # The value by the settings alone.
        wanted = parse(given, {}).flat()
        in_force = config.flat()
        for dotted, source in config.sources.items():
            if source.startswith("environment ") and _is_given(given, dotted) and wanted[dotted] != in_force[dotted]:
                place = "OTEL" + "".join(f'["{part}"]' for part in dotted.split("."))
                yield Warning(
                    gettext("%(place)s is overridden by the environment variable %(name)s.")
                    % {"place": place, "name": source.removeprefix("environment ")},
                    hint=gettext(
                        "`manage.py otel config` shows the effective value. Unset the variable or remove the setting."
                    ),
                    id="django_otel.W007",
                )
    for ignored in config.warnings:
        yield Warning(ignored, id="django_otel.W013")


def _is_given(mapping: Mapping[str, object], dotted: str) -> bool:
    found: object = mapping
    for part in dotted.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return False
        found = found[part]
    return True


def _check_table(config: Config) -> Iterator[CheckMessage]:
    if not config.sampling.live:
        return
    from django_otel.live_sampling import follower, policy_rows

    if follower.table_problem():
        alias = policy_rows.policy_alias()
        yield Warning(
            gettext('The table of the sampling policy is missing in database "%(database)s"; the settings apply.')
            % {"database": alias},
            hint=gettext('Run: %(command)s (or set OTEL["SAMPLING"]["LIVE"] = False).')
            % {"command": policy_rows.migrate_command(alias)},
            id="django_otel.W008",
        )


def _check_driver(config: Config) -> Iterator[CheckMessage]:
    if config.sources.get("INSTRUMENT", "default") == "default":
        # psycopg2 is among the defaults for projects that use it directly; Django's queries are traced with any driver.
        return
    aliases = [alias for alias in connections if connections[alias].vendor == "postgresql"]
    if not aliases:
        return
    from django.db.backends.postgresql.psycopg_any import is_psycopg3

    used, other = ("psycopg", "psycopg2") if is_psycopg3 else ("psycopg2", "psycopg")
    if other not in config.instrument or used in config.instrument or instrumentors.find_obstacle(other):
        return
    driver = "psycopg 3" if is_psycopg3 else "psycopg2"
    databases = ", ".join(map(repr, aliases))
    yield Warning(
        gettext(
            'OTEL["INSTRUMENT"] names "%(other)s", but Django connects to PostgreSQL (database %(databases)s) '
            "with %(driver)s."
        )
        % {"other": other, "databases": databases, "driver": driver},
        hint=gettext(
            "Django's own queries are traced with any driver. For connections that you open with %(driver)s, "
            'name "%(used)s" instead; otherwise remove "%(other)s".'
        )
        % {"other": other, "used": used, "driver": driver},
        id="django_otel.W009",
    )


def _check_headers(config: Config) -> Iterator[CheckMessage]:
    for key, names in (
        ("REQUEST_HEADERS", config.request.request_headers),
        ("RESPONSE_HEADERS", config.request.response_headers),
    ):
        sensitive = [name for name in names if DENIED_HEADER.search(name)]
        if sensitive:
            yield Warning(
                gettext(
                    "%(place)s asks for %(names)s, which may hold secrets; sensitive values are never recorded, "
                    "whatever the settings say."
                )
                % {"place": f'OTEL["REQUEST"]["{key}"]', "names": ", ".join(map(repr, sensitive))},
                hint=gettext("Remove it from the list."),
                id="django_otel.W010",
            )


def _check_provider(config: Config) -> Iterator[CheckMessage]:
    if config.sampling.live and runtime.current().is_foreign:
        yield Warning(
            gettext(
                "Sampling should follow the admin, but another tool's tracer provider is in use and makes the "
                "decisions; the admin's ratio has no effect."
            ),
            hint=gettext('Set OTEL["PROVIDERS"] = "own" to use ours, or OTEL["SAMPLING"]["LIVE"] = False.'),
            id="django_otel.W011",
        )


def _check_instrumentors(config: Config) -> Iterator[CheckMessage]:
    if config.sources.get("INSTRUMENT", "default") == "default":
        return
    known = {state.name: state for state in instrumentors.states()}
    for name in config.instrument:
        state = known.get(name)
        # A command of SKIP_COMMANDS need not have switched anything on.
        reason = state.reason if state is not None and state.is_complaint else instrumentors.find_obstacle(name)
        if reason:
            yield Warning(
                gettext('OTEL["INSTRUMENT"] names "%(name)s", which cannot be enabled: %(reason)s')
                % {"name": name, "reason": translate(reason)},
                hint=gettext("Install the missing package, or remove the name from the list."),
                id="django_otel.W012",
            )
