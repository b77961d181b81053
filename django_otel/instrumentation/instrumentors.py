"""OpenTelemetry instrumentors by entry point: present, compatible, on, off.

`install()` follows the configuration (`OTEL["INSTRUMENT"]`), `uninstall()`
takes back everything this module switched on, and nothing else: a library that
another tool has instrumented is left alone in both directions.

An instrumentor cannot take back what lives already (an open connection, an
engine, an application object). So none of them gets the process's tracer
provider itself, but one that looks it up at each span and goes silent when its
instrumentor is switched off.
"""

from __future__ import annotations

import fnmatch
import os
import re
import sys
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from django.conf import settings
from django.urls import get_script_prefix
from opentelemetry import metrics, trace
from opentelemetry.context import Context

from django_otel import conf, own_paths, runtime
from django_otel.base import guard, import_hooks, sdk_compat, sdk_environment
from django_otel.base.frozen import record
from django_otel.base.sdk_compat import DJANGO_MIDDLEWARE as DJANGO_MIDDLEWARE
from django_otel.base.sentences import Sentence, gettext_noop
from django_otel.config.schema import Config

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


GROUP = "opentelemetry_instrumentor"
#: Our pages where `django_otel.urls` is mounted at the root. The official instrumentor takes its list at start, when
#: the URLconf may not be read.
OWN_PATHS = ("/metrics", "/livez", "/readyz", "/startupz")
OPT_IN = "OTEL_SEMCONV_STABILITY_OPT_IN"
#: Read once per process by the first instrumentor. Without it they use names that are deprecated, and an
#: `http.target` with the query string in a metric label.
STABLE = "http,database"


@record
class State:
    """Outcome of one name in `OTEL["INSTRUMENT"]`.

    `is_complaint` is true when the project listed the name itself and cannot
    have it; a default whose library is absent is not reported.
    """

    name: str
    is_on: bool
    reason: str
    is_complaint: bool = False


@record
class Wish:
    """All that decides how an instrumentor is switched on; when it is unchanged nothing is touched."""

    arguments: Mapping[str, object]
    outbound_hosts: tuple[str, ...] | None
    meter_provider: metrics.MeterProvider | None


@record
class _Installed:
    instrumentor: Any
    wish: Wish


_REFUSED = Sentence(gettext_noop("the instrumentor refused to start; its log record says why"))
#: Instrumentors that wait until their library is imported: nothing can be done with it before, and importing it here
#: would cost every process its time and memory. All others are switched on at once.
_LIBRARIES = {
    "aiohttp-client": "aiohttp",
    "httpx": "httpx",
    "psycopg": "psycopg",
    "psycopg2": "psycopg2",
    "redis": "redis",
    "requests": "requests",
    "urllib3": "urllib3",
}
#: Instrumentors of stores that an idle worker asks all the time (its broker, its cache). The rule of Django's queries
#: holds for them: no span outside a recorded one, unless `DATABASE.ROOT_SPANS` asks for it.
_STORES = frozenset({"pymemcache", "redis"})
#: How long the import of a library waits for a change of the settings that is under way, in seconds.
_LOCK_WAIT_S = 2.0

_lock = threading.RLock()
_waiting: dict[str, tuple[Wish, bool]] = {}
_installed: dict[str, _Installed] = {}
_states: dict[str, State] = {}
_tracer_providers: dict[str, _SwitchedTracerProvider] = {}


class _State:
    """State that changes while the process runs."""

    def __init__(self) -> None:
        #: Whether the official DjangoInstrumentor is on by our doing.
        self.is_django_ours = False


_state = _State()


