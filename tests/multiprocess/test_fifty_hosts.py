"""Fifty hosts with eight workers each, stood in for by what they write: their folders, files and followers.

A dozen with four each, but in a long run.

What one Prometheus and one database see of them: each host's page has the numbers of its workers, a saved policy
reaches every worker, and the database is asked by one process of each host.
"""

from __future__ import annotations

import contextlib
import datetime
import time
import types
from collections.abc import Iterator

import pytest
from django.db import connection
from django.utils import timezone

from django_otel import runtime
from django_otel.base import private_files
from django_otel.live_sampling import follower as followers
from django_otel.metrics.exposition import render
from django_otel.metrics.store import CellStore
from django_otel.models import LogLevel, SamplingPolicy, SamplingRule
from django_otel.multiprocess import host_registry
from django_otel.multiprocess.discovery import Outsider
from django_otel.multiprocess.host_registry import HostRegistry
from django_otel.multiprocess.memory import SharedMemory
from django_otel.sampling.policy import Policy
from django_otel.sampling.sampler import LiveSampler
from tests import sizes

HOSTS, WORKERS = sizes.scaled(12, 50), sizes.scaled(4, 8)
REFRESH_S = 5.0


class Worker:
    """A worker process: its follower, and its sampler."""

    def __init__(self, folder) -> None:
        self.sampler = LiveSampler(Policy(1.0))
        self.follower = followers.Follower()
        self.follower.registry = HostRegistry(folder)
        self.follower.registry.join()


@pytest.fixture
def hosts(tmp_path, monkeypatch, settings):
    """The workers of each host; `tick()` lets every worker look once."""
    settings.OTEL = {**settings.OTEL, "SAMPLING": {"REFRESH_S": REFRESH_S}}
    made: list[list[Worker]] = []
    for number in range(HOSTS):
        folder = tmp_path / f"host-{number}"
        private_files.make_folder(folder)
        made.append([Worker(folder) for _ in range(WORKERS)])
    yield made
    for worker in (worker for host in made for worker in host):
        worker.follower.log_levels.end()
        worker.follower.registry.close()


@pytest.fixture
def tick(hosts, monkeypatch):
    # Whole, so that halves of seconds add up exactly.
    now_s = [float(int(time.monotonic()))]
    current: list[LiveSampler] = []
    monkeypatch.setattr(followers, "_sampler", lambda: current[0])
    monkeypatch.setattr(followers, "is_live", lambda: True)
    # One clock for the followers and their folders: a reading of the future would be one of before a restart.
    clock = types.SimpleNamespace(
        monotonic=lambda: now_s[0], monotonic_ns=time.monotonic_ns, time=time.time, sleep=time.sleep
    )  # fmt: skip
    monkeypatch.setattr(followers, "time", clock)
    monkeypatch.setattr(host_registry, "time", clock)

    def run(passed_s: float = 0.0) -> None:
        now_s[0] += passed_s
        for worker in (worker for host in hosts for worker in host):
            current[:] = [worker.sampler]
            worker.follower.tick()

    return run


@contextlib.contextmanager
def statements() -> Iterator[list[str]]:
    """What the database is sent; a poll empties Django's own list of queries."""
    sent: list[str] = []

    def note(execute, sql, params, many, context):
        sent.append(sql)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(note):
        yield sent


def ratios(hosts) -> list[float]:
    return [worker.sampler.ratio_now() for host in hosts for worker in host]


@pytest.mark.django_db
def test_a_saved_policy_reaches_every_worker_and_one_process_of_each_host_asks(hosts, tick):
    tick()
    # After its first poll a host waits for less, so that hosts that start together do not go on asking together.
    pass_refresh(tick)
    assert ratios(hosts) == [1.0] * HOSTS * WORKERS
    SamplingPolicy(ratio=0.25, note="fifty hosts").save()
    with statements() as sent:
        pass_refresh(tick)
    assert ratios(hosts) == [0.25] * HOSTS * WORKERS
    assert len(sent) == HOSTS
    leaders = [sum(worker.follower.registry.is_leading for worker in host) for host in hosts]
    assert leaders == [1] * HOSTS


def pass_refresh(tick, rounds: int = 1) -> None:
    """Let every worker do what it does in so many REFRESH_S: it looks twice a second."""
    for _ in range(int(rounds * REFRESH_S / 0.5)):
        tick(0.5)


@pytest.mark.django_db
@pytest.mark.heavy
def test_each_host_asks_with_one_query_per_refresh(hosts, tick):
    """With a policy, rules and log levels, and all that was counted is what the database saw."""
    SamplingPolicy(ratio=0.25).save()
    SamplingRule.objects.create(path="/slow/*", ratio=1.0)
    LogLevel.objects.create(logger="shop", level="DEBUG", expires_at=timezone.now() + datetime.timedelta(hours=1))
    pass_refresh(tick)
    rounds = 2
    with statements() as sent:
        pass_refresh(tick, rounds)
    assert len(sent) == rounds * HOSTS


@pytest.mark.django_db
def test_hosts_that_start_together_do_not_go_on_asking_together(hosts, tick):
    tick()
    asked = []
    for _ in range(int(REFRESH_S / 0.5)):
        with statements() as sent:
            tick(0.5)
        asked.append(len(sent))
    assert max(asked) < HOSTS


@pytest.mark.django_db
def test_another_process_of_the_host_takes_over_from_a_leader_that_is_gone(hosts, tick):
    tick()
    for host in hosts:
        leader = next(worker for worker in host if worker.follower.registry.is_leading)
        leader.follower.registry.close()
        host.remove(leader)
    SamplingPolicy(ratio=0.5).save()
    for _ in range(int(REFRESH_S / 0.5) + 1):
        tick(0.5)
    assert set(ratios(hosts)) == {0.5}


def test_the_page_of_a_host_has_the_numbers_of_its_workers(tmp_path):
    """As a scrape of one of them adds them up; benchmarks/fifty_hosts.py says how long it takes."""
    folder = tmp_path / "group"
    private_files.make_folder(folder)
    stores = [CellStore(SharedMemory(folder)) for _ in range(WORKERS)]
    for number, store in enumerate(stores):
        store.catalogued("http.server.request.duration").series(
            {"http.request.method": "GET", "http.route": "/", "http.response.status_code": 200}
        ).observe(0.1 * number)
    page = render(Outsider(folder).collect(), openmetrics=False, resource_attributes={}).decode()
    counts = [line for line in page.splitlines() if line.startswith("http_server_request_duration_seconds_count")]
    assert [line.rpartition(" ")[2] for line in counts] == [str(WORKERS)]
    assert runtime.current() is not None
