"""The process's one piece of global state: what is running, and with which settings.

`start()` builds; it opens no socket, touches no database and starts no thread.
`join()` is the moment this process has something to say (its first request or
measurement): from then on background threads may run. After a fork the child
starts at zero and joins for itself.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry import propagate, trace
from opentelemetry.sdk.resources import Resource

from django_otel._version import __version__
from django_otel.base import guard, sdk_compat, sdk_environment
from django_otel.config.schema import Config, ConfigError, Problem
from django_otel.export import pipelines, process_end
from django_otel.metrics.instruments import Counter
from django_otel.metrics.lazy_metrics import LazyMeterProvider
from django_otel.metrics.model import Family
from django_otel.metrics.series import Series
from django_otel.metrics.store import CellStore
from django_otel.redaction.scrub import Scrubber
from django_otel.requests.observation import SpanBudget
from django_otel.sampling.sampler import InForce, LiveSampler, Policy
from django_otel.tracing import exceptions
from django_otel.tracing.ids import OwnRandomIdGenerator
from django_otel.tracing.propagation import SwitchPropagator
from django_otel.tracing.provider import OwnTracerProvider
from django_otel.tracing.tail import TailBuffer

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider

    from django_otel.export.log_pipeline import SwitchLogProcessor
    from django_otel.metrics.sdk_metrics import SdkMetrics
    from django_otel.multiprocess.sharing import Sharing
    from django_otel.tracestore.processor import StoreProcessor

logger = logging.getLogger("django_otel")

SCOPE_NAME = "django_otel"
#: Time for everything that is left to export at the end of the process, in seconds.
SHUTDOWN_BUDGET_S = 5.0

#: The numbers of this process. It exists before the settings do and outlives a change of them.
store = CellStore()

ConfigCallback = Callable[[Config], None]


class Runtime:
    """What is in force in this process. Read its attributes; only this module changes them."""

    def __init__(self) -> None:
        self.enabled = False
        self.started = False
        self.config = Config()
        self.problems: list[Problem] = []
        self.resource = Resource({})
        self.sampler = LiveSampler(Policy(1.0, "default"))
        self.tracer_provider: trace.TracerProvider | None = None
        self.meter_provider: MeterProvider | None = None
        self.scrubber = Scrubber()
        #: Whether the spans go through a provider that another tool has installed.
        self.is_foreign = False
        #: Whether this is a management command in which nothing is exported.
        self.is_skipped = False
        #: Grows with every (re)start; whoever keeps something derived from the settings compares it.
        self.generation = 0
        self.started_at_s = 0.0

    @property
    def logger_provider(self) -> Any:
        """The logger provider in use, built when it is first asked for; None when no logs are exported."""
        return _logger_provider()


_current = Runtime()
_noop_tracer: trace.Tracer = trace.NoOpTracer()
_tracer: trace.Tracer = _noop_tracer
_callbacks: list[ConfigCallback] = []
_join_callbacks: list[Callable[[], None]] = []
_prepare_callbacks: list[Callable[[], None]] = []
_is_preparing = False
_fork_callbacks: list[Callable[[], None]] = []
_refusal_callbacks: list[Callable[[], None]] = []
_lock = threading.RLock()
_is_testing = False
#: Kept over restarts: a test sees what was recorded inside its `override_settings` also after it.
_testing_spans: list[Any] = []
_testing_logs: list[Any] = []
_hooks_registered = False
_pid = os.getpid()
#: The process for which `_notice_fork` has looked.
_noticed_pid = 0
_notice_lock = threading.Lock()
#: Held by the thread that joins until it is known whether numbers are shared.
_sharing_lock = threading.RLock()
#: What `threading.Lock` was when the locks were made; gevent puts another in its place.
_lock_type = threading.Lock

# Ours, made once and kept: whoever asked for a tracer, meter or logger goes on using it.
_own_tracer_provider: Any = None
_own_meter_provider: LazyMeterProvider | None = None
_own_logger_provider: Any = None
_chosen_logger_provider: Any = None
_logs_generation = -1
_limits: Any = None
_log_limits: Any = None
_ids = OwnRandomIdGenerator()
_switch = pipelines.SwitchProcessor()
_tail: TailBuffer | None = None
_log_switch: SwitchLogProcessor | None = None
_propagator = SwitchPropagator()
_sdk_metrics: SdkMetrics | None = None
_pump: pipelines.MetricsPump | None = None
_sharing: Sharing | None = None
#: The process in which the settings were put in force; another one was forked from it.
_configured_pid = os.getpid()
_console: StoreProcessor | None = None


def current() -> Runtime:
    """The runtime of this process; before `start()` one that is not enabled."""
    return _current


def tracer() -> trace.Tracer:
    """The tracer for our own spans, as the settings have it now. Ask each time."""
    return _tracer


def on_config_change(callback: ConfigCallback) -> None:
    """Call `callback(config)` after every (re)start; faults in it are contained."""
    if callback not in _callbacks:
        _callbacks.append(callback)


def on_refusal(callback: Callable[[], None]) -> None:
    """Call `callback()` when telemetry goes off because the settings are faulty."""
    if callback not in _refusal_callbacks:
        _refusal_callbacks.append(callback)


def on_join(callback: Callable[[], None]) -> None:
    """Call `callback()` when this process (or a forked child, once more) takes its first measurement."""
    _join_callbacks.append(callback)


def on_prepare(callback: Callable[[], None]) -> None:
    """Call `callback()` before the first decision or measurement of this process (or of a forked child, once more)."""
    _prepare_callbacks.append(callback)


def on_fork(callback: Callable[[], None]) -> None:
    """Call `callback()` in a forked child, before anything else runs there."""
    _fork_callbacks.append(callback)


def command_name() -> str | None:
    """The management command this process runs, or None."""
    arguments = sys.argv
    program = Path(arguments[0]).name if arguments and arguments[0] else ""
    is_manage = program in ("manage.py", "django-admin", "django-admin.py", "django-admin.exe")
    is_module = program == "__main__.py" and Path(arguments[0]).parent.name == "django"
    return arguments[1] if (is_manage or is_module) and len(arguments) > 1 else None


# --- Start and stop. ---


def start(config: Config) -> None:
    """Put `config` in force, for the first time or again.

    Errors: `ConfigError` when something it names cannot be imported or is not
    installed; telemetry is off then.
    """
    with _lock:
        _stop_parts()
        try:
            _start(config)
        except ConfigError as error:
            refuse(error.problems)
            raise
        callbacks = list(_callbacks)
    for callback in callbacks:
        with guard.contained(f"switching on {getattr(callback, '__module__', 'a part')}"):
            callback(config)


def refuse(problems: list[Problem]) -> None:
    """Run without telemetry because of `problems`."""
    global _console, _tracer
    with _lock:
        _current.problems = list(problems)
        _current.enabled = False
        _current.started = False
        _current.generation += 1
        _tracer = _noop_tracer
        _switch.parts = ()
        _console = None
        if _log_switch is not None:
            _log_switch.parts = ()
    for callback in _refusal_callbacks:
        with guard.contained(f"switching off {getattr(callback, '__module__', 'a part')}"):
            callback()


def _start(config: Config) -> None:
    global _configured_pid, _console, _tracer
    runtime = _current
    _console = None
    runtime.config = config
    runtime.problems = []
    runtime.generation += 1
    runtime.enabled = config.enabled
    runtime.is_skipped = command_name() in config.skip_commands
    runtime.started_at_s = time.time()
    if not _hooks_registered:
        _configured_pid = os.getpid()
    runtime.scrubber = _build_scrubber(config)
    runtime.resource = pipelines.build_resource(config, runtime.scrubber.attributes)
    runtime.sampler.open_series = _open_decisions
    runtime.sampler.on_compose = _switch_tail
    runtime.sampler.rebase(_build_base_policy(config))
    budget = SpanBudget(config.traces.limits.spans_per_trace, lambda: _count_drop(1, "trace_limit", "traces"))
    runtime.sampler.budget = budget.take
    runtime.sampler.end_over_budget = budget.end
    store.configure(
        cardinality_limit=config.metrics.cardinality_limit,
        attribute_length=config.metrics.attribute_length,
        buckets=config.metrics.buckets,
        scrub=runtime.scrubber.labels,
    )
    exceptions.recording.choose(config.traces.exception_signal, _emit_exception)
    if not config.enabled:
        _tracer = _noop_tracer
        sdk_environment.restore_providers()
        runtime.started = True
        return
    for warning in config.warnings:
        guard.warn_once(f"environment {warning}", "%s", warning)
    # Everything that may be refused comes before anything global is set.
    span_processors = _build_span_processors(config, runtime)
    metric_exporters = [] if _is_quiet() else pipelines.build_metric_exporters(config, _count_drop)
    propagators = pipelines.build_propagators(config)
    _console = _build_console(config)
    if _console is not None:
        span_processors = (*span_processors, _console)
    _start_traces(config, span_processors)
    _start_metrics(config, metric_exporters)
    _start_logs(config)
    _propagator.parts = propagators
    propagate.set_global_textmap(_propagator)
    ratio = store.observable_gauge(
        "django_otel.sampling.ratio", runtime.sampler.ratio_now, "1", "Share of new traces that is recorded."
    )
    ratio.cache_s = 0.0
    logging.getLogger("opentelemetry.attributes").addFilter(_no_truncation_notes)
    # After the providers were made: their own fork hooks, which touch the resource, must run before ours.
    _register_hooks()
    store.on_measurement = join
    store.joined = False
    runtime.sampler.on_first = join
    # Once more: what another thread has built meanwhile may hold parts of what was.
    runtime.generation += 1
    runtime.started = True


def _build_base_policy(config: Config) -> Policy:
    """The sampling policy of settings and environment, below the admin's."""
    wanted = config.sampling
    return Policy(
        wanted.ratio,
        config.sources.get("SAMPLING.RATIO", "default").split(" ")[0],
        rules=wanted.rules,
        max_per_second=wanted.max_per_second,
        keep_errors=wanted.keep_errors,
        keep_slow_s=wanted.keep_slow_s,
        follows_parent=wanted.parent,
    )