def install(config: Config) -> None:
    """Make the instrumentors that are on those of `config`. Never raises an `Exception`; may be called at any time."""
    with _lock, guard.contained("instrumentors.install"):
        wanted = dict(config.instrument) if config.enabled else {}
        is_user_list = config.sources.get("INSTRUMENT", "default") != "default"
        wishes = {name: _build_wish(config, arguments) for name, arguments in wanted.items()}
        for name in list(_installed):
            if wishes.get(name) != _installed[name].wish:
                _switch_off(name)
        _stop_waiting()
        _states.clear()
        uses_django_instrumentor = config.enabled and config.request.spans == "instrumentor"
        if wishes or uses_django_instrumentor:
            _opt_in_to_stable_names()
        for name, wish in wishes.items():
            if not _wait(name, wish, is_user_list):
                _set_state(_switch_on(name, wish, is_user_list))
        if uses_django_instrumentor:
            install_django_instrumentor(config)
        else:
            uninstall_django_instrumentor()


def uninstall() -> None:
    """Switch off everything that `install()` has switched on."""
    with _lock:
        for name in list(_installed):
            _switch_off(name)
        _stop_waiting()
        _states.clear()
        uninstall_django_instrumentor()


def states() -> tuple[State, ...]:
    """Return the outcome of each name since the last `install()`, in the order of the setting."""
    with _lock:
        found = {name: _find_waiting_state(name) if name in _waiting else state for name, state in _states.items()}
        return tuple(found.values())


def available() -> tuple[str, ...]:
    """Names that can stand in `OTEL["INSTRUMENT"]` on this machine, whether or not their library is there."""
    from importlib.metadata import entry_points

    return tuple(sorted({entry.name for entry in entry_points(group=GROUP)} - {"django"}))


def find_obstacle(name: str) -> str:
    """Why `name` cannot be switched on here, in a sentence; empty when it can.

    Reads the packages' metadata only; nothing is imported.
    """
    if name == "django":
        return Sentence(
            gettext_noop(
                "Django itself is measured by OTelMiddleware; for the official instrumentor's span set "
                'OTEL["REQUEST"]["SPANS"] = "instrumentor".'
            )
        )
    entry = _find(name)
    if entry is None:
        return Sentence(
            gettext_noop(
                "no installed package provides an instrumentor of this name; you may need to install "
                "%(package)s. Installed: %(names)s."
            ),
            package=f"opentelemetry-instrumentation-{name}",
            names=", ".join(available()) or "-",
        )
    return _find_conflict(entry)


def _build_wish(config: Config, arguments: Mapping[str, object]) -> Wish:
    return Wish(dict(arguments), config.propagation.outbound_hosts, _meter_provider())


def _meter_provider() -> metrics.MeterProvider | None:
    provider = getattr(runtime.current(), "meter_provider", None)
    return provider if isinstance(provider, metrics.MeterProvider) else None


def _opt_in_to_stable_names() -> None:
    # The only variable this package writes: instrumentors have no other option.
    if not os.environ.get(OPT_IN, "").strip():
        os.environ[OPT_IN] = STABLE


def _find(name: str) -> EntryPoint | None:
    # Here: who uses none of the libraries needs no look at the metadata of all packages.
    from importlib.metadata import entry_points

    found = tuple(entry_points(group=GROUP, name=name))
    return found[0] if found else None


def _find_conflict(entry: EntryPoint) -> str:
    """Return why the library that `entry` instruments does not fit; empty if it fits."""
    from opentelemetry.instrumentation.dependencies import get_dist_dependency_conflicts

    # A distribution with several instrumentors (httpx, httpx2) names the libraries of all of them as alternatives;
    # the instrumentor's own check, after it is loaded, is the exact one.
    conflict = get_dist_dependency_conflicts(entry.dist) if entry.dist is not None else None
    return _say(entry.name, conflict) if conflict is not None else ""


