"""Clocks that begin at zero: a machine that was booted a minute ago."""

from __future__ import annotations

import array
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from django_otel.multiprocess.host_registry import HostRegistry
from django_otel.sampling import sampler
from django_otel.sampling.limiter import Limiter
from tests import sizes

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def clock(monkeypatch):
    """Set the monotonic clock of the limiter; returns the function that sets it, in seconds since the boot."""
    now = [0.0]
    monkeypatch.setattr(sampler.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, seconds)


@sizes.each("uptime_s", [0.0, 0.01, 1.0, 15.0, 60.0, 1_800.0, 90_000.0])
@sizes.each("max_per_second", [0.0001, 0.001, 0.1, 1.0, 5.0, 9.9])
@sizes.each("shared", [None, "array", "file"])
def test_a_limit_lets_one_trace_through_at_once_however_long_the_machine_is_up(
    clock, tmp_path, uptime_s, max_per_second, shared
):
    clock(uptime_s)
    if shared is None:
        limiters = [Limiter(max_per_second, 1)]
    elif shared == "array":
        memory = array.array("d", (0.0, 0.0))
        limiters = [Limiter(max_per_second, 2, memory) for _ in range(2)]
    else:
        # Each row has a clock of its own.
        group = f"{uptime_s} {max_per_second}"
        limiters = [Limiter(max_per_second, 2, HostRegistry(tmp_path).clock(group)) for _ in range(2)]
    taken = [limiter.acquire() for _ in range(2) for limiter in limiters for _ in range(2)]
    assert taken[0] == 1
    assert not any(taken[1:])


@sizes.each("uptime_s", [0.0, 15.0, 1_800.0, 90_000.0])
@sizes.each("max_per_second", [0.001, 0.1, 5.0])
def test_after_the_interval_one_more_trace_passes(clock, uptime_s, max_per_second):
    clock(uptime_s)
    limiter = Limiter(max_per_second, 1)
    assert [limiter.acquire() for _ in range(3)] == [1, 0, 0]
    clock(uptime_s + 0.9 / max_per_second)
    assert limiter.acquire() == 0
    clock(uptime_s + 1.001 / max_per_second)
    # The three that were refused are represented by this one.
    assert [limiter.acquire() for _ in range(2)] == [4, 0]


def _unshare(uptime_s: float) -> list[str]:
    """The command that runs another one on a machine that was booted `uptime_s` seconds ago."""
    offset_s = str(-int(time.monotonic() - uptime_s))
    boot_s = str(-int(time.clock_gettime(time.CLOCK_BOOTTIME) - uptime_s))
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--time", "--monotonic", offset_s, "--boottime", boot_s, "--fork"]


def _refusal() -> str:
    """Why no Linux time namespace can be made here; "" where it can."""
    if shutil.which("unshare") is None or not hasattr(time, "CLOCK_BOOTTIME"):
        return "needs Linux and util-linux's unshare"
    probe = [*_unshare(5.0), sys.executable, "-c", "import time; print(time.monotonic())"]
    done = subprocess.run(probe, capture_output=True, text=True, timeout=60)
    if done.returncode:
        return f"a time namespace cannot be made: {done.stderr.strip()}"
    return "" if float(done.stdout) < 60.0 else f"the clock was not set back: {done.stdout.strip()}"


@pytest.mark.long
def test_limiter_and_follower_on_a_machine_booted_a_minute_ago(tmp_path):
    """Their own tests, in a time namespace whose monotonic clock began a few seconds ago."""
    refusal = _refusal()
    if refusal and not os.environ.get("CI"):
        pytest.skip(refusal)
    assert not refusal
    tests = [
        "tests/tracing/test_tail.py::test_the_limit_does_not_starve_errors",
        "tests/tracing/test_tail.py::test_the_limit_holds_for_what_is_slow",
        "tests/requests/test_sampling_requests.py",
        "tests/multiprocess/test_host_registry.py",
        "tests/live_sampling/test_live.py",
        "tests/live_sampling/test_live_processes.py::test_a_recycled_worker_picks_the_policy_up",
    ]
    done = subprocess.run(
        [*_unshare(5.0), sys.executable, "-m", "pytest", "-n", "0", "-q", "--basetemp", str(tmp_path), *tests],
        cwd=ROOT,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