def _switch_tail(policy: InForce) -> None:
    """Hold back the spans of dropped traces while a policy asks for it, and do nothing about it otherwise."""
    tail = _tail if policy.keeps else None
    if _switch.tail is not tail:
        before, _switch.tail = _switch.tail, tail
        if before is not None:
            before.clear()


def _build_tail(config: Config) -> TailBuffer:
    """What holds back the spans of dropped traces, empty as long as no policy asks for it."""
    return TailBuffer(
        config.sampling.tail_buffer_spans,
        policy=lambda: _current.sampler.policy,
        emit=_switch.emit,
        discard=_switch.discard,
        on_keep=lambda reason: _open_decisions("", "kept", reason).add(1.0),
        on_drop=lambda count: _count_drop(count, "tail_buffer", "traces"),
    )


def _open_decisions(rule: str, decision: str, reason: str) -> Series:
    """The series that counts traces decided like this."""
    attributes = {"sampling.rule": rule} if rule else {}
    decisions = store.catalogued("django_otel.sampling.decisions")
    assert isinstance(decisions, Counter)
    return decisions.series({**attributes, "sampling.decision": decision, "sampling.reason": reason})


class _NoTruncationNotes(logging.Filter):
    """To cut and to drop attributes is what LIMITS ask for; a line each time would fill the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = str(record.msg)
        return "truncating" not in message and "dict is full" not in message


_no_truncation_notes = _NoTruncationNotes()


def _is_quiet() -> bool:
    """Whether nothing may leave this process."""
    return _is_testing or _current.is_skipped


def _build_scrubber(config: Config) -> Scrubber:
    callback = config.scrub.callback
    if isinstance(callback, str):
        callback = pipelines.import_path(callback)
    return Scrubber(config.scrub.extra, callback, personal=config.scrub.personal)


def clean_span(span: Any) -> Any:
    """A finished span as it may leave: library spans set right, secrets redacted."""
    from django_otel.redaction import library_spans

    config = _current.config
    return _current.scrubber.span(library_spans.clean_span(span, config.database.statement, config.request.query))


def _build_span_processors(config: Config, runtime: Runtime) -> tuple[Any, ...]:
    if _is_testing:
        memory = pipelines.MemorySpanProcessor(clean_span)
        memory.spans = _testing_spans
        return (memory,)
    if runtime.is_skipped:
        return ()
    clean = pipelines.SpanCleaner(runtime.scrubber, config.database.statement, config.request.query)
    return pipelines.build_span_processors(config, clean, _count_drop, _count_failure)


def _build_console(config: Config) -> StoreProcessor | None:
    """What fills the trace store, when the settings ask for it; its file is not touched yet."""
    from django_otel import conf

    if _is_quiet() or not conf.is_console_on(config):
        return None
    # Late, because it imports SQLite.
    from django_otel.tracestore.processor import StoreProcessor

    return StoreProcessor(
        config,
        conf.deployment_identity(config),
        clean=pipelines.SpanCleaner(_current.scrubber, config.database.statement, config.request.query),
        scrubber=_current.scrubber,
        resource=lambda: _current.resource,
        collect=collect,
        group=group_name,
        facts=_console_facts,
        on_drop=_count_console_drop,
    )


def _console_facts() -> dict[str, Any]:
    """What the dashboard tells of this process."""
    program = Path(sys.argv[0] if sys.argv else "")
    return {
        # "python -m gunicorn" is called gunicorn/__main__.py.
        "program": command_name() or (program.parent.name if program.name == "__main__.py" else program.name),
        "ratio": _current.sampler.ratio_now(),
        "exporters": list(_current.config.traces.exporters),
    }


def console() -> StoreProcessor | None:
    """What fills the trace store of this process; None when `CONSOLE` is off."""
    return _console


def _start_traces(config: Config, processors: tuple[Any, ...]) -> None:
    global _own_tracer_provider, _limits, _tail, _tracer
    runtime = _current
    installed = sdk_compat.global_tracer_provider()
    foreign = installed if installed is not None and installed is not _own_tracer_provider else None
    runtime.is_foreign = False
    if config.providers == "none":
        runtime.tracer_provider = None
        _tracer = _noop_tracer
        _switch.parts = ()
        return
    if config.providers == "auto" and foreign is not None:
        runtime.is_foreign = True
        runtime.tracer_provider = foreign
        _switch.parts = ()
        guard.warn_once(
            "foreign provider",
            "django_otel: another tool has installed a tracer provider (%s); its exporters and its sampler are used. "
            "TRACES.EXPORTERS and the admin's sampling have no effect. For our own set OTEL['PROVIDERS'] = 'own'.",
            type(foreign).__module__,
        )
    else:
        if _own_tracer_provider is None:
            _limits = pipelines.build_span_limits()
            # Shut down by us: ours is one budget for all signals, see _at_exit.
            _own_tracer_provider = OwnTracerProvider(
                runtime.sampler, runtime.resource, _ids, _limits, lambda text: _current.scrubber.text(text)
            )
            _own_tracer_provider.add_span_processor(_switch)
        if foreign is None and installed is None:
            trace.set_tracer_provider(_own_tracer_provider)
        pipelines.apply_limits(_limits, config)
        sdk_compat.set_resource(_own_tracer_provider, runtime.resource)
        runtime.tracer_provider = _own_tracer_provider
        # Has the provider look at its resource, too.
        _switch.parts = processors
        _tail = _build_tail(config)
        _switch_tail(runtime.sampler.policy)
    _tracer = runtime.tracer_provider.get_tracer(SCOPE_NAME, __version__)


def _start_metrics(config: Config, exporters: list[Any]) -> None:
    global _own_meter_provider, _pump
    from opentelemetry import metrics

    runtime = _current
    installed = sdk_compat.global_meter_provider()
    foreign = installed if installed is not None and installed is not _own_meter_provider else None
    if config.providers == "auto" and foreign is not None:
        runtime.meter_provider = foreign
    else:
        if _own_meter_provider is None:
            _own_meter_provider = LazyMeterProvider(_build_meter_provider)
        if installed is None:
            metrics.set_meter_provider(_own_meter_provider)
        _set_meter_resource()
        runtime.meter_provider = _own_meter_provider
    if _sdk_metrics is not None:
        _sdk_metrics.scrub, _sdk_metrics.scrub_scope = store.clean, runtime.scrubber.metric_scope
    _pump = pipelines.MetricsPump(exporters, collect_process, lambda: _current.resource, config, _count_failure)
    _switch_registry(config)


def _build_meter_provider() -> Any:
    """The SDK's meter provider, for the first who asks ours for a meter."""
    global _sdk_metrics
    from opentelemetry.sdk.metrics import MeterProvider, TraceBasedExemplarFilter

    from django_otel.metrics.sdk_metrics import SdkMetrics, build_reader

    reader = build_reader()
    provider = MeterProvider(
        metric_readers=[reader],
        resource=_current.resource,
        exemplar_filter=TraceBasedExemplarFilter(),
        shutdown_on_exit=False,
        views=(),
    )
    # Its own fork hook, which touches the resource, runs after ours, being younger; this one is younger still.
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_set_meter_resource)
    found = SdkMetrics(reader, provider)
    found.scrub, found.scrub_scope = store.clean, _current.scrubber.metric_scope
    _sdk_metrics = found
    return provider


