"""Types of the parts of Celery that are used: Celery has no type annotations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Exchange(Protocol):
    name: str


class Queue(Protocol):
    name: str
    routing_key: str
    exchange: Exchange | None


class Declared(Protocol):
    message_count: int


class Channel(Protocol):
    def queue_declare(self, *, queue: str, passive: bool) -> Declared: ...

    def close(self) -> None: ...


class Connection(Protocol):
    """Kombu's."""

    channel_errors: tuple[type[Exception], ...]

    def channel(self) -> Channel: ...

    def ensure_connection(self, *, max_retries: int, timeout: float) -> object: ...

    def release(self) -> None: ...


class Conf(Protocol):
    broker_url: str | None
    broker_read_url: str | None
    broker_transport_options: dict[str, object] | None
    task_default_queue: str
    task_always_eager: bool


class Amqp(Protocol):
    @property
    def app(self) -> App: ...

    @property
    def queues(self) -> Mapping[str, Queue]: ...


class App(Protocol):
    @property
    def amqp(self) -> Amqp: ...

    @property
    def conf(self) -> Conf: ...

    @property
    def tasks(self) -> Mapping[str, object]: ...

    def connection_for_read(self, *, connect_timeout: float, transport_options: dict[str, object]) -> Connection: ...


class Request(Protocol):
    """A task's `request`."""

    id: str | None
    delivery_info: object
    eta: object
    retries: int | None
    is_eager: bool


class Task(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def app(self) -> App: ...

    @property
    def acks_late(self) -> bool: ...

    @property
    def request(self) -> Request: ...


class Consumer(Protocol):
    @property
    def app(self) -> App: ...


class Message(Protocol):
    headers: object
    delivery_info: object


class WorkerRequest(Protocol):
    """A message in the worker's main process."""

    id: str
    task: Task
    request_dict: dict[str, object]
    delivery_info: object
    time_start: float | None
    worker_pid: int | None