def _say(name: str, conflict: Any) -> str:
    wanted = " or ".join(map(str, [conflict.required] if conflict.required else (conflict.required_any or ())))
    found = " and ".join(map(str, [conflict.found] if conflict.found else (conflict.found_any or ())))
    # Packaging's marker says which extra of the instrumentor's package names the library: of no use to a reader.
    wanted = re.sub(r"""\s*;\s*extra == ['"]instruments(-any)?['"]""", "", wanted)
    if found:
        return Sentence(
            gettext_noop("the instrumentor %(name)s is for %(library)s, and %(found)s is installed."),
            name=name, library=wanted or "?", found=found,
        )  # fmt: skip
    return Sentence(
        gettext_noop("the instrumentor %(name)s is for %(library)s, which is not installed."),
        name=name,
        library=wanted or "?",
    )


def _wait(name: str, wish: Wish, is_user_list: bool) -> bool:
    """Return whether `name` is to be switched on as soon as its library is imported."""
    library = _LIBRARIES.get(name)
    if library is None or library in sys.modules or name in _installed or (is_user_list and find_obstacle(name)):
        return False
    _waiting[name] = wish, is_user_list
    # Keeps the place of the name in the order of the setting.
    _states[name] = State(name, False, "")
    if not import_hooks.when_imported(library, lambda: _stop_waiting_for(name)):
        # Imported by another thread in this moment.
        del _waiting[name]
        return False
    import_hooks.when_imported(_module_of(name), lambda: _stop_waiting_for(name, by_instrumentor=True))
    return True


def _module_of(name: str) -> str:
    return f"opentelemetry.instrumentation.{name.replace('-', '_')}"


def _is_being_imported(module_name: str) -> bool:
    return bool(getattr(getattr(sys.modules.get(module_name), "__spec__", None), "_initializing", False))


def _stop_waiting_for(name: str, *, by_instrumentor: bool = False) -> None:
    """The library is there: switch its instrumentor on. `by_instrumentor`: whose own module has just been imported."""
    if by_instrumentor:
        if _LIBRARIES[name] not in sys.modules:
            return
    elif _is_being_imported(_module_of(name)):
        # The project imports the instrumentor itself, which imports the library: we hear of it again when it is done.
        return
    # Ours to import from here on.
    import_hooks.forget(_module_of(name))
    # The importing thread holds the library's import lock. Who holds our lock may be waiting for that one, so we do
    # not wait indefinitely; without the lock the worst is that a change of the settings at this moment is not seen.
    is_locked = _lock.acquire(timeout=_LOCK_WAIT_S)
    try:
        wanted = _waiting.pop(name, None)
        if wanted is not None:
            _set_state(_switch_on(name, *wanted))
    finally:
        if is_locked:
            _lock.release()


def _stop_waiting() -> None:
    for name in list(_waiting):
        del _waiting[name]
        import_hooks.forget(_LIBRARIES[name])
        import_hooks.forget(_module_of(name))


def _find_waiting_state(name: str) -> State:
    obstacle = find_obstacle(name)
    is_complaint = bool(obstacle) and _waiting[name][1]
    waits = Sentence(gettext_noop("on as soon as %(library)s is imported"), library=_LIBRARIES[name])
    return State(name, not obstacle, obstacle or waits, is_complaint)


def _set_state(state: State) -> None:
    _states[state.name] = state
    if state.is_complaint:
        guard.warn_once(f"instrumentors.{state.name}", 'OTEL["INSTRUMENT"] names "%s": %s', state.name, state.reason)


def _switch_on(name: str, wish: Wish, is_user_list: bool) -> State:
    if name in _installed:
        return State(name, True, "on")
    if name == "django":
        return State(name, False, find_obstacle(name), is_complaint=True)
    entry = _find(name)
    if entry is None:
        return State(name, False, find_obstacle(name), is_user_list)
    try:
        obstacle = _find_conflict(entry)
        if obstacle:
            return State(name, False, obstacle, is_user_list)
        return sdk_environment.survive(
            lambda: _load_and_instrument(entry, wish, is_user_list=is_user_list), _excluding_variables(name)
        )
    except Exception as error:
        if not isinstance(error, ImportError) or is_user_list:
            guard.report(f"instrumentors.{name}", error)
        failed = Sentence(gettext_noop("enabling it failed with %(error)s; see the log"), error=type(error).__name__)
        return State(name, False, failed, is_user_list)


