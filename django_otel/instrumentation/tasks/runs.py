"""Sending and running a task, for every task library: its spans, its metrics, its place in the sender's trace.

`Backend.send()` and `Backend.run()` begin one of the two; what they return ends it. What the sender hands to the
worker is a few texts (`Sending.headers`): the trace context in the formats of `PROPAGATION`, and when it was sent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, cast

from opentelemetry import baggage, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode

from django_otel import runtime
from django_otel.base import guard
from django_otel.base.sdk_compat import SPAN_KEY, attach, build_remote_context, detach, get_current, with_span
from django_otel.sampling.sampler import with_outcome
from django_otel.tracing.exceptions import message_for, record_exception, type_name
from django_otel.tracing.propagation import parse_traceparent
from django_otel.tracing.spans import RecordedSpan, drop
from django_otel.tracing.tracer import Tracer

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

    from django_otel.metrics.series import HistogramSeries, Series

#: The message header with the time at which a task was sent, in seconds since the Unix epoch.
SENT_AT = "django_otel_sent_at"
#: A task that waited longer begins a trace of its own, with a link to the sender's, in seconds.
LINK_AFTER_S = 3600.0
#: Stands for names that no code has registered, and for queues beyond the limit.
OTHER = "_other"
#: Distinct queues of a backend that have a label of their own in metrics; names of queues may be made up at run time.
MAX_QUEUES = 100
_MAX_NAME = 200
_NOTHING = Context()
_MAX_HEADER = 8192

#: Management commands that are web servers.
_SERVER_COMMANDS = frozenset(("runserver", "runserver_plus", "runsslserver", "testserver", "rundaphne", "otel"))

SUCCEEDED, FAILED, RETRIED, REJECTED = "succeeded", "failed", "retried", "rejected"


class State:
    """State that changes with the settings."""

    def __init__(self) -> None:
        self.is_on = False
        #: Our own tracer, where spans may be started without the sampler's and the API's detours; False where not.
        self.tracer: Tracer | bool | None = None
        #: Whether it is known what kind of process this is.
        self.has_looked = False
        #: The one format that is read and written without the propagators; "" where they are needed.
        self.is_plain = False

    def find_tracer(self) -> Tracer | None:
        """Return our own tracer where spans may be started by it directly, else None."""
        tracer = self.tracer
        if tracer is None:
            found = runtime.tracer()
            longest = found.shared.limits.max_span_attribute_length if type(found) is Tracer else 0
            is_own = type(found) is Tracer and self.is_plain and (longest is None or longest > _MAX_NAME)
            tracer = self.tracer = found if is_own and type(found) is Tracer else False
        if not isinstance(tracer, Tracer) or tracer.shared.is_sdk_path or tracer.shared.starters:
            return None
        return tracer if tracer.shared.sampler.on_first is None else None


state = State()


class Metrics:
    """The series of one task in one queue."""

    __slots__ = ("_durations", "_labels", "_sent", "_wait")

    def __init__(self, backend: str, name: str, queue: str) -> None:
        self._labels = {"django.task.backend": backend, "django.task.name": name, "django.task.queue": queue}
        # Made when they are used: a worker sends few of the tasks that it runs.
        self._sent: Series | None = None
        self._wait: HistogramSeries | None = None
        self._durations: dict[str, HistogramSeries] = {}

    def sent(self) -> Series:
        """Return the counter of tasks sent."""
        found = self._sent
        if found is None:
            found = self._sent = runtime.store.catalogued("django.task.sent").series(self._labels)
        return found

    def wait(self) -> HistogramSeries:
        """Return the series of waits."""
        found = self._wait
        if found is None:
            made = runtime.store.catalogued("django.task.wait").series(self._labels)
            found = self._wait = cast("HistogramSeries", made)
        return found

    def duration(self, outcome: str) -> HistogramSeries:
        """Return the series of durations with this outcome."""
        found = self._durations.get(outcome)
        if found is None:
            made = runtime.store.catalogued("django.task.duration")
            labels = {**self._labels, "django.task.outcome": outcome}
            found = self._durations[outcome] = cast("HistogramSeries", made.series(labels))
        return found


class Backend:
    """One task library. `is_registered(name)` returns whether code has registered a task; others are `_other`."""

    def __init__(self, label: str, is_registered: Callable[[str], bool] = lambda name: True) -> None:
        self.label = label
        self._is_registered = is_registered
        #: False where another instrumentation makes the spans.
        self.makes_spans = True
        self._metrics: dict[tuple[str, str], Metrics] = {}
        self._queues: set[str] = set()
        self.forget()

    def forget(self) -> None:
        """Look every series up again: the settings have changed."""
        self._metrics = {}

    def queues(self) -> set[str]:
        """Return the queues that this process has sent to or worked for."""
        return set(self._queues)

    def metrics(self, name: str, queue: str) -> Metrics:
        """Return the series of the task `name` in `queue`."""
        found = self._metrics.get((name, queue))
        return found if found is not None else self._find_metrics(name, queue)

    def _find_metrics(self, name: str, queue: str) -> Metrics:
        if queue not in self._queues:
            if len(self._queues) >= MAX_QUEUES:
                return self.metrics(name, OTHER) if queue != OTHER else Metrics(self.label, self._known(name), OTHER)
            self._queues.add(queue)
        known = self._known(name)
        made = Metrics(self.label, known, queue)
        # An unknown name is not kept: there may be any number, and one may be registered later.
        if known == name:
            self._metrics[name, queue] = made
        return made

    def _known(self, name: str) -> str:
        is_known = False
        with guard.contained("looking for a task by name"):
            is_known = self._is_registered(name)
        return name if is_known else OTHER

    def send(self, name: str, queue: str, task_id: str = "") -> Sending | None:
        """Begin to send a task; None where tasks are not measured. `end` or `fail` must follow."""
        if not state.is_on:
            return None
        note_command()
        try:
            return Sending(self, name, queue, task_id)
        except Exception as fault:
            guard.report("sending a task", fault)
            return None

    def run(  # noqa: PLR0913 (one parameter for each thing that is known of a run)
        self,
        name: str,
        queue: str,
        headers: Mapping[str, object],
        *,
        task_id: str = "",
        sent_at_s: float | None = None,
        due_at_s: float | None = None,
        retries: int = 0,
        is_local: bool = False,
        started_s: float | None = None,
        counts_wait: bool = True,
    ) -> Run | None:
        """Begin to run a task; None where tasks are not measured. `end` must follow.

        `headers` are the sender's, as they came. `is_local`: the task runs inside its sender, whose span is current.

        `started_s` is given for a run that another process began, which may have counted its wait.

        Units: times in seconds since the Unix epoch; `due_at_s` is the earliest at which the task may start.
        """
        if not state.is_on:
            return None
        note_command()
        try:
            run = Run(self, name, queue, counts_wait)
            run.begin(headers, task_id, sent_at_s, due_at_s, retries, is_local, started_s)
            return run
        except Exception as fault:
            guard.report("running a task", fault)
            return None

    def reject(self, name: str, queue: str, headers: Mapping[str, object], task_id: str = "", reason: str = "") -> None:
        """Record a task that will not run: revoked, expired, not known, not readable."""
        run = self.run(name, queue, headers, task_id=task_id, started_s=time.time(), counts_wait=False)
        if run is not None:
            run.set_attribute("django.task.reason", reason)
            run.end(REJECTED)


class Sending:
    """One task being sent: its PRODUCER span is current until `end`. `headers` go with the message."""

    __slots__ = ("_metrics", "_token", "database", "headers", "is_carried", "span")

    def __init__(self, backend: Backend, name: str, queue: str, task_id: str) -> None:
        self._metrics = backend.metrics(name, queue)
        self._token: object = None
        #: Whether the message, or row, holds them.
        self.is_carried = False
        #: The alias of the database in which the task is written, where it is.
        self.database: str | None = None
        self.headers: dict[str, str] = {SENT_AT: f"{time.time():.6f}"}
        self.span: trace.Span | None = None
        if not backend.makes_spans:
            return
        attributes: dict[str, AttributeValue] = {
            "django.task.backend": backend.label, "django.task.name": name[:_MAX_NAME], "django.task.queue": queue,
        }  # fmt: skip
        if task_id:
            attributes["django.task.id"] = task_id[:_MAX_NAME]
        context = get_current()
        tracer = None if context else state.find_tracer()
        if tracer is not None:
            self.span = _start_root(tracer, f"send {name[:_MAX_NAME]}", SpanKind.PRODUCER, name, attributes)
            inside = Context({SPAN_KEY: self.span})
        else:
            if context.get(SPAN_KEY) is None:
                # The trace begins here: a rule may name the task.
                context = with_task_outcome(context, name)
            self.span = runtime.tracer().start_span(f"send {name[:_MAX_NAME]}", context, SpanKind.PRODUCER, attributes)
            inside = with_span(context, self.span)
        self._token = attach(inside)
        if state.is_plain:
            ids = self.span.get_span_context()
            if ids.is_valid:
                self.headers["traceparent"] = f"00-{ids.trace_id:032x}-{ids.span_id:016x}-{ids.trace_flags & 3:02x}"
                if ids.trace_state:
                    self.headers["tracestate"] = ids.trace_state.to_header()
        if not state.is_plain or (len(inside) > 1 and baggage.get_all(inside)):
            runtime.propagator().inject(self.headers, inside)

    def count(self) -> None:
        """Count the task as sent."""
        self._metrics.sent().add(1.0)

    def end(self, *, counts: bool = True) -> None:
        """End the span, and count the task as sent; without `counts` it is counted later, or not at all."""
        try:
            if counts:
                self._metrics.sent().add(1.0)
            self._close(None)
        except Exception as fault:
            guard.report("the end of sending a task", fault)

    def fail(self, error: BaseException) -> None:
        """End without the task having been sent."""
        with guard.contained("the end of sending a task"):
            self._close(error)

    def _close(self, error: BaseException | None) -> None:
        token, self._token = self._token, None
        if token is not None:
            detach(token)
        span = self.span
        if span is None:
            return
        if isinstance(error, Exception) and span.is_recording():
            record_failure(span, error)
        span.end()


class Run:
    """One run of a task by a worker: its CONSUMER span is current until `end`."""

    __slots__ = (
        "_before", "_counts_wait", "_metrics", "_name", "_queue", "_started_s", "_token", "backend", "sending", "span",
    )  # fmt: skip

    def __init__(self, backend: Backend, name: str, queue: str, counts_wait: bool) -> None:
        self.backend = backend
        self._counts_wait = counts_wait
        self._name, self._queue = name, queue
        self._metrics = backend.metrics(name, queue)
        self.span: trace.Span | None = None
        #: The sending of the task, where that ends only with it (a library's eager mode).
        self.sending: Sending | None = None
        self._token: object = None
        self._before: Context | None = None
        self._started_s = 0.0

    def begin(  # one parameter for each thing that is known of a task
        self,
        headers: Mapping[str, object],
        task_id: str,
        sent_at_s: float | None,
        due_at_s: float | None,
        retries: int,
        is_local: bool,
        started_s: float | None,
    ) -> None:
        """Count the wait, and start the span."""
        began_s = time.time() if started_s is None else started_s
        if sent_at_s is None:
            sent_at_s = read_time(headers.get(SENT_AT))
        due_s = max(sent_at_s or 0.0, due_at_s or 0.0)
        wait_s = max(0.0, began_s - due_s) if due_s else None
        if wait_s is not None and self._counts_wait:
            self._metrics.wait().observe(wait_s)
        if self.backend.makes_spans:
            attributes: dict[str, AttributeValue] = {
                "django.task.backend": self.backend.label,
                "django.task.name": self._name[:_MAX_NAME],
                "django.task.queue": self._queue[:_MAX_NAME],
            }
            if task_id:
                attributes["django.task.id"] = task_id[:_MAX_NAME]
            if wait_s is not None:
                attributes["django.task.wait"] = wait_s
            if retries:
                attributes["django.task.retries"] = retries
            self._start_span(headers, attributes, wait_s, is_local, started_s)
        self._started_s = perf_counter() if started_s is None else perf_counter() - (time.time() - started_s)

    def _start_span(
        self,
        headers: Mapping[str, object],
        attributes: dict[str, AttributeValue],
        wait_s: float | None,
        is_local: bool,
        started_s: float | None,
    ) -> None:
        if not is_local and started_s is None and (wait_s is None or wait_s <= LINK_AFTER_S):
            tracer = state.find_tracer()
            if tracer is not None and self._start_quickly(tracer, headers, attributes):
                return
        context = get_current()
        links: tuple[Link, ...] = ()
        if not is_local:
            # The context of a worker is not the task's.
            context = extract(headers)
            sender = trace.get_current_span(context).get_span_context() if context else None
            if sender is not None and sender.is_valid and wait_s is not None and wait_s > LINK_AFTER_S:
                links = (Link(sender),)
                policy = runtime.current().sampler.policy
                outcome = policy.outcome_of_sender(sender.trace_flags.sampled) if policy.follows_parent else None
                context = Context({key: value for key, value in context.items() if key != SPAN_KEY})
                context = with_outcome(outcome, context) if outcome else with_task_outcome(context, self._name)
            elif sender is None or not sender.is_valid or not runtime.current().sampler.effective.follows_parent:
                context = with_task_outcome(context, self._name)
        elif context.get(SPAN_KEY) is None:
            context = with_task_outcome(context, self._name)
        start_ns = None if started_s is None else int(started_s * 1e9)
        name = self._name[:_MAX_NAME]
        self.span = runtime.tracer().start_span(
            f"process {name}", context, SpanKind.CONSUMER, attributes, links, start_ns
        )
        self._enter(with_span(context, self.span))

    def _start_quickly(
        self, tracer: Tracer, headers: Mapping[str, object], attributes: dict[str, AttributeValue]
    ) -> bool:
        """Start the span below a sender that has sent `traceparent` alone; False where there is more to see to."""
        parent = read_parent(headers.get("traceparent"))
        if parent is None or "tracestate" in headers or "baggage" in headers:
            return False
        sampler = tracer.shared.sampler
        policy = sampler.effective if sampler.effective.is_steady else sampler.policy
        if not policy.follows_parent:
            return False
        decision = policy.decide(parent.trace_id, parent)
        decision.count()
        if decision.is_recording:
            if decision.attributes:
                attributes.update(decision.attributes)
            self.span = tracer.record_entry(
                f"process {self._name[:_MAX_NAME]}", _NOTHING, SpanKind.CONSUMER, parent, decision.is_sampled,
                attributes, are_ready=True,
            )  # fmt: skip
        else:
            self.span = drop(tracer.shared, None, parent)
        self._enter(Context({SPAN_KEY: self.span}))
        return True

    def _enter(self, context: Context) -> None:
        self._before = get_current()
        self._token = attach(context)

    def _leave(self) -> None:
        token, self._token = self._token, None
        before, self._before = self._before, None
        if token is None:
            return
        detach(token)
        if before is not None and get_current().get(SPAN_KEY) is self.span:
            # The end comes in a copy of the context of the start, as asgiref makes one for each call.
            attach(before)

    def set_attribute(self, key: str, value: str) -> None:
        """Set an attribute of the span; an empty value is left out."""
        if self.span is not None and value and self.span.is_recording():
            self.span.set_attribute(key, value)

    def abandon(self) -> None:
        """Count nothing, and leave the span out: another process records the end."""
        self._leave()

    def forget_context(self) -> None:
        """Do not restore the context at the end, which comes in another context than the start."""
        self._token = None

    def end(self, outcome: str, error: BaseException | None = None) -> None:
        """End the run; `error` is the exception that ended the task, if any."""
        try:
            self._end(outcome, error)
        except Exception as fault:
            guard.report("the end of a task", fault)

    def _end(self, outcome: str, error: BaseException | None) -> None:
        self._leave()
        duration_s = max(0.0, perf_counter() - self._started_s)
        span = self.span
        durations = self._metrics.duration(outcome)
        ids = span.get_span_context() if span is not None and span.is_recording() else None
        if ids is not None and ids.trace_flags & 1:
            durations.observe(duration_s, ids.trace_id, ids.span_id)
        else:
            durations.observe(duration_s)
        if span is not None:
            if ids is not None:
                if type(span) is RecordedSpan:
                    span.complete(span.name, {"django.task.outcome": outcome}, are_clean=True)
                else:
                    span.set_attribute("django.task.outcome", outcome)
                if outcome == FAILED:
                    record_failure(span, error)
                elif error is not None:
                    record_exception(span, error, runtime.current().scrubber.text)
            span.end()
        if self.sending is not None:
            self.sending.end()


def note_command() -> None:
    """Share the numbers of a management command that sends or runs tasks with the project's task workers."""
    if state.has_looked:
        return
    state.has_looked = True
    command = runtime.command_name()
    if command is not None and command not in _SERVER_COMMANDS:
        runtime.work_in_background()


