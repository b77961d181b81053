"""The process's one piece of global state: the pipelines and the effective settings.

`start()` builds; it opens no socket, touches no database and starts no thread.
`join()` (`process.Membership`) runs at the first request or measurement of the
process; from then on background threads may run. After a fork the child starts
at zero and joins by itself; `base.forks.ORDER` lists the actions after a fork.
"""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry import propagate, trace

from django_otel.base import forks, guard, sdk_environment
from django_otel.config.packages import import_path
from django_otel.config.schema import Config, ConfigError, Problem
from django_otel.export.resource import build_resource
from django_otel.process import Callback, Process
from django_otel.redaction.scrub import Scrubber
from django_otel.requests.budget import SpanBudget
from django_otel.requests.record import sampled_ids
from django_otel.sampling.policy import Policy
from django_otel.tracing import exceptions
from django_otel.tracing.propagation import SwitchPropagator, build_propagators

if TYPE_CHECKING:
    from django_otel.multiprocess.sharing import Sharing
    from django_otel.tracestore.processor import StoreProcessor

logger = logging.getLogger("django_otel")


ConfigCallback = Callable[[Config], None]


class Runtime(Process):
    """State of this process as the settings define it. Others only read it."""

    def __init__(self) -> None:
        super().__init__()
        self._config_callbacks: list[ConfigCallback] = []
        self._refusal_callbacks: list[Callback] = []
        forks.register("sampling.limiter", self.sampler.after_fork)
        forks.register("export.resource", self._renew_resource)
        forks.register("tracestore.processor", self._empty_console)

    def on_config_change(self, callback: ConfigCallback) -> None:
        """Call `callback(config)` after every (re)start; faults in it are contained."""
        if callback not in self._config_callbacks:
            self._config_callbacks.append(callback)

    def on_refusal(self, callback: Callback) -> None:
        """Call `callback()` when telemetry goes off because the settings are faulty."""
        if callback not in self._refusal_callbacks:
            self._refusal_callbacks.append(callback)

    # --- Start and restart. ---

    def start(self, config: Config) -> None:
        """Apply `config`, for the first time or again.

        Errors: `ConfigError` when something it names cannot be imported or is not
        installed; telemetry is off then.
        """
        with self.lock:
            self.stop()
            try:
                self._start(config)
            except ConfigError as error:
                self.refuse(error.problems)
                raise
            callbacks = list(self._config_callbacks)
        for callback in callbacks:
            with guard.contained(f"switching on {getattr(callback, '__module__', 'a part')}"):
                callback(config)

    def refuse(self, problems: list[Problem]) -> None:
        """Run without telemetry because of `problems`."""
        with self.lock:
            self.problems = list(problems)
            self.enabled = False
            self.started = False
            self.generation += 1
            for pipeline in (self.traces, self.metrics, self.logs):
                pipeline.stop()
            self.console = None
            exceptions.recording.report = None
        for callback in self._refusal_callbacks:
            with guard.contained(f"switching off {getattr(callback, '__module__', 'a part')}"):
                callback()

    def _start(self, config: Config) -> None:
        self.console = None
        exceptions.recording.report = None
        self.config = config
        self.problems = []
        self.generation += 1
        self.enabled = config.enabled
        self.is_skipped = command_name() in config.skip_commands
        self.started_at_s = time.time()
        self.membership.note_configured()
        self.membership.project_identity = _project_identity
        self.scrubber = _build_scrubber(config)
        self.resource = build_resource(config, self.scrubber.attributes)
        self._start_sampling(config)
        self.store.current_ids = sampled_ids if config.enabled and config.metrics.exemplars else None
        self.store.configure(
            cardinality_limit=config.metrics.cardinality_limit,
            attribute_length=config.metrics.attribute_length,
            buckets=config.metrics.buckets,
            scrub=functools.partial(self.scrubber.labels, longest=config.metrics.attribute_length),
            is_exponential=config.metrics.histograms == "exponential",
        )
        exceptions.recording.choose(config.traces.exception_signal, self.logs.emit_exception)
        if not config.enabled:
            self.traces.tracer = trace.NoOpTracer()
            sdk_environment.restore_providers()
            self.started = True
            return
        for warning in config.warnings:
            guard.warn_once(f"environment {warning}", "%s", warning)
        # Everything that may be refused comes before anything global is set.
        span_processors = self.traces.build_processors(config)
        metric_exporters = self.metrics.build_exporters(config)
        propagators = build_propagators(config)
        self.console = self._build_console(config)
        if self.console is not None:
            span_processors = (*span_processors, self.console)
            exceptions.recording.report = self.console.on_error
        self.traces.start(config, span_processors)
        self.metrics.start(config, metric_exporters)
        self.logs.start(config)
        self.propagator.parts = propagators
        propagate.set_global_textmap(self.propagator)
        ratio = self.store.observable_gauge(
            "django_otel.sampling.ratio", self.sampler.ratio_now, "1", "Share of new traces that is recorded."
        )
        ratio.cache_s = 0.0
        logging.getLogger("opentelemetry.attributes").addFilter(_no_truncation_notes)
        # After the providers were made: their own fork hooks, which touch the resource, must run before ours.
        self.membership.register_hooks()
        self.membership.expect_join()
        # Once more: what another thread has built meanwhile may hold parts of what was.
        self.generation += 1
        self.started = True

    def _start_sampling(self, config: Config) -> None:
        sampler = self.sampler
        sampler.open_series = self.traces.open_decisions
        sampler.on_compose = self.traces.switch_tail
        sampler.rebase(_build_base_policy(config))
        budget = SpanBudget(config.traces.limits.spans_per_trace, lambda: self.count_drop(1, "trace_limit", "traces"))
        sampler.budget = budget.take
        sampler.end_over_budget = budget.end

    def restart(self) -> None:
        """Start again with the settings as they are now (after `override_settings`); numbers are kept."""
        if not (self.started or self.problems):
            return
        from django_otel import conf

        try:
            self.start(conf.get_config())
        except ConfigError as error:
            with self.lock:
                self.stop()
                self.refuse(error.problems)

    # --- After a fork. ---

    def _renew_resource(self) -> None:
        self.resource = build_resource(self.config, self.scrubber.attributes)
        self.started_at_s = time.time()

    def _empty_console(self) -> None:
        # Processors behind our tracer provider were emptied with the traces.
        if self.console is not None and self.console not in self.traces.switch.parts:
            self.console.after_fork()

    # --- What others ask for. ---

    def _build_console(self, config: Config) -> StoreProcessor | None:
        """Return the processor that fills the trace store, if enabled; its file is not opened yet."""
        from django_otel import conf

        if self.is_quiet or not conf.is_console_on(config):
            return None
        # Late, because it imports SQLite.
        from django_otel.tracestore.processor import StoreProcessor

        return StoreProcessor(
            config,
            conf.deployment_identity(config),
            clean=self.traces.build_cleaner(config),
            scrubber=self.scrubber,
            resource=lambda: self.resource,
            collect=self.collect_group,
            group=self.membership.group_name,
            facts=self._console_facts,
            on_drop=lambda count, reason: self.count_drop(count, reason, "console"),
        )

    def _console_facts(self) -> Mapping[str, object]:
        """Return the dashboard's facts about this process."""
        program = Path(sys.argv[0] if sys.argv else "")
        return {
            # "python -m gunicorn" is called gunicorn/__main__.py.
            "program": command_name() or (program.parent.name if program.name == "__main__.py" else program.name),
            "ratio": self.sampler.ratio_now(),
            "release": self.config.service_version or "",
            "exporters": list(self.config.traces.exporters),
        }

    def replace_exporters(self, *, is_on: bool) -> None:
        """Replace the exporters by memory, over the settings (for test runs), or undo that."""
        if self.is_testing == is_on:
            return
        self.is_testing = is_on
        self.restart()
        if not is_on:
            self.traces.clear_memory()
            self.logs.clear_memory()