def _load_django_instrumentor() -> Any:
    from opentelemetry.instrumentation.django import DjangoInstrumentor

    return DjangoInstrumentor()


def _excluding_variables(name: str) -> tuple[str, str]:
    """Return the variables with regular expressions whose invalid value stops the instrumentor."""
    return "OTEL_PYTHON_EXCLUDED_URLS", f"OTEL_PYTHON_{name.replace('-', '_').upper()}_EXCLUDED_URLS"


def _load_and_instrument(entry: EntryPoint, wish: Wish, *, is_user_list: bool) -> State:
    name = entry.name
    instrumentor: Any = entry.load()()
    if instrumentor.is_instrumented_by_opentelemetry:
        return State(name, False, Sentence(gettext_noop("already instrumented by another tool; left alone")))
    conflict = sdk_compat.find_dependency_conflict(instrumentor)
    if conflict is not None:
        return State(name, False, _say(name, conflict), is_user_list)
    return _instrument(name, instrumentor, wish, is_user_list)


def _instrument(name: str, instrumentor: Any, wish: Wish, is_user_list: bool) -> State:
    provider = _tracer_providers.setdefault(name, _SwitchedTracerProvider(name))
    arguments: dict[str, object] = {"tracer_provider": provider}
    if wish.meter_provider is not None:
        arguments["meter_provider"] = wish.meter_provider
    # Late: the library it is for is imported now.
    from django_otel.instrumentation.client_hooks import build_arguments

    arguments.update(build_arguments(name, wish))
    try:
        instrumentor.instrument(**arguments)
    except Exception:
        # It may have patched half of its library before it failed.
        with guard.contained(f"instrumentors.{name} clean-up"):
            sdk_compat.unpatch(instrumentor)
        raise
    if not instrumentor.is_instrumented_by_opentelemetry:
        return State(name, False, _REFUSED, is_user_list)
    provider.is_on = True
    _installed[name] = _Installed(instrumentor, wish)
    return State(name, True, "on")


def _switch_off(name: str) -> None:
    installed = _installed.pop(name)
    # First, so that what cannot be unpatched (open connections, engines) is silent whatever happens next.
    _tracer_providers[name].is_on = False
    with guard.contained(f"instrumentors.{name} off"):
        if installed.instrumentor.is_instrumented_by_opentelemetry:
            installed.instrumentor.uninstrument()


def install_django_instrumentor(config: Config) -> bool:
    """Let the official DjangoInstrumentor make the server span; whether it is on by our doing.

    Its metrics go nowhere: ours measure the same requests. It edits
    `settings.MIDDLEWARE`, so it must run before the handler loads the
    middleware: from `AppConfig.ready()`.
    """
    with _lock:
        if _state.is_django_ours:
            # Its arguments are class attributes of its middleware: to take over new ones it goes off first.
            uninstall_django_instrumentor()
        _opt_in_to_stable_names()
        try:
            instrumentor = sdk_environment.survive(_load_django_instrumentor, _excluding_variables("django"))
            if instrumentor.is_instrumented_by_opentelemetry:
                return False
            provider = _tracer_providers.setdefault("django", _SwitchedTracerProvider("django"))
            # It inserts into the very list; a copy leaves the project's own list as it was written.
            settings.MIDDLEWARE = list(settings.MIDDLEWARE)
            instrumentor.instrument(
                tracer_provider=provider,
                meter_provider=metrics.NoOpMeterProvider(),
                excluded_urls=build_excluded_urls(conf.excluded_paths(config), ()),
            )
            if not sdk_compat.exclude_urls(_is_own_url):
                guard.warn_once("instrumentors.django own", "The official DjangoInstrumentor traces our own pages.")
            provider.is_on = True
            _state.is_django_ours = True
        except Exception as error:
            guard.report("instrumentors.django", error)
            return False
        return True