def _set_meter_resource() -> None:
    provider = None if _own_meter_provider is None else _own_meter_provider.built
    if provider is not None:
        sdk_compat.set_resource(provider, _current.resource)


def _switch_registry(config: Config) -> None:
    if "prometheus-registry" in config.metrics.exporters and not _current.is_skipped:
        from django_otel.metrics.registry import start_registry

        start_registry(collect, lambda: _current.resource.attributes)
    elif "django_otel.metrics.registry" in sys.modules:
        from django_otel.metrics.registry import stop_registry

        stop_registry()


def _start_logs(config: Config) -> None:
    """Look whether logs can be exported; the provider is built by the first record, see `_logger_provider`."""
    global _logs_generation
    if not _is_quiet():
        for name in config.logs.exporters:
            pipelines.check_installed(name, "logs")
    _logs_generation = -1
    if _log_switch is not None:
        _log_switch.parts = ()


def _logger_provider() -> Any:
    """The logger provider of now; None when no logs are exported.

    Built late, because importing the SDK's logs starts a thread (it runs
    resource detectors in a pool), and `ready()` must not.
    """
    global _logs_generation
    runtime = _current
    if not runtime.enabled or not (runtime.config.logs.exporters or _is_testing):
        return None
    if _logs_generation != runtime.generation:
        with _lock:
            if _logs_generation != runtime.generation:
                _build_logger_provider(runtime)
                _logs_generation = runtime.generation
    return _chosen_logger_provider


