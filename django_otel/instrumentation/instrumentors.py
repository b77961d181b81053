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
import functools
import inspect
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit

from django.conf import settings
from django.urls import get_script_prefix
from django.utils.module_loading import import_string
from opentelemetry import metrics, propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Setter

from django_otel import conf, own_paths, runtime
from django_otel.base import guard, import_hooks, sdk_compat
from django_otel.base.frozen import record
from django_otel.base.sdk_compat import DJANGO_MIDDLEWARE as DJANGO_MIDDLEWARE
from django_otel.config.schema import Config
from django_otel.tracing import outbound

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
#: Of our pages, for the official DjangoInstrumentor: it is set up before there is a URLconf to ask.
_OWN_PATHS = ("/metrics", "/livez", "/readyz", "/startupz")


@record
class State:
    """What became of one name of `OTEL["INSTRUMENT"]`.

    `is_complaint` is true when the project listed the name itself and cannot
    have it; a default whose library is absent is no complaint.
    """

    name: str
    is_on: bool
    reason: str
    is_complaint: bool = False


@record
class _Wish:
    """All that decides how an instrumentor is switched on; when it is unchanged nothing is touched."""

    arguments: Mapping[str, object]
    outbound_hosts: tuple[str, ...] | None
    meter_provider: metrics.MeterProvider | None


@record
class _Installed:
    instrumentor: Any
    wish: _Wish


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
_waiting: dict[str, tuple[_Wish, bool]] = {}
_installed: dict[str, _Installed] = {}
_states: dict[str, State] = {}
_tracer_providers: dict[str, _SwitchedTracerProvider] = {}


class _State:
    """What changes while the process runs."""

    def __init__(self) -> None:
        #: Whether the official DjangoInstrumentor is on by our doing.
        self.is_django_ours = False


_state = _State()


# --- On and off. ---


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
    """What became of each wanted name since the last `install()`, in the order of the setting."""
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
        return (
            "Django itself is measured by OTelMiddleware; for the official instrumentor's span set "
            'OTEL["REQUEST"]["SPANS"] = "instrumentor".'
        )
    entry = _find(name)
    if entry is None:
        return (
            f"no installed package offers an instrumentor of this name; opentelemetry-instrumentation-{name} may be "
            f"the one to install. Installed: {', '.join(available()) or 'none'}."
        )
    return _find_conflict(entry)


def _build_wish(config: Config, arguments: Mapping[str, object]) -> _Wish:
    return _Wish(dict(arguments), config.propagation.outbound_hosts, _meter_provider())


def _meter_provider() -> metrics.MeterProvider | None:
    provider = getattr(runtime.current(), "meter_provider", None)
    return provider if isinstance(provider, metrics.MeterProvider) else None


def _opt_in_to_stable_names() -> None:
    # The only variable this package writes (design.md): instrumentors have no other way to be told.
    if not os.environ.get(OPT_IN, "").strip():
        os.environ[OPT_IN] = STABLE


def _find(name: str) -> EntryPoint | None:
    # Here: who uses none of the libraries needs no look at the metadata of all packages.
    from importlib.metadata import entry_points

    found = tuple(entry_points(group=GROUP, name=name))
    return found[0] if found else None


def _find_conflict(entry: EntryPoint) -> str:
    """What is wrong with the library that `entry` instruments, in words; empty when nothing is."""
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
    state = f"{found} is installed" if found else "it is not installed"
    return f"the instrumentor {name} is for {wanted or 'another library'}, and {state}."


# --- Waiting for the library. ---


def _wait(name: str, wish: _Wish, is_user_list: bool) -> bool:
    """Whether `name` is to be switched on as soon as its library is imported."""
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
    # not wait for ever; without the lock the worst is that a change of the settings at this moment is not seen.
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
    return State(name, not obstacle, obstacle or f"on as soon as {_LIBRARIES[name]} is imported", is_complaint)


def _set_state(state: State) -> None:
    _states[state.name] = state
    if state.is_complaint:
        guard.warn_once(f"instrumentors.{state.name}", 'OTEL["INSTRUMENT"] names "%s": %s', state.name, state.reason)


# --- Switching. ---


def _switch_on(name: str, wish: _Wish, is_user_list: bool) -> State:
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
        instrumentor: Any = entry.load()()
        if instrumentor.is_instrumented_by_opentelemetry:
            return State(name, False, "already instrumented by another tool; left alone")
        conflict = sdk_compat.find_dependency_conflict(instrumentor)
        if conflict is not None:
            return State(name, False, _say(name, conflict), is_user_list)
        return _instrument(name, instrumentor, wish, is_user_list)
    except Exception as error:
        if not isinstance(error, ImportError) or is_user_list:
            guard.report(f"instrumentors.{name}", error)
        return State(name, False, f"switching it on failed with {type(error).__name__}; see the log", is_user_list)


