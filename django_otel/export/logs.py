"""The pipeline of log records: the logger provider, which is built by the first record, and its processors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django_otel._version import __version__
from django_otel.base import sdk_compat
from django_otel.config.schema import Config
from django_otel.export.state import SCOPE_NAME, ProcessState

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider
    from opentelemetry.sdk._logs import LoggerProvider as SdkLoggerProvider
    from opentelemetry.sdk._logs import LogRecordProcessor, ReadableLogRecord
    from opentelemetry.trace import Span

    from django_otel.export.log_processors import SwitchLogProcessor


class LogPipeline:
    """Log records on their way out.

    Built late, because importing the SDK's logs starts a thread (it runs
    resource detectors in a pool), and `ready()` must not.
    """

    def __init__(self, state: ProcessState) -> None:
        self._state = state
        self.own_provider: SdkLoggerProvider | None = None
        self._chosen: LoggerProvider | None = None
        self._generation = -1
        self._limits: Any = None
        self._switch: SwitchLogProcessor | None = None
        self._memory: list[ReadableLogRecord] = []

    @property
    def parts(self) -> tuple[LogRecordProcessor, ...]:
        """Processors that records are handed to now."""
        return self._switch.parts if self._switch is not None else ()

    def start(self, config: Config) -> None:
        """Look whether logs can be exported. Errors: `ConfigError` when a package is missing."""
        if config.logs.exporters and not self._state.is_quiet:
            from django_otel.export.exporters import check_installed

            for name in config.logs.exporters:
                check_installed(name, "logs")
        self._generation = -1
        self.stop()

    def stop(self) -> None:
        """Hand on nothing."""
        if self._switch is not None:
            self._switch.parts = ()

    def after_fork(self) -> None:
        """In the child: the new resource, and nothing of what the parent has queued."""
        if self.own_provider is not None:
            sdk_compat.set_resource(self.own_provider, self._state.resource)
        for part in self.parts:
            if hasattr(part, "after_fork"):
                part.after_fork()

    def find_provider(self) -> LoggerProvider | None:
        """The logger provider of now; None when no logs are exported."""
        state = self._state
        if not state.enabled or not (state.config.logs.exporters or state.is_testing):
            return None
        if self._generation != state.generation:
            with state.lock:
                if self._generation != state.generation:
                    self._choose_provider(state.config)
                    self._generation = state.generation
        return self._chosen

    def _choose_provider(self, config: Config) -> None:
        installed: Any = sdk_compat.global_logger_provider()
        if config.providers == "auto" and installed is not None and installed is not self.own_provider:
            self._chosen = installed
            return
        own, switch = self.own_provider, self._switch
        if own is None or switch is None:
            own, switch = self._build_own_provider(is_global=installed is None)
        # The SDK would cut texts before they are redacted: `LogCleaner` does so afterwards.
        sdk_compat.apply_log_limits(self._limits, config.logs.limits.attributes, None)
        switch.parts = self._build_processors(config)
        self._chosen = own

    def _build_own_provider(self, *, is_global: bool) -> tuple[SdkLoggerProvider, SwitchLogProcessor]:
        from opentelemetry import _logs

        from django_otel.export.log_processors import SwitchLogProcessor

        self._limits = sdk_compat.build_log_limits()
        self._switch = switch = SwitchLogProcessor(self._limits)
        self.own_provider = own = sdk_compat.build_logger_provider(self._state.resource, self._limits)
        own.add_log_record_processor(switch)
        if is_global:
            _logs.set_logger_provider(own)
        return own, switch

    def _build_processors(self, config: Config) -> tuple[LogRecordProcessor, ...]:
        from django_otel.export.building import build_log_processors
        from django_otel.export.log_processors import LogCleaner, MemoryLogProcessor

        state = self._state
        if state.is_testing:
            clean = LogCleaner(state.scrubber, config.logs.limits.attribute_length)
            memory = MemoryLogProcessor(clean, lambda: state.resource)
            memory.records = self._memory
            return (memory,)
        if state.is_skipped:
            return ()
        return build_log_processors(
            config, state.scrubber, state.count_drop, state.count_failure, lambda: state.resource
        )

    def emit_exception(self, span: Span, attributes: dict[str, Any]) -> bool:
        """Emit an exception of `span` as a log record; whether logs are exported."""
        provider = self.find_provider()
        if provider is None:
            return False
        from django_otel.export.log_processors import emit_exception

        emit_exception(provider.get_logger(SCOPE_NAME, __version__), span, attributes)
        return True

    def find_memory(self) -> list[ReadableLogRecord]:
        """The log records of the memory exporter, oldest first; the list itself, so it may be cleared."""
        if self._state.is_testing:
            return self._memory
        return next((part.records for part in self.parts if hasattr(part, "records")), [])

    def clear_memory(self) -> None:
        """Drop what memory holds for tests."""
        self._memory.clear()
