"""Lengths of queues (`django.task.queue.length`): read with the metrics, never during a request.

One process asks: the one that answers a scrape, and of those that send metrics over OTLP the one that holds a lock.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from django_otel import conf, runtime
from django_otel.base import guard
from django_otel.base.private_files import Unusable, make_folder, open_file
from django_otel.base.suppression import suppress_instrumentation
from django_otel.instrumentation.tasks import celery_hooks, django_hooks, rq_hooks
from django_otel.instrumentation.tasks.celery_types import App, Connection
from django_otel.metrics.catalogue import CATALOGUE
from django_otel.multiprocess.background import background_bases, build_background_name

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = "django.task.queue.length"
#: Brokers that are asked; of the others some ask for money.
_TRANSPORTS = ("redis", "rediss", "sentinel", "amqp", "amqps", "pyamqp", "librabbitmq", "memory")
#: How long a broker is waited for, in seconds.
TIMEOUT_S = 1.0

Length = tuple[float, Mapping[str, object]]
Reader = Callable[[], Iterable[Length]]


class _Turn:
    """Whether it is this process's turn to ask, among those that send metrics on their own."""

    def __init__(self) -> None:
        self._descriptor = -1
        self._pid = 0

    def is_ours(self) -> bool:
        """Return whether this process holds the lock; takes it where no other does."""
        if fcntl is None:
            return True
        if self._descriptor >= 0 and self._pid == os.getpid():
            return True
        if self._descriptor >= 0:
            # The parent's: its lock stays.
            os.close(self._descriptor)
            self._descriptor = -1
        for base in background_bases(runtime.current().config.metrics.shared_dir):
            try:
                descriptor = _open_lock(base)
            except OSError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                return False
            self._descriptor, self._pid = descriptor, os.getpid()
            return True
        return True


def _open_lock(base: Path) -> int:
    if not base.is_dir():
        raise Unusable(f"{base} is not a folder.")
    folder = base / f"django-otel-{os.geteuid()}-queues"
    make_folder(folder)
    return open_file(folder / f"{build_background_name(conf.project_identity())}.lock", os.O_RDWR | os.O_CREAT)


_turn = _Turn()


def _read_celery() -> Iterator[Length]:
    for app in celery_hooks.find_apps():
        with guard.contained("the length of Celery's queues"):
            yield from _read_app(app)


def _read_app(app: App) -> Iterator[Length]:
    url = str(app.conf.broker_read_url or app.conf.broker_url or "")
    if url.partition("://")[0] not in _TRANSPORTS:
        return
    limits = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S, "max_retries": 0}
    options = {**(app.conf.broker_transport_options or {}), **(limits if "amqp" not in url[:8] else {})}
    names = {*app.amqp.queues, *(celery_hooks.backend.queues() - {"_other"})}
    connection = app.connection_for_read(connect_timeout=TIMEOUT_S, transport_options=options)
    try:
        # Without a first try the transport would try again and again.
        connection.ensure_connection(max_retries=1, timeout=TIMEOUT_S)
        for name in sorted(names)[:100]:
            yield _count(connection, name), {"django.task.backend": "celery", "django.task.queue": name}
    finally:
        _close(connection.release)


def _count(connection: Connection, queue: str) -> float:
    """Return how many messages wait in a queue; 0 where it does not exist."""
    channel = connection.channel()
    try:
        return float(channel.queue_declare(queue=queue, passive=True).message_count)
    except connection.channel_errors:
        return 0.0
    finally:
        _close(channel.close)


def _close(close: Callable[[], object]) -> None:
    """Close what may be gone already."""
    try:
        close()
    except Exception as error:
        guard.pass_on(error)


#: Readers of lengths, by library.
READERS: dict[str, Reader] = {"celery": _read_celery, "django": django_hooks.read_lengths, "rq": rq_hooks.read_lengths}


def read() -> list[Length]:
    """Return every length there is to know; empty where it is another process's turn."""
    if threading.current_thread().name == "django_otel-metrics" and not _turn.is_ours():
        return []
    found: list[Length] = []
    with suppress_instrumentation():
        for library, reader in READERS.items():
            with guard.contained(f"the length of the queues of {library}"):
                found += reader()
    return found


def install() -> None:
    """Read the lengths whenever metrics are read."""
    metric = CATALOGUE[NAME]
    runtime.store.observable_gauge(NAME, read, metric.unit, metric.description)


def uninstall() -> None:
    """Read nothing any more."""
    if runtime.store.type_of(NAME) is not None:
        runtime.store.observable_gauge(NAME, list)