def _instrument(name: str, instrumentor: Any, wish: _Wish, is_user_list: bool) -> State:
    provider = _tracer_providers.setdefault(name, _SwitchedTracerProvider(name))
    arguments: dict[str, object] = {"tracer_provider": provider}
    if wish.meter_provider is not None:
        arguments["meter_provider"] = wish.meter_provider
    arguments.update(_build_arguments(name, wish))
    try:
        instrumentor.instrument(**arguments)
    except Exception:
        # It may have patched half of its library before it failed.
        with guard.contained(f"instrumentors.{name} clean-up"):
            sdk_compat.unpatch(instrumentor)
        raise
    if not instrumentor.is_instrumented_by_opentelemetry:
        return State(name, False, "the instrumentor refused; its own log line says why", is_user_list)
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


# --- The official instrumentor of Django itself (REQUEST.SPANS = "instrumentor"). ---


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
            from opentelemetry.instrumentation.django import DjangoInstrumentor

            instrumentor = DjangoInstrumentor()
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
    """Whether another tool has switched on the official DjangoInstrumentor, whose metrics then double ours."""
    return not _state.is_django_ours and DJANGO_MIDDLEWARE in getattr(settings, "MIDDLEWARE", ())


@guard.guarded("finding our pages for the instrumentor", False)
def _is_own_url(url: str) -> bool:
    """Whether the whole URL of a request is that of a page of ours, where the URLconf mounts it."""
    prefix = get_script_prefix().rstrip("/")
    path = unquote(urlsplit(url).path)
    return path.startswith(prefix) and path[len(prefix) :] in own_paths.find_own_paths()


def build_excluded_urls(patterns: Iterable[str], own: Iterable[str] = _OWN_PATHS) -> str:
    """Path globs as the comma-separated regular expressions that official instrumentors search for in whole URLs."""
    return ",".join(_build_url_regex(pattern) for pattern in (*own, *patterns))


def _build_url_regex(pattern: str) -> str:
    path = fnmatch.translate(pattern)
    # translate() anchors with (?s:...)\Z; a URL goes on with its query string. A comma would split the expression.
    body = path.removeprefix("(?s:").removesuffix(r")\Z").removesuffix(r")\z").replace(".*", "[^?]*")
    return rf"^[a-z]+://[^/?]*{body}(\?|$)".replace(",", r"\x2c")


# --- A tracer provider that is always the right one, and silent when switched off. ---


class _SwitchedTracerProvider(trace.TracerProvider):
    def __init__(self, name: str) -> None:
        self.name = name
        self.is_on = False

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Any = None,
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
        """Whether a command stands outside any recorded span, and is not to be a trace of its own."""
        return (
            self._is_store
            and not trace.get_current_span(context).is_recording()
            and not runtime.current().config.database.root_spans
        )


# --- Arguments: the project's hooks contained, ours for OUTBOUND_HOSTS added. ---


def _build_arguments(name: str, wish: _Wish) -> dict[str, object]:
    arguments: dict[str, object] = {}
    for keyword, value in wish.arguments.items():
        if keyword.endswith("_hook") and isinstance(value, str):
            value = import_string(value)
        if callable(value) and keyword.endswith("_hook"):
            value = _contain_hook(name, keyword, value)
        elif callable(value) and keyword == "url_filter":
            value = _contain_url_filter(name, value)
        arguments[keyword] = value
    patterns = wish.outbound_hosts
    if patterns is not None:
        for keyword, adapter in _CLIENTS.get(name, {}).items():
            arguments[keyword] = _add_verdict(name, adapter, patterns, arguments.get(keyword), "async" in keyword)
        if name == "aiohttp-client":
            given: Any = arguments.get("trace_configs") or ()
            arguments["trace_configs"] = [*given, _build_aiohttp_redirect_guard(patterns)]
    return arguments


def _contain_hook(name: str, keyword: str, hook: Callable[..., Any]) -> Callable[..., Any]:
    """A raising hook would break the application's own call (the instrumentors call hooks unprotected)."""
    place = f"instrumentors.{name} {keyword}"
    if inspect.iscoroutinefunction(hook):

        @functools.wraps(hook)
        async def contained_async(*args: Any, **kwargs: Any) -> Any:
            with guard.contained(place):
                return await hook(*args, **kwargs)

        return contained_async

    @functools.wraps(hook)
    def contained(*args: Any, **kwargs: Any) -> Any:
        with guard.contained(place):
            return hook(*args, **kwargs)

    return contained


def _contain_url_filter(name: str, url_filter: Callable[[Any], str]) -> Callable[[Any], str]:
    @functools.wraps(url_filter)
    def contained(url: Any) -> str:
        with guard.contained(f"instrumentors.{name} url_filter"):
            return url_filter(url)
        # The filter exists because URLs hold something to hide.
        return str(url).partition("?")[0]

    return contained