def _build_logger_provider(runtime: Runtime) -> None:
    global _own_logger_provider, _chosen_logger_provider, _log_limits, _log_switch
    config = runtime.config
    installed = sdk_compat.global_logger_provider()
    foreign = installed if installed is not None and installed is not _own_logger_provider else None
    if config.providers == "auto" and foreign is not None:
        _chosen_logger_provider = foreign
        return
    from opentelemetry import _logs

    from django_otel.export.log_pipeline import MemoryLogProcessor, SwitchLogProcessor

    if _own_logger_provider is None:
        _log_switch = SwitchLogProcessor()
        _log_limits = sdk_compat.build_log_limits()
        _own_logger_provider = sdk_compat.build_logger_provider(runtime.resource, _log_limits)
        _own_logger_provider.add_log_record_processor(_log_switch)
        if installed is None:
            _logs.set_logger_provider(_own_logger_provider)
    assert _log_switch is not None
    sdk_compat.apply_log_limits(_log_limits, config.logs.limits.attributes, config.logs.limits.attribute_length)
    if _is_testing:
        memory = MemoryLogProcessor(runtime.scrubber, lambda: _current.resource)
        memory.records = _testing_logs
        _log_switch.parts = (memory,)
    elif runtime.is_skipped:
        _log_switch.parts = ()
    else:
        _log_switch.parts = pipelines.build_log_processors(
            config, runtime.scrubber, _count_drop, _count_failure, lambda: _current.resource
        )
    _chosen_logger_provider = _own_logger_provider