def command_name() -> str | None:
    """The management command this process runs, or None."""
    arguments = sys.argv
    program = Path(arguments[0]).name if arguments and arguments[0] else ""
    is_manage = program in ("manage.py", "django-admin", "django-admin.py", "django-admin.exe")
    is_module = program == "__main__.py" and Path(arguments[0]).parent.name == "django"
    return arguments[1] if (is_manage or is_module) and len(arguments) > 1 else None


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


def _build_scrubber(config: Config) -> Scrubber:
    callback = config.scrub.callback
    if isinstance(callback, str):
        callback = import_path(callback)
    return Scrubber(config.scrub.extra, callback, personal=config.scrub.personal)


def _project_identity() -> str:
    from django_otel import conf

    return conf.project_identity()


class _NoTruncationNotes(logging.Filter):
    """Drops log lines on attributes that were cut or dropped: LIMITS ask for that."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = str(record.msg)
        return "truncating" not in message and "dict is full" not in message


_no_truncation_notes = _NoTruncationNotes()
_current = Runtime()
#: The numbers of this process; the same object as long as the process lives.
store = _current.store


def current() -> Runtime:
    """The runtime of this process; before `start()` one that is not enabled."""
    return _current


def tracer() -> trace.Tracer:
    """Return the tracer for our own spans, by the effective settings; ask each time."""
    return _current.traces.tracer


def console() -> StoreProcessor | None:
    """Return the processor that fills the trace store; None if `CONSOLE` is off."""
    return _current.console


def sharing() -> Sharing | None:
    """Return how this process shares its numbers; None when it keeps them to itself."""
    return _current.membership.sharing


def on_prepare(callback: Callback) -> None:
    """Call `callback()` before the first decision or measurement of this process (or of a forked child, once more)."""
    _current.membership.prepare_callbacks.append(callback)


# The methods of the one object, under the names by which others call them.
on_config_change, on_refusal = _current.on_config_change, _current.on_refusal
start, refuse, restart, stop, flush = _current.start, _current.refuse, _current.restart, _current.stop, _current.flush
join, group_name, server_group, work_in_background = (
    _current.membership.join,
    _current.membership.group_name,
    _current.membership.server_group,
    _current.membership.work_in_background,
)
collect, collect_process = _current.collect, _current.metrics.collect_process
clean_span = _current.traces.clean
memory_spans, memory_logs = _current.traces.find_memory, _current.logs.find_memory


def use_memory_exporters() -> None:
    """From now on exporters are replaced by memory, whatever the settings say (for test runs)."""
    _current.replace_exporters(is_on=True)


def stop_memory_exporters() -> None:
    """Undo `use_memory_exporters()`: the settings decide again, and what memory holds is dropped."""
    _current.replace_exporters(is_on=False)


def is_testing() -> bool:
    """Return whether exporters are replaced by memory."""
    return _current.is_testing


def propagator() -> SwitchPropagator:
    """The process's global propagator, with the formats of the settings."""
    return _current.propagator
