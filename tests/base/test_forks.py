"""What happens after a fork: one list, in one order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from django_otel.base import forks
from tests import services

PACKAGE = Path(forks.__file__).resolve().parents[1]


def test_one_module_listens_to_forks():
    found = [path.name for path in PACKAGE.rglob("*.py") if "register_at_fork" in path.read_text()]
    assert found == ["forks.py"]


def test_each_entry_is_explained_and_used():
    names = [name for name, _ in forks.ORDER]
    assert len(set(names)) == len(names)
    assert all(reason for _, reason in forks.ORDER)
    text = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    used = set(re.findall(r'forks\.register\(\s*"([\w.]+)"', text)) | {"base.guard", "base.forks"}
    assert used == set(names)


def test_a_name_without_a_place_is_refused():
    with pytest.raises(ValueError, match="no place in the order"):
        forks.register("nowhere", lambda: None)


SCRIPT = """
import os, sys
import django
from django.conf import settings
settings.configure(SECRET_KEY="s", INSTALLED_APPS=["django_otel"], DATABASES={}, OTEL={
    "SERVICE_NAME": "forks", "TRACES": {"EXPORTERS": ["memory"]}, "CONSOLE": {"ENABLED": False}})
from django_otel.base import forks
django.setup()
import django_otel.multiprocess.sharing, django_otel.tracestore.file
from opentelemetry import metrics
called = []
for name, _ in forks.ORDER:
    forks.register(name, lambda name=name: called.append(name))
forks.register("logs", lambda: 1 / 0)
# A provider of the SDK that is made later: what we do late comes after its hooks as well, and once.
metrics.get_meter_provider().get_meter("a").create_counter("b").add(1)
read, write = os.pipe()
if not os.fork():
    os.write(write, ",".join(called).encode())
    os._exit(0)
os.wait()
print(os.read(read, 10000).decode())
print(len(called))
forks.run_child_hooks()
print(",".join(called))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_order_is_kept_and_a_fault_stops_nothing():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT], cwd=services.ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    in_child, in_parent, without_hooks = done.stdout.splitlines()
    names = ",".join(name for name, _ in forks.ORDER)
    assert (in_child, in_parent, without_hooks) == (names, "0", names)


SLOW_TO_IMPORT = """
import sys, time
sys.began.set()
time.sleep(0.5)
class Exporter:
    def export(self, batch):
        sys.got.extend(batch)
        return True
"""
IMPORTS_IN_A_THREAD = """
import os, signal, sys, threading
from django_otel.export.batch import BatchWorker
from django_otel.export.exporters import LazyExporter

began = threading.Event()
got = []

def build():
    from slow_to_import import Exporter
    return Exporter()

sys.began, sys.got = began, got
exporter = LazyExporter(build)
worker = BatchWorker("x", exporter.export, queue_size=10, batch_size=1, delay_s=0.01, on_drop=print, on_failure=print)
worker.put("parent's")
assert began.wait(30)
pid = os.fork()
if pid == 0:
    signal.alarm(30)
    got.clear()
    worker.after_fork()
    exporter.after_fork()
    worker.put("child's")
    os._exit(0 if worker.flush(20) and got == ["child's"] else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert worker.flush(30) and got == ["parent's"], got
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_while_a_thread_imports_its_exporter_exports_for_itself(tmp_path):
    """In the child, the module would stay as it was then, half imported and locked."""
    (tmp_path / "slow_to_import.py").write_text(SLOW_TO_IMPORT)
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS_IN_A_THREAD],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{services.ROOT}"},
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


THREADS_IMPORT = """
import logging, sys, threading
import django
from django.conf import settings
receiver = {"EXPORTERS": ["otlp"], "ENDPOINT": sys.argv[1]}
settings.configure(SECRET_KEY="s", INSTALLED_APPS=["django_otel"], DATABASES={}, OTEL={
    "SERVICE_NAME": "forks", "CONSOLE": {"ENABLED": True, "PATH": sys.argv[2]}, "SAMPLING": {"LIVE": False},
    "TRACES": receiver, "LOGS": receiver, "METRICS": receiver})
from django_otel import runtime
from django_otel.base import forks
django.setup()
from opentelemetry import trace
imported, outside = [], []

def note(event, arguments):
    if event == "import" and threading.current_thread() is not threading.main_thread():
        (imported if forks.importing._users else outside).append(arguments[0])

sys.addaudithook(note)
with trace.get_tracer("a").start_as_current_span("b"):
    # Texts that threads redact, by rules that are imported for them.
    logging.getLogger("shop").error("no, password=hunter2 was not it")
    try:
        raise ValueError("token=abcdefg1234567")
    except ValueError:
        logging.getLogger("shop").exception("failed")
assert runtime.current().flush(60)
assert len(imported) > 10 and outside == [], outside
"""


def test_threads_that_redact_and_export_import_only_where_a_fork_waits_for_them(receiver, tmp_path):
    url = receiver.url.replace("127.0.0.1", "localhost")
    receiver.answer = b'{"partialSuccess": {"errorMessage": "this time"}}'
    done = subprocess.run(
        [sys.executable, "-c", THREADS_IMPORT, url, str(tmp_path / "console")],
        cwd=services.ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


A_THREAD_SHARES = """
import sys, threading
import django
from django.conf import settings
settings.configure(SECRET_KEY="s", INSTALLED_APPS=["django_otel"], DATABASES={}, OTEL={
    "SERVICE_NAME": "forks", "SAMPLING": {"LIVE": False}, "TRACES": {"EXPORTERS": []}, "LOGS": {"EXPORTERS": []},
    "METRICS": {"SHARED_DIR": sys.argv[1], "GROUP": "all"}})
import django_otel
from django_otel.base import forks
django.setup()
from tests.services import wait_until
imported, outside = [], []

def note(event, arguments):
    if event == "import" and threading.current_thread().name == "django_otel-shared":
        (imported if forks.importing._users else outside).append(arguments[0])

sys.addaudithook(note)
django_otel.counter("orders").add(1)
wait_until(lambda: "django_otel.multiprocess.snapshot" in sys.modules, 60, "a merge")
assert "django_otel.multiprocess.reader" in imported and outside == [], (imported, outside)
"""


def test_the_thread_that_merges_imports_only_where_a_fork_waits_for_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", A_THREAD_SHARES, str(tmp_path)],
        cwd=services.ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_waits_no_longer_than_its_patience():
    gate = forks.ForkGate(patience_s=0.05)
    is_inside, may_leave = threading.Event(), threading.Event()

    def stay():
        with gate.using():
            is_inside.set()
            may_leave.wait()

    thread = threading.Thread(target=stay)
    thread.start()
    is_inside.wait()
    gate.before_fork()
    assert gate._users == [thread.ident]
    pid = os.fork()
    if pid == 0:
        gate.after_in_child()
        with gate.using():
            os._exit(0 if gate.is_tainted else 1)
    gate.after_in_parent()
    may_leave.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not gate.is_tainted


def test_a_thread_that_is_inside_may_enter_again_and_fork_at_once(monkeypatch):
    gate = forks.ForkGate(patience_s=60)
    with gate.using():
        monkeypatch.setattr(gate._condition, "wait", lambda timeout_s: pytest.fail("it waits for itself"))
        gate.before_fork()
        with gate.using():
            assert gate._users == [threading.get_ident()] * 2
        gate.after_in_parent()