def _emit_exception(span: Any, attributes: dict[str, Any]) -> bool:
    """Emit an exception of `span` as a log record; whether logs are exported."""
    provider = _logger_provider() if _current.config.logs.exporters or _is_testing else None
    if provider is None:
        return False
    from django_otel.export.log_pipeline import emit_exception

    emit_exception(provider.get_logger(SCOPE_NAME, __version__), span, attributes)
    return True


def restart() -> None:
    """Start again with the settings as they are now (after `override_settings`); numbers are kept."""
    if not (_current.started or _current.problems):
        return
    from django_otel import conf

    try:
        start(conf.get_config())
    except ConfigError as error:
        with _lock:
            _stop_parts()
            refuse(error.problems)


def stop(budget_s: float = SHUTDOWN_BUDGET_S) -> bool:
    """Export what is left and stop, within `budget_s` seconds in all; whether everything was exported."""
    with _lock:
        return _stop_parts(budget_s)


def _stop_parts(budget_s: float = SHUTDOWN_BUDGET_S) -> bool:
    parts = _processors()
    if _pump is not None:
        parts.append(_pump)
    return pipelines.shut_down(parts, budget_s)


def _processors() -> list[Any]:
    """What spans and log records are handed to, in force now."""
    parts = [*_switch.parts, *(_log_switch.parts if _log_switch is not None else ())]
    if _console is not None and _console not in parts:
        # Another tool's provider is in use: numbers and logs are stored all the same.
        parts.append(_console)
    return parts


