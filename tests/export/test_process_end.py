"""What waits when a process ends without its `atexit` hooks arrives all the same."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import textwrap

import pytest

from tests import services, sizes

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def otel(receiver) -> dict:
    """Settings under which nothing leaves by itself while a test runs."""
    return {
        "TRACES": {
            "EXPORTERS": ["otlp"],
            "ENDPOINT": f"{receiver.url}/v1/traces",
            "BATCH": {"DELAY_S": 60, "BATCH_SIZE": 512},
        },
        "METRICS": {"EXPORTERS": ["otlp"], "ENDPOINT": f"{receiver.url}/v1/metrics", "INTERVAL_S": 60},
        "LOGS": {"EXPORTERS": ["otlp"], "ENDPOINT": f"{receiver.url}/v1/logs"},
        "SAMPLING": {"RATIO": 1.0},
    }


def numbers_of(receiver, name="send mail"):
    return sorted(services.attributes_of(span).get("number") for _, span in receiver.spans() if span.name == name)


@pytest.mark.parametrize("arguments", sizes.few([[], ["--max-tasks-per-child", "1"]], 2), ids=" ".join)
def test_every_task_of_celerys_pool_arrives(receiver, tmp_path, arguments):
    with services.start_valkey() as broker:
        env = services.server_env(otel(receiver), TEST_BROKER=broker, TEST_SQLITE=str(tmp_path / "db.sqlite3"))
        log = tmp_path / "log"
        command = [sys.executable, "-m", "celery", "-A", "tests.celery_app", "worker", "--concurrency", "2", *arguments]
        with services.running(command, env, log) as worker:
            send = "from tests.celery_app import send_mail\nfor r in [send_mail.delay(n) for n in range(12)]: r.get(60)"
            subprocess.run([sys.executable, "-c", send], env=env, cwd=services.ROOT, check=True, timeout=120)
            worker.send_signal(signal.SIGTERM)
            worker.wait(60)
        assert numbers_of(receiver) == list(range(12)), log.read_text()
        bodies = [record.body.string_value for _, record in receiver.logs()]
        assert sorted(body for body in bodies if body.startswith("mail")) == sorted(f"mail {n}" for n in range(12))
        assert receiver.metrics()


def _number(name: str) -> int:
    """Of a signal; `kill` does not know each by its name."""
    first, _, further = name.partition("+")
    return getattr(signal, f"SIG{first}") + int(further or 0)


ENDS = {
    "os._exit": "os._exit(0)",
    "os._exit in a forked child": """
        pid = os.fork()
        if pid == 0:
            with django_otel.span("send mail", number=2):
                pass
            os._exit(0)
        os.waitpid(pid, 0)
        os._exit(0)
    """,
    "os._exit in a thread": "t = threading.Thread(target=os._exit, args=(0,)); t.start(); t.join()",
    "a raised signal": "signal.raise_signal(signal.SIGTERM)",
    "its own kill": "os.kill(os.getpid(), signal.SIGTERM)",
    "a kill of its own group": "os.setpgrp(); os.killpg(os.getpgrp(), signal.SIGTERM)",
    "a kill of group 0": "os.setpgrp(); os.kill(0, signal.SIGTERM)",
    "a kill of its own thread": "signal.pthread_kill(threading.get_ident(), signal.SIGTERM)",
    "another program in its place": "os.execlp('true', 'true')",
    "another program with another environment": "os.execve('/bin/true', ['true'], {})",
    "another program in place of a forked child": """
        pid = os.fork()
        if pid == 0:
            with django_otel.span("send mail", number=2):
                pass
            os.execvp("true", ["true"])
        os.waitpid(pid, 0)
    """,
    "a program that does not exist, and a span after it": """
        try:
            os.execv("/no/such/program", ["x"])
        except OSError:
            with django_otel.span("send mail", number=2):
                pass
            os._exit(0)
    """,
    "os.abort": "os.abort()",
    **{
        f"{name} from outside": f"subprocess.run(['kill', '-{_number(name)}', str(os.getpid())]); time.sleep(60)"
        for name in (
            "TERM",
            "INT",
            "HUP",
            "QUIT",
            "ALRM",
            "XCPU",
            "USR1",
            "USR2",
            "VTALRM",
            "PROF",
            "IO",
            "PWR",
            "STKFLT",
            "RTMIN",
            "RTMIN+3",
            "RTMAX",
        )
    },
    "an alarm of the time that it computes": "signal.setitimer(signal.ITIMER_VIRTUAL, 0.1)\nwhile True: pass",
    "SIGTERM while it waits for a thread": """
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        threading.Thread(target=time.sleep, args=(60,)).start()
    """,
    "SIGTERM to a forked child": """
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            with django_otel.span("send mail", number=2):
                pass
            os.write(writer, b"x")
            time.sleep(60)
        os.read(reader, 1)
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    """,
    "a pool that is left": """
        import multiprocessing
        def work():
            with django_otel.span("send mail", number=2):
                pass
        with multiprocessing.get_context("fork").Pool(1) as pool:
            pool.apply(work)
    """,
    "sys.exit in a thread": """
        thread = threading.Thread(target=sys.exit); thread.start(); thread.join()
    """,
    "an error that nothing catches": "raise RuntimeError",
    "billiard": """
        import billiard
        def work():
            with django_otel.span("send mail", number=2):
                pass
        child = billiard.get_context("fork").Process(target=work)
        child.start(); child.join(); os._exit(0)
    """,
    "multiprocessing": """
        import multiprocessing
        def work():
            with django_otel.span("send mail", number=2):
                pass
        child = multiprocessing.get_context("fork").Process(target=work)
        child.start(); child.join(); os._exit(0)
    """,
}


def run(end: str, settings: dict, tmp_path, timeout_s: int = 60) -> int:
    """The exit code of a process with one span that ends so."""
    code = (
        "import logging, os, signal, subprocess, sys, threading, time, django\ndjango.setup()\nimport django_otel\n"
        'with django_otel.span("send mail", number=1):\n    pass\n'
    )
    env = services.server_env(settings, TEST_SQLITE=str(tmp_path / "db.sqlite3"))
    return services.run_python(code + textwrap.dedent(end), env, timeout_s=timeout_s, check=False).returncode


#: Each is a process of its own; these are much like others.
RARE = (
    "INT ",
    "QUIT ",
    "ALRM ",
    "XCPU ",
    "USR1 ",
    "USR2 ",
    "VTALRM ",
    "PROF ",
    "IO ",
    "PWR ",
    "STKFLT ",
    "RTM",
    "os.abort",
    "sys.exit",
    "an error",
    "a kill of group",
    "SIGTERM while",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name.startswith(RARE) else name for name in ENDS]
)
def test_what_waits_is_exported_before(receiver, tmp_path, name):
    code = run(ENDS[name], otel(receiver), tmp_path)
    if name.endswith(" from outside"):
        # What `python -m` makes of a KeyboardInterrupt is 1.
        assert code == (1 if name.startswith("INT ") else -_number(name.removesuffix(" from outside")))
    assert numbers_of(receiver) == ([1, 2] if "number=2" in ENDS[name] else [1])


def test_a_signal_ends_a_process_as_it_does_without_us(tmp_path):
    """Its handlers stay, those in C too; from another thread nothing is installed; its status is that of the signal."""
    code = """
        import faulthandler, os, signal, sys, threading
        signal.signal(signal.SIGHUP, print)
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)
        faulthandler.register(signal.SIGUSR1, file=sys.stdout)
        import django
        django.setup()
        assert signal.getsignal(signal.SIGHUP) is print
        assert signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGUSR1)
        from django_otel.export import process_end
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        thread = threading.Thread(target=process_end.export_on_signals, args=(print, print, 1))
        thread.start(); thread.join()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        process_end.export_on_signals(lambda: print("exported", flush=True), print, 9)
        os.kill(os.getpid(), signal.SIGTERM)
        print("not reached")
    """
    env = services.server_env({}, TEST_SQLITE=str(tmp_path / "db.sqlite3"))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=env, cwd=services.ROOT, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert "most recent call first" in done.stdout
    assert done.stdout.endswith("exported\n")


@pytest.mark.parametrize("server", ["mod_wsgi", "another"])
def test_handlers_are_installed_but_below_apache(tmp_path, server):
    code = f"""
        import signal, sys, types, django
        sys.modules[{server!r}] = types.ModuleType({server!r})
        django.setup()
        assert (signal.getsignal(signal.SIGTERM) is signal.SIG_DFL) is ({server!r} == "mod_wsgi")
    """
    env = services.server_env({}, TEST_SQLITE=str(tmp_path / "db.sqlite3"))
    services.run_python(textwrap.dedent(code), env)


def test_the_first_process_of_a_container_goes_on_after_a_signal(receiver, tmp_path):
    code = """
        import os, signal, django
        django.setup()
        import django_otel
        assert os.getpid() == 1
        for number in (1, 2):
            with django_otel.span("send mail", number=number):
                pass
            os.kill(1, signal.SIGTERM)
    """
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("no namespace of processes can be made")
    env = services.server_env(otel(receiver), TEST_SQLITE=str(tmp_path / "db.sqlite3"))
    command = [*unshare, sys.executable, "-c", textwrap.dedent(code)]
    assert subprocess.run(command, env=env, cwd=services.ROOT, timeout=60).returncode == 0
    assert numbers_of(receiver) == [1, 2]


def test_an_end_is_not_held_up_by_a_receiver_that_hangs(tmp_path):
    with services.start_black_hole() as url:
        settings = {"TRACES": {"EXPORTERS": ["otlp"], "ENDPOINT": f"{url}/v1/traces", "TIMEOUT_S": 300}}
        # Would take until the timeout of the export; `subprocess.run` raises then.
        run("os._exit(0)", {**settings, "SAMPLING": {"RATIO": 1.0}}, tmp_path, timeout_s=60)


@pytest.mark.parametrize(
    "end",
    [
        'import atexit\natexit.register(lambda: logging.getLogger("shop").warning("late"))',
        """
        def late():
            threading.main_thread().join()
            logging.getLogger("shop").warning("late")
        threading.Thread(target=late).start()
        """,
    ],
    ids=["atexit", "late thread"],
)
def test_the_first_record_may_come_at_the_very_end(receiver, tmp_path, end):
    run(end, otel(receiver), tmp_path)
    assert "late" in [record.body.string_value for _, record in receiver.logs()]


def test_uvicorn_exports_also_without_the_lifespan(receiver, tmp_path):
    port = services.free_port()
    env = services.server_env(otel(receiver), TEST_SQLITE=str(tmp_path / "db.sqlite3"))
    command = [sys.executable, "-m", "uvicorn", "tests.asgi_router:application", "--port", str(port)]
    log = tmp_path / "log"
    with services.running(command, env, log) as process:
        services.wait_until(lambda: services.is_listening(port) or process.poll() is not None, 30, "uvicorn")
        server = services.Server(f"http://127.0.0.1:{port}", process, log)
        for _ in range(6):
            server.get("/nowhere/")
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert process.returncode == -signal.SIGTERM
    assert len([span for _, span in receiver.spans() if span.name.startswith("GET")]) == 6, log.read_text()