def uninstall_django_instrumentor() -> None:
    """Take the official instrumentor's middleware out again, if we put it there."""
    with _lock:
        if not _state.is_django_ours:
            return
        _state.is_django_ours = False
        _tracer_providers["django"].is_on = False
        with guard.contained("instrumentors.django off"):
            from opentelemetry.instrumentation.django import DjangoInstrumentor

            if DjangoInstrumentor().is_instrumented_by_opentelemetry:
                DjangoInstrumentor().uninstrument()


def is_django_instrumented_elsewhere() -> bool:
    """Return whether another tool has switched on the official DjangoInstrumentor, whose metrics then double ours."""
    return not _state.is_django_ours and DJANGO_MIDDLEWARE in getattr(settings, "MIDDLEWARE", ())


@guard.guarded("finding our pages for the instrumentor", False)
def _is_own_url(url: str) -> bool:
    """Return whether the whole URL of a request is that of a page of ours, where the URLconf mounts it."""
    prefix = get_script_prefix().rstrip("/")
    path = unquote(urlsplit(url).path)
    return path.startswith(prefix) and path[len(prefix) :] in own_paths.find_own_paths()


def build_excluded_urls(patterns: Iterable[str], own: Iterable[str] = OWN_PATHS) -> str:
    """Path globs as the comma-separated regular expressions that official instrumentors search for in whole URLs."""
    return ",".join(_build_url_regex(pattern) for pattern in (*own, *patterns))


def _build_url_regex(pattern: str) -> str:
    path = fnmatch.translate(pattern)
    # translate() anchors with (?s:...)\Z; a URL goes on with its query string. A comma would split the expression.
    body = path.removeprefix("(?s:").removesuffix(r")\Z").removesuffix(r")\z").replace(".*", "[^?]*")
    return rf"^[a-z]+://[^/?]*{body}(\?|$)".replace(",", r"\x2c")


class _SwitchedTracerProvider(trace.TracerProvider):
    def __init__(self, name: str) -> None:
        self.name = name
        self.is_on = False

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: object = None,
    ) -> trace.Tracer:
        return _SwitchedTracer(self, (instrumenting_module_name, instrumenting_library_version, schema_url, attributes))


class _SwitchedTracer(trace.Tracer):
    _silent = trace.NoOpTracer()

    def __init__(self, switch: _SwitchedTracerProvider, arguments: tuple[Any, ...]) -> None:
        self._switch = switch
        self._is_store = switch.name in _STORES
        self._arguments = arguments
        self._known: tuple[trace.TracerProvider | None, trace.Tracer] = (None, self._silent)

    def _tracer(self) -> trace.Tracer:
        if not self._switch.is_on:
            return self._silent
        provider = runtime.current().tracer_provider
        known, tracer = self._known
        if known is not provider:
            if provider is None:
                return self._silent
            tracer = provider.get_tracer(*self._arguments)
            # One assignment, so that another thread never sees one provider's tracer with another provider.
            self._known = (provider, tracer)
        return tracer

    def start_span(self, name: str, context: Context | None = None, *args: Any, **kwargs: Any) -> trace.Span:
        tracer = self._silent if self._is_left_out(context) else self._tracer()
        return tracer.start_span(name, context, *args, **kwargs)

    def start_as_current_span(self, name: str, context: Context | None = None, *args: Any, **kwargs: Any) -> Any:
        tracer = self._silent if self._is_left_out(context) else self._tracer()
        return tracer.start_as_current_span(name, context, *args, **kwargs)

    def _is_left_out(self, context: Context | None) -> bool:
        """Return whether a command stands outside any recorded span, and is not to be a trace of its own."""
        return (
            self._is_store
            and not trace.get_current_span(context).is_recording()
            and not runtime.current().config.database.root_spans
        )
