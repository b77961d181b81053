"""This process: its three pipelines, and its membership in the group of processes that share metrics."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from opentelemetry import trace

from django_otel.base import forks, guard
from django_otel.export import process_end
from django_otel.export.logs import LogPipeline
from django_otel.export.metrics import MetricPipeline
from django_otel.export.shutdown import is_waiting, shut_down
from django_otel.export.state import ProcessState
from django_otel.export.traces import TracePipeline
from django_otel.metrics.model import Family
from django_otel.tracing.propagation import SwitchPropagator

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider
    from opentelemetry.metrics import MeterProvider

    from django_otel.multiprocess.background import BackgroundReader
    from django_otel.multiprocess.sharing import Sharing
    from django_otel.tracestore.processor import StoreProcessor

#: Time for everything that is left to export at the end of the process, in seconds.
SHUTDOWN_BUDGET_S = 5.0

Callback = Callable[[], None]


if TYPE_CHECKING:

    class _Processor(Protocol):
        """Receiver of finished spans or log records."""

        def force_flush(self, timeout_millis: int = 30000) -> bool: ...


class Process(ProcessState):
    """The pipelines of this process, its console, and its end."""

    def __init__(self) -> None:
        super().__init__()
        self.traces = TracePipeline(self)
        self.metrics = MetricPipeline(self, self.collect)
        self.logs = LogPipeline(self)
        self.membership = Membership(self)
        #: The process's global propagator, with the formats of the settings.
        self.propagator = SwitchPropagator()
        #: The processor that fills the trace store; None when `CONSOLE` is off.
        self.console: StoreProcessor | None = None
        forks.register("export.traces", self.traces.after_fork)
        forks.register("export.metrics", self.metrics.after_fork)
        forks.register("export.logs", self.logs.after_fork)

    @property
    def tracer_provider(self) -> trace.TracerProvider | None:
        """The tracer provider in use; None when no spans are made."""
        return self.traces.provider

    @property
    def meter_provider(self) -> MeterProvider | None:
        """The meter provider in use."""
        return self.metrics.provider

    @property
    def logger_provider(self) -> LoggerProvider | None:
        """The logger provider in use, built when it is first asked for; None when no logs are exported."""
        return self.logs.find_provider()

    def processors(self) -> list[_Processor]:
        """Return the current processors of spans and log records."""
        parts: list[_Processor] = [*self.traces.switch.parts, *self.logs.parts]
        if self.console is not None and self.console not in parts:
            # Another tool's provider is in use: numbers and logs are stored all the same.
            parts.append(self.console)
        return parts

    def stop(self, budget_s: float = SHUTDOWN_BUDGET_S) -> bool:
        """Export the queues and stop, within `budget_s` seconds in all; return whether everything was exported."""
        with self.lock:
            thread = self.metrics.thread
            return shut_down([*self.processors(), *([thread] if thread is not None else ())], budget_s)

    def flush(self, timeout_s: float = SHUTDOWN_BUDGET_S) -> bool:
        """Export what is finished now; whether that was done within `timeout_s` seconds."""
        deadline_s = time.monotonic() + timeout_s
        done = True
        for part in self.processors():
            left_s = max(0.0, deadline_s - time.monotonic())
            part_done = False
            with guard.contained(f"flushing {type(part).__name__}"):
                part_done = part.force_flush(int(left_s * 1000)) is not False
            done = part_done and done
        self.membership.write_snapshot()
        thread = self.metrics.thread
        if thread is not None:
            done = thread.flush(max(0.0, deadline_s - time.monotonic())) and done
        return done

    def collect(self) -> list[Family]:
        """Every family, as a scrape shows them: over all processes of this server instance that share numbers.

        Those of the project's task workers on this host are added.
        """
        families = self.collect_group()
        background = self.membership.find_background()
        if background is not None:
            with guard.contained("adding the numbers of task workers"):
                from django_otel.multiprocess.background import add_background

                return add_background(families, background.collect())
        return families

    def collect_group(self) -> list[Family]:
        """Every family over the processes of this one's group."""
        sharing = self.membership.find_sharing()
        if sharing is not None:
            with guard.contained("merging the processes' numbers"):
                return self.narrow(sharing.collect())
        return self.narrow(self.metrics.collect_process())