#: What a client's request hook says about the request: its URL and the headers that will be sent.
Adapter = Callable[..., tuple[str, Any]]


def _requests_request(span: trace.Span, request: Any) -> tuple[str, Any]:
    return str(request.url), request.headers


def _httpx_request(span: trace.Span, request: Any) -> tuple[str, Any]:
    return str(request.url), request.headers


def _urllib3_request(span: trace.Span, pool: Any, request: Any) -> tuple[str, Any]:
    # Not `request.url`: a url_filter has been over it.
    host = f"[{pool.host}]" if ":" in pool.host and not pool.host.startswith("[") else pool.host
    port = f":{pool.port}" if pool.port else ""
    return f"{pool.scheme}://{host}{port}/", request.headers


def _urllib_request(span: trace.Span, request: Any) -> tuple[str, Any]:
    return request.full_url, request.headers


def _aiohttp_request(span: trace.Span, params: Any) -> tuple[str, Any]:
    return str(params.url), params.headers


_CLIENTS: dict[str, dict[str, Adapter]] = {
    "requests": {"request_hook": _requests_request},
    "httpx": {"request_hook": _httpx_request, "async_request_hook": _httpx_request},
    "httpx2": {"request_hook": _httpx_request, "async_request_hook": _httpx_request},
    "urllib3": {"request_hook": _urllib3_request},
    "urllib": {"request_hook": _urllib_request},
    "aiohttp-client": {"request_hook": _aiohttp_request},
}
#: Instrumentors for which `PROPAGATION.OUTBOUND_HOSTS` is kept; others inject as they like.
OUTBOUND_NAMES = tuple(_CLIENTS)


def _add_verdict(
    name: str, adapter: Adapter, patterns: tuple[str, ...], hook: Any, is_async: bool
) -> Callable[..., Any]:
    """The project's hook, then our verdict, as the last thing before the instrumentor injects."""

    def judge(span: trace.Span, *args: Any) -> None:
        try:
            url, headers = adapter(span, *args)
            if outbound.is_host_allowed(url, patterns):
                outbound.decide(span, True)
                if name == "requests":
                    _guard_requests_redirects(args[0], patterns)
                elif name == "urllib":
                    _inject_unredirected(span, args[0])
            else:
                outbound.decide(span, False)
                if headers is not None:
                    outbound.strip(headers, tuple(propagate.get_global_textmap().fields))
        except Exception as error:
            guard.report(f"instrumentors.{name} outbound", error)
            # Unknown where it goes: then without headers.
            outbound.decide(span, False)

    if is_async:

        async def judge_async(span: trace.Span, *args: Any) -> None:
            if hook is not None:
                await hook(span, *args)
            judge(span, *args)

        return judge_async

    def judge_after_hook(span: trace.Span, *args: Any) -> None:
        if hook is not None:
            hook(span, *args)
        judge(span, *args)

    return judge_after_hook


class _RequestsRedirectGuard:
    """A response hook of requests: a redirect is a copy of the request, trace headers and all."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self.patterns = patterns

    def __call__(self, response: Any, *args: Any, **kwargs: Any) -> None:
        with guard.contained("instrumentors.requests redirect"):
            if not response.is_redirect:
                return
            target = urljoin(response.url, response.headers["location"])
            if not outbound.is_host_allowed(target, self.patterns):
                outbound.strip(response.request.headers, tuple(propagate.get_global_textmap().fields))


def _guard_requests_redirects(request: Any, patterns: tuple[str, ...]) -> None:
    hooks = request.hooks.setdefault("response", [])
    if not any(isinstance(hook, _RequestsRedirectGuard) for hook in hooks):
        hooks.append(_RequestsRedirectGuard(patterns))


class _UnredirectedSetter(Setter[Any]):
    def set(self, carrier: Any, key: str, value: str) -> None:
        carrier.add_unredirected_header(key, value)


def _inject_unredirected(span: trace.Span, request: Any) -> None:
    """urllib copies a request's headers to wherever it is redirected, except those added as unredirected."""
    propagate.inject(request, setter=_UnredirectedSetter())
    outbound.decide(span, False)


def _build_aiohttp_redirect_guard(patterns: tuple[str, ...]) -> Any:
    import aiohttp

    async def on_request_redirect(session: Any, context: Any, params: Any) -> None:
        with guard.contained("instrumentors.aiohttp-client redirect"):
            location = params.response.headers.get("Location") or params.response.headers.get("URI") or ""
            if not outbound.is_host_allowed(urljoin(str(params.url), location), patterns):
                outbound.strip(params.headers, tuple(propagate.get_global_textmap().fields))

    config = aiohttp.TraceConfig()
    config.on_request_redirect.append(on_request_redirect)
    return config