def _at_exit() -> None:
    if _sharing is not None:
        with guard.contained("the last snapshot"):
            _sharing.write_snapshot()
    with guard.contained("the shutdown at exit"):
        stop()


def _at_end() -> None:
    """Export before this process ends itself without its `atexit` hooks."""
    # A forked child may end so that has nothing of its own; one forked without Python's hooks has its parent's things.
    if _pid == os.getpid() and (store.joined or any(map(pipelines.is_waiting, _processors()))):
        _at_exit()


def flush(timeout_s: float = SHUTDOWN_BUDGET_S) -> bool:
    """Export what is finished now; whether that was done within `timeout_s` seconds."""
    deadline_s = time.monotonic() + timeout_s
    done = True
    for part in _processors():
        left_s = max(0.0, deadline_s - time.monotonic())
        part_done = False
        with guard.contained(f"flushing {type(part).__name__}"):
            part_done = part.force_flush(int(left_s * 1000)) is not False
        done = part_done and done
    if _sharing is not None:
        with guard.contained("the last snapshot"):
            _sharing.write_snapshot()
    if _pump is not None:
        done = _pump.flush(max(0.0, deadline_s - time.monotonic())) and done
    return done


# --- First measurement and fork. ---


def join() -> None:
    """This process has something to say: let background threads begin. Cheap and idempotent."""
    if store.joined:
        return
    from django.apps import apps

    if not apps.ready:
        # Something was counted while Django is still loading; the next measurement will do.
        return
    if _is_uwsgi_master():
        return
    _notice_fork()
    _notice_patch()
    with _lock:
        if store.joined or _is_preparing or not _current.enabled:
            return
        if not _is_quiet():
            # Inside the lock: no thread decides before the process knows what is to be applied.
            _prepare()
        # Requests go on from here; a scrape waits, or it would show this process alone.
        sharing_lock = _sharing_lock
        sharing_lock.acquire()
        store.joined = True
    try:
        _current.sampler.on_first = None
        if _is_quiet():
            return
        with guard.contained("sharing numbers"):
            _start_sharing()
            _finish_with_multiprocessing()
    finally:
        sharing_lock.release()
    with guard.contained("joining"):
        # Now: the SDK's logs start a thread when they are imported, which an `atexit` hook could not.
        _logger_provider()
        if _pump is not None:
            _pump.start()
        if _console is not None:
            _console.start()
    for callback in _join_callbacks:
        with guard.contained("joining"):
            callback()