class Membership:
    """This process as a member of the group that shares numbers: its first measurement, its forks, its end."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.prepare_callbacks: list[Callback] = []
        self._is_preparing = False
        self._has_hooks = False
        #: The process in which the settings were applied; another one was forked from it.
        self._configured_pid = self._pid = os.getpid()
        #: The process for which `_notice_fork` has looked.
        self._noticed_pid = 0
        self._notice_lock = threading.Lock()
        #: Held by the thread that joins until it is known whether numbers are shared.
        self._sharing_lock = threading.RLock()
        #: The value of `threading.Lock` when the locks were made; gevent replaces it.
        self._lock_type = threading.Lock
        #: Whether gevent has patched `threading` after Django was loaded: its connections are then common to all
        #: greenlets, and a query in a thread of ours would take the one of a request.
        self.is_patched_late = False
        #: How this process shares its numbers; None when it keeps them to itself.
        self.sharing: Sharing | None = None
        #: Whether this process works outside the web server (a task worker, a scheduler).
        self.is_background = False
        #: Returns an identity of the project on this host; put there by the package's upper part.
        self.project_identity: Callable[[], str] = str
        self._background: tuple[object, BackgroundReader] | None = None
        forks.register("runtime.membership", self.after_fork)

    def note_configured(self) -> None:
        """Note that the settings are applied in this process, unless its parent has done so."""
        if not self._has_hooks:
            self._configured_pid = os.getpid()

    def register_hooks(self) -> None:
        """Listen to forks and to the end of this process; once, after the providers were made."""
        if self._has_hooks:
            return
        self._has_hooks = True
        atexit.register(self._at_exit)
        process_end.export_first(self._at_end, self._before_exec, SHUTDOWN_BUDGET_S)
        process_end.export_with_celery(self._process.flush)
        if not self._process.is_quiet:
            process_end.export_on_signals(self._at_end, self._before_exec, SHUTDOWN_BUDGET_S)
        forks.listen()

    # --- The first measurement. ---

    def expect_join(self) -> None:
        """Join with the next measurement."""
        process = self._process
        process.store.on_measurement = self.join
        process.store.joined = False
        process.sampler.on_first = self.join

    def join(self) -> None:
        """This process has something to say: let background threads begin. Cheap and idempotent."""
        process = self._process
        store = process.store
        if store.joined:
            return
        from django.apps import apps

        # Something may be counted while Django is still loading; the next measurement will do.
        if not apps.ready or _is_uwsgi_master():
            return
        self._notice_fork()
        self._notice_patch()
        with process.lock:
            if store.joined or self._is_preparing or not process.enabled:
                return
            if not process.is_quiet:
                # Inside the lock: no thread decides before the process knows what is to be applied.
                self._prepare()
            # Requests go on from here; a scrape waits, or it would show this process alone.
            sharing_lock = self._sharing_lock
            sharing_lock.acquire()
            store.joined = True
        try:
            process.sampler.on_first = None
            if process.is_quiet:
                return
            with guard.contained("sharing numbers"):
                self._start_sharing()
                self._finish_with_multiprocessing()
        finally:
            sharing_lock.release()
        with guard.contained("joining"):
            # Now: the SDK's logs start a thread when they are imported, which an `atexit` hook could not.
            process.logs.find_provider()
            if process.metrics.thread is not None:
                process.metrics.thread.start()
            if process.console is not None:
                process.console.start()

    def _prepare(self) -> None:
        # Something may be measured on the way, which would lead here again.
        self._is_preparing = True
        try:
            for callback in self.prepare_callbacks:
                with guard.contained("preparing to join"):
                    callback()
        finally:
            self._is_preparing = False

    def _finish_with_multiprocessing(self) -> None:
        """A child of `multiprocessing` ends by `os._exit`, which runs only its own finalizers."""
        multiprocessing = sys.modules.get("multiprocessing")
        if multiprocessing is None or multiprocessing.parent_process() is None:
            return
        from multiprocessing.util import Finalize

        # After those of higher priority, which may still count something.
        Finalize(None, self._at_exit, exitpriority=-100)

    def _start_sharing(self) -> None:
        """Take a slot of the group's folder, where there is more than this one process to share with."""
        if self.server_group() is None:
            # Most often one process on its own, for which the parts that share are not imported.
            self.sharing = None
            return
        from django_otel.multiprocess.sharing import start_sharing

        process = self._process
        self.sharing = start_sharing(
            process.config, process.store, process.metrics.collect_sdk, self._configured_pid, self._background_name()
        )

    # --- Work outside the web server. ---

    def work_in_background(self) -> None:
        """Share this process's numbers with the project's task workers: the web server's page shows them. Idempotent.

        For processes outside the web server, as early as is known that they are one. Children by fork are such, too.
        """
        if self.is_background:
            return
        self.is_background = True
        if self._process.store.joined and not self._process.is_quiet:
            with guard.contained("sharing numbers"), self._sharing_lock:
                self._start_sharing()

    def _background_name(self) -> str | None:
        """The name of the group of task workers, where this process is one of them."""
        if not self.is_background or self._process.config.metrics.group is not None:
            return None
        from django_otel.multiprocess.background import build_background_name

        return build_background_name(self.project_identity())

    def find_background(self) -> BackgroundReader | None:
        """Return the reader of the task workers' numbers, where they are not among this process's group."""
        process = self._process
        config = process.config
        if self.is_background or config.metrics.group is not None or process.is_quiet:
            return None
        known = self._background
        if known is None or known[0] is not config:
            from django_otel.multiprocess.background import build_background_reader
            from django_otel.multiprocess.sharing import is_shown

            if not is_shown(config):
                return None
            reader = build_background_reader(self.project_identity(), config.metrics.shared_dir)
            known = self._background = (config, reader)
        return known[1]

    def find_sharing(self) -> Sharing | None:
        """Return how this process shares its numbers, once it is known."""
        if self.sharing is None:
            # Another thread may just be joining.
            with self._sharing_lock:
                pass
        return self.sharing

    def write_snapshot(self) -> None:
        """Write the metrics of the SDK for the other processes."""
        if self.sharing is not None:
            with guard.contained("the last snapshot"):
                self.sharing.write_snapshot()

    def group_name(self) -> str | None:
        """The name of the processes over which `collect` adds up; None when they are this process alone.

        "" when that cannot be said now: the folder in which they share their numbers cannot be used.
        """
        if self.sharing is None:
            return None
        folder = self.sharing.folder
        return folder.name if folder is not None else ""

    def server_group(self) -> str | None:
        """The name of the server instance this process belongs to; None for one of a single process without a name."""
        from django_otel.multiprocess import server_group

        background = self._background_name()
        if background is not None:
            return background
        config = self._process.config
        is_named = config.metrics.group is not None
        owner = None if is_named else server_group.owner_pid(self._configured_pid, config.surroundings)
        return server_group.build_group_name(config.service_name or "", config.metrics.group, owner)

    # --- Forks and monkey-patches. ---

    def after_fork(self) -> None:
        """In a forked child: join with the first measurement, as a process of its own."""
        self._is_preparing = False
        self._process.lock = threading.RLock()
        self._sharing_lock = threading.RLock()
        if self._pid != os.getpid():
            self._pid = os.getpid()
            # The parent's.
            self.sharing = None
        self._process.store.joined = False
        self._process.sampler.on_first = self.join

    def _notice_fork(self) -> None:
        """In a child whose fork ran none of Python's hooks (uWSGI's own): do now what they would have done."""
        if self._noticed_pid == os.getpid():
            return
        # Several threads may have their first request at once (uWSGI with threads): one does it, the others wait for
        # it.
        with self._notice_lock:
            if self._noticed_pid == os.getpid():
                return
            if self._pid != os.getpid():
                forks.run_child_hooks()
            self._noticed_pid = os.getpid()

    def _notice_patch(self) -> None:
        """Replace our locks if gevent has patched `threading` since (gunicorn's --preload with gevent workers).

        All greenlets share one thread: a lock of the system's that is held over a
        switch, say during an export, would block them all.
        """
        if threading.Lock is self._lock_type:
            return
        self._lock_type = threading.Lock
        self.is_patched_late = True
        process = self._process
        process.lock = threading.RLock()
        self._notice_lock = threading.Lock()
        self._sharing_lock = threading.RLock()
        metrics = process.metrics
        parts: tuple[object, ...] = (*process.processors(), process.traces.switch.tail, metrics.thread)
        with guard.contained("replacing locks after a monkey-patch"):
            for part in (*parts, metrics.own_provider, metrics.sdk_metrics):
                if hasattr(part, "renew_locks"):
                    part.renew_locks()

    # --- The end. ---

    def _at_exit(self) -> None:
        self.write_snapshot()
        if self.sharing is not None:
            with guard.contained("the CPU time at the end"):
                self.sharing.note_cpu_time()
        with guard.contained("the shutdown at exit"):
            self._process.stop()

    def _at_end(self) -> None:
        """Export before this process ends itself without its `atexit` hooks."""
        if self._has_own():
            self._at_exit()

    def _before_exec(self) -> None:
        """Export before another program takes the place of this one; should that fail, all goes on as before."""
        if self._has_own():
            self._process.flush()

    def _has_own(self) -> bool:
        """Return whether this process has measured something, or has something to export."""
        process = self._process
        # A forked child may end so that has nothing of its own; one forked without Python's hooks has its parent's
        # things.
        return self._pid == os.getpid() and (process.store.joined or any(map(is_waiting, process.processors())))


def _is_uwsgi_master() -> bool:
    """Return whether uWSGI will fork workers from this process.

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
