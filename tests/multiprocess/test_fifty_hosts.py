"""Fifty hosts with eight workers each, stood in for by what they write: their folders, files and followers.

What one Prometheus and one database see of them: each host's page has the numbers of its workers, a saved policy
reaches every worker, and the database is asked by one process of each host.
"""

from __future__ import annotations

import time
import types

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_otel import runtime
from django_otel.base import private_files
from django_otel.live_sampling import follower as followers
from django_otel.metrics.exposition import render
from django_otel.metrics.store import CellStore
from django_otel.models import SamplingPolicy
from django_otel.multiprocess import host_registry
from django_otel.multiprocess.discovery import Outsider
from django_otel.multiprocess.host_registry import HostRegistry
from django_otel.multiprocess.memory import SharedMemory
from django_otel.sampling.policy import Policy
from django_otel.sampling.sampler import LiveSampler

HOSTS, WORKERS = 50, 8
REFRESH_S = 5.0
#: Queries of one reading: the version before and after, the policy, the rules, the log levels, and whether a page that
#: shows all hosts is open.
MOST_QUERIES = 6


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
        worker.follower.registry.close()


@pytest.fixture
def tick(hosts, monkeypatch):
    now_s = [time.monotonic()]
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


def ratios(hosts) -> list[float]:
    return [worker.sampler.ratio_now() for host in hosts for worker in host]


@pytest.mark.django_db
def test_a_saved_policy_reaches_every_worker_and_one_process_of_each_host_asks(hosts, tick):
    tick()
    tick()
    assert ratios(hosts) == [1.0] * HOSTS * WORKERS
    SamplingPolicy(ratio=0.25, note="fifty hosts").save()
    with CaptureQueriesContext(connection) as captured:
        # What every worker does in one REFRESH_S: it looks twice a second.
        for _ in range(int(REFRESH_S / 0.5)):
            tick(0.5)
    assert ratios(hosts) == [0.25] * HOSTS * WORKERS
    assert len(captured) <= HOSTS * MOST_QUERIES
    leaders = [sum(worker.follower.registry.is_leading for worker in host) for host in hosts]
    assert leaders == [1] * HOSTS


@pytest.mark.django_db
def test_when_nothing_changes_each_host_reads_once_per_refresh(hosts, tick):
    tick()
    read: list[int] = []
    for host in hosts:
        for worker in host:
            plain = worker.follower.read_and_apply
            worker.follower.read_and_apply = lambda alias, plain=plain: (read.append(1), plain(alias))[1]
    rounds = 4
    for _ in range(int(rounds * REFRESH_S / 0.5)):
        tick(0.5)
    # A poll comes a little before REFRESH_S is over (at 85 % the earliest), so that hosts do not ask at once.
    assert rounds * HOSTS <= len(read) <= rounds * HOSTS / 0.8


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