def _prepare() -> None:
    global _is_preparing
    # Something may be measured on the way, which would lead here again.
    _is_preparing = True
    try:
        for callback in _prepare_callbacks:
            with guard.contained("preparing to join"):
                callback()
    finally:
        _is_preparing = False


def _finish_with_multiprocessing() -> None:
    """A child of `multiprocessing` ends by `os._exit`, which runs only its own finalizers."""
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is None or multiprocessing.parent_process() is None:
        return
    from multiprocessing.util import Finalize

    # After those of higher priority, which may still count something.
    Finalize(None, _at_exit, exitpriority=-100)


def _start_sharing() -> None:
    """Take a slot of the group's folder, where there is more than this one process to share with."""
    global _sharing
    from django_otel.multiprocess.sharing import start_sharing

    _sharing = start_sharing(_current.config, store, _collect_sdk, _configured_pid)


def _register_hooks() -> None:
    global _hooks_registered
    if _hooks_registered:
        return
    _hooks_registered = True
    atexit.register(_at_exit)
    process_end.export_first(_at_end, SHUTDOWN_BUDGET_S)
    process_end.export_with_celery(flush)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)


def _is_uwsgi_master() -> bool:
    """Whether uWSGI will fork workers from this process.

    Its fork runs none of Python's hooks. So the master never joins: what it
    counts stays in private memory, and its children join with their first
    measurement.
    """
    uwsgi = sys.modules.get("uwsgi")
    if uwsgi is None:
        return False
    roles = ("worker_id", "mule_id", "i_am_the_spooler")
    # Which of these there are depends on how uWSGI was built.
    return not any(getattr(uwsgi, role)() for role in roles if hasattr(uwsgi, role))


def _notice_fork() -> None:
    """In a child whose fork ran none of Python's hooks (uWSGI's own): do now what they would have done."""
    global _noticed_pid
    if _noticed_pid == os.getpid():
        return
    # Several threads may have their first request at once (uWSGI with threads): one does it, the others wait for it.
    with _notice_lock:
        if _noticed_pid == os.getpid():
            return
        if _pid != os.getpid():
            store.leave()
            _after_fork()
        _noticed_pid = os.getpid()


def _notice_patch() -> None:
    """Make our locks anew if gevent has patched `threading` since (gunicorn's --preload with gevent workers).

    All greenlets share one thread: a lock of the system's that is held over a
    switch, say during an export, would stop them all for ever.
    """
    global _lock, _lock_type, _notice_lock, _sharing_lock
    if threading.Lock is _lock_type:
        return
    _lock_type = threading.Lock
    _lock = threading.RLock()
    _notice_lock = threading.Lock()
    _sharing_lock = threading.RLock()
    with guard.contained("making locks anew after a monkey-patch"):
        for part in (*_processors(), _switch.tail, _pump, _own_meter_provider, _sdk_metrics):
            if hasattr(part, "renew_locks"):
                part.renew_locks()


def _after_fork() -> None:
    global _is_preparing, _lock, _notice_lock, _pid, _sharing, _sharing_lock
    _is_preparing = False
    _lock = threading.RLock()
    _sharing_lock = threading.RLock()
    if _pid != os.getpid():
        _pid = os.getpid()
        # The parent's; this process joins with its first measurement.
        _sharing = None
    with guard.contained("starting anew after a fork"):
        _ids.after_fork()
        _current.sampler.after_fork()
        _current.resource = pipelines.build_resource(_current.config, _current.scrubber.attributes)
        _current.started_at_s = time.time()
        for provider in (_own_tracer_provider, _own_logger_provider):
            if provider is not None:
                sdk_compat.set_resource(provider, _current.resource)
        if _own_meter_provider is not None:
            # Another of the parent's threads may have held it.
            _own_meter_provider.renew_locks()
        _set_meter_resource()
        if _own_tracer_provider is not None:
            _own_tracer_provider.refresh()
        for part in (*_processors(), _switch.tail):
            if hasattr(part, "after_fork"):
                part.after_fork()
        if _pump is not None:
            _pump.after_fork()
        if _sdk_metrics is not None:
            _sdk_metrics.after_fork()
        store.joined = False
        _current.sampler.on_first = join
    for callback in _fork_callbacks:
        with guard.contained("starting anew after a fork"):
            callback()