def record_failure(span: trace.Span, error: BaseException | None) -> None:
    """Mark `span` as failed by `error`."""
    if error is None:
        span.set_status(Status(StatusCode.ERROR))
        return
    kind = type_name(error)
    scrub = runtime.current().scrubber.text
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, f"{kind}: {message_for(span, error, scrub)}"))
    record_exception(span, error, scrub)


def _start_root(
    tracer: Tracer, span_name: str, kind: SpanKind, task: str, attributes: dict[str, AttributeValue]
) -> trace.Span:
    """Start the span of a trace that begins here, where nothing is current."""
    shared = tracer.shared
    sampler = shared.sampler
    policy = sampler.effective if sampler.effective.is_steady else sampler.policy
    low_bits = shared.ids.bits(64)
    decision = policy.decide(low_bits, None, policy.outcome_of_task(task) if policy.rules else None)
    decision.count()
    if not decision.is_recording:
        return drop(shared, low_bits, None)
    if decision.attributes:
        attributes.update(decision.attributes)
    return tracer.record_root(span_name, _NOTHING, kind, low_bits, decision.is_sampled, attributes, are_ready=True)


def read_parent(header: object) -> SpanContext | None:
    """Return the sender's context of a `traceparent` in its usual form; None for any other."""
    if not isinstance(header, str) or len(header) != 55 or header[:3] != "00-":
        return None
    try:
        trace_id, span_id, flags = int(header[3:35], 16), int(header[36:52], 16), int(header[53:], 16)
    except ValueError:
        return None
    return build_remote_context(trace_id, span_id, flags & 3) if trace_id and span_id else None


def with_task_outcome(context: Context, name: str) -> Context:
    """Return `context` in which a trace that begins is decided by the rules for the task `name`."""
    policy = runtime.current().sampler.policy
    return with_outcome(policy.outcome_of_task(name), context) if policy.rules else context


def extract(headers: Mapping[str, object]) -> Context:
    """Return the context that the sender has put into a message's headers; an empty one where there is none."""
    parent = headers.get("traceparent")
    if state.is_plain and headers.get("tracestate") is None and headers.get("baggage") is None:
        found = parse_traceparent(parent) if isinstance(parent, str) and len(parent) <= _MAX_HEADER else None
        if found is None:
            return Context()
        return Context({SPAN_KEY: trace.NonRecordingSpan(build_remote_context(*found))})
    carrier = {}
    for field in runtime.propagator().fields:
        value = headers.get(field)
        if isinstance(value, str) and len(value) <= _MAX_HEADER:
            carrier[field] = value
    # An empty context is false, and would be replaced by the current one.
    return runtime.propagator().extract(carrier, Context())


def read_time(value: object) -> float | None:
    """Return a time of a message's header, in seconds since the Unix epoch; None for anything else."""
    if not isinstance(value, str | float | int) or isinstance(value, bool):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) and found > 0 else None