# --- Numbers. ---


def collect_process(*, observed: bool = True) -> list[Family]:
    """Every family of this process alone, as OTLP gets them: our own cells and the SDK's instruments.

    Without `observed` the callbacks of our own observable gauges are not asked.
    """
    return store.collect(observed=observed) + _collect_sdk()


def _collect_sdk() -> list[Family]:
    if _sdk_metrics is not None:
        with guard.contained("collecting SDK metrics"), store.around_callbacks():
            return _sdk_metrics.collect()
    return []


def collect() -> list[Family]:
    """Every family, as a scrape shows them: over all processes of this server instance where they share numbers."""
    if _sharing is None:
        # Another thread may just be joining.
        with _sharing_lock:
            pass
    if _sharing is not None:
        with guard.contained("merging the processes' numbers"):
            return _sharing.collect()
    return collect_process()


def server_group() -> str | None:
    """The name of the server instance this process belongs to; None for one of a single process without a name."""
    from django_otel.multiprocess import server_group

    config = _current.config
    owner = None if config.metrics.group is not None else server_group.owner_pid(_configured_pid, config.surroundings)
    return server_group.build_group_name(config.service_name or "", config.metrics.group, owner)


def sharing() -> Sharing | None:
    """How this process shares its numbers; None when it keeps them to itself."""
    return _sharing


#: The metric that counts lost items, by signal.
_DROPPED = {
    "traces": "django_otel.spans.dropped",
    "metrics": "django_otel.metrics.dropped",
    "logs": "django_otel.logs.dropped",
}


def _count_drop(count: int, reason: str, signal: str) -> None:
    dropped = store.catalogued(_DROPPED[signal])
    assert isinstance(dropped, Counter)
    dropped.add(count, {"django_otel.reason": reason})


def _count_console_drop(count: int, reason: str) -> None:
    dropped = store.catalogued("django_otel.console.dropped")
    assert isinstance(dropped, Counter)
    dropped.add(count, {"django_otel.reason": reason})


def group_name() -> str | None:
    """The name of the processes over which `collect` adds up; None when it tells of this process alone.

    "" when that cannot be said now: the folder in which they share their numbers cannot be used.
    """
    if _sharing is None:
        return None
    folder = _sharing.folder
    return folder.name if folder is not None else ""


def _count_failure(signal: str) -> None:
    failures = store.catalogued("django_otel.export.failures")
    assert isinstance(failures, Counter)
    failures.add(1, {"django_otel.signal": signal})


# --- Tests. ---


def use_memory_exporters() -> None:
    """From now on exporters are replaced by memory, whatever the settings say (for test runs)."""
    global _is_testing
    if _is_testing:
        return
    _is_testing = True
    restart()


def stop_memory_exporters() -> None:
    """Undo `use_memory_exporters()`: the settings decide again, and what memory holds is dropped."""
    global _is_testing
    if not _is_testing:
        return
    _is_testing = False
    restart()
    _testing_spans.clear()
    _testing_logs.clear()


def is_testing() -> bool:
    """Whether exporters are replaced by memory."""
    return _is_testing


def memory_spans() -> list[Any]:
    """The finished spans of the memory exporter, oldest first; the list itself, so it may be cleared."""
    if _is_testing:
        return _testing_spans
    for part in _switch.parts:
        if isinstance(part, pipelines.MemorySpanProcessor):
            return part.spans
    return []


def memory_logs() -> list[Any]:
    """The log records of the memory exporter, oldest first; the list itself, so it may be cleared."""
    if _is_testing:
        return _testing_logs
    if _log_switch is not None:
        for part in _log_switch.parts:
            if hasattr(part, "records"):
                found: list[Any] = part.records
                return found
    return []


def propagator() -> SwitchPropagator:
    """The process's global propagator, with the formats of the settings."""
    return _propagator
