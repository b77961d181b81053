"""Python processes forked from one that has imported Django: `run_python`, `run_django`, and programs as children.

Import them from `tests.services`; `tests.shell` is the other side.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
#: Of prctl(2).
_PR_SET_CHILD_SUBREAPER = 36
#: Processes of `tests.shell` that wait for a request: by what they have imported, and by `_at_start()`.
_idle_shells: dict[Any, list[Any]] = {}
#: What `running()` forks: `python -m` with one of these, and what the shell imports beforehand for it.
_FORKED_PROGRAMS: dict[str, tuple[str, ...]] = {
    "celery": ("celery.bin.celery", "celery.bin.worker"),
    "django": (),
    "gunicorn": (
        "gunicorn.app.wsgiapp", "gunicorn.glogging", "gunicorn.workers.sync", "gunicorn.workers.gthread",
    ),
    "uvicorn": (
        "uvicorn.main", "uvicorn.lifespan.on", "uvicorn.loops.asyncio", "uvicorn.protocols.http.auto",
        "uvicorn.protocols.websockets.auto", "django.core.handlers.asgi",
    ),
}  # fmt: skip


def _at_start(env: dict[str, str]) -> frozenset[tuple[str, str]]:
    """The variables that Python or the system reads once, when a process starts."""
    names = ("PYTHON", "LD_", "LC_", "LANG", "COVERAGE_", "MALLOC_")
    return frozenset((name, text) for name, text in env.items() if name.startswith(names) and name != "PYTHONPATH")


@contextlib.contextmanager
def _borrow_shell(env: dict[str, str], *modules: str) -> Iterator[Any]:
    """A process of `tests.shell` for this environment, with these modules imported."""
    idle = _idle_shells.setdefault((modules, _at_start(env)), [])
    if idle:
        shell = idle.pop()
    else:
        shell = subprocess.Popen(
            # The spaces make room for the command of a program; see `shell.name_process`.
            [sys.executable, "-m", "tests.shell", *modules, " " * 1000],
            cwd=ROOT, env={**server_env(), **dict(_at_start(env))}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        atexit.register(_end_shell, shell, os.getpid())
    yield shell
    idle.append(shell)


def _ask(shell: Any, **request: Any) -> int:
    """Send this request to a shell; returns its answer."""
    shell.stdin.write(json.dumps(request).encode() + b"\n")
    shell.stdin.flush()
    return int(shell.stdout.readline())


def run_python(
    code: str,
    env: dict[str, str],
    *,
    argv: tuple[str, ...] = ("-c",),
    cwd: Path = ROOT,
    timeout_s: int = 120,
    check: bool = True,
    modules: tuple[str, ...] = (),
    first_path: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run code as `python -c` does, in a process of its own, forked from one that has imported Django and `modules`.

    For what tests do beside the process that they are about; `check` is that of `subprocess.run`.
    """
    with (
        _borrow_shell(env, *modules) as shell,
        tempfile.NamedTemporaryFile("r") as output,
        tempfile.NamedTemporaryFile("r") as errors,
    ):
        code_of_exit = _ask(
            shell, code=code, env=env, argv=argv, timeout_s=timeout_s, cwd=str(cwd),
            stdout=output.name, stderr=errors.name, first_path=first_path,
        )  # fmt: skip
        done = subprocess.CompletedProcess(code, code_of_exit, output.read(), errors.read())
    if check:
        assert done.returncode == 0, done.stderr
    return done


def run_program(
    command: list[str], env: dict[str, str], *, cwd: Path = ROOT, timeout_s: int = 120, check: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run `python -c`, `python -m` or `python FILE` in such a process; -W before them is understood as well."""
    program, *words = command
    assert program == sys.executable, command
    code = ""
    while words[0] == "-W":
        code += f"import sys, warnings; warnings.simplefilter({words[1]!r}); sys.warnoptions.append({words[1]!r})\n"
        words = words[2:]
    first_path = ""
    if words[0] == "-c":
        code += words.pop(1)
    elif words[0] == "-m":
        first_path = str(cwd)
        words.pop(0)
        code += f"import runpy; runpy.run_module({words[0]!r}, run_name='__main__', alter_sys=True)"
    else:
        first_path = str((cwd / words[0]).parent)
        code += f"import runpy; runpy.run_path({words[0]!r}, run_name='__main__')"
    return run_python(
        code, env, argv=tuple(words), cwd=cwd, timeout_s=timeout_s, check=check, first_path=first_path
    )  # fmt: skip


def fork_program(
    command: list[str], env: dict[str, str] | None, log: Path | None, cwd: Path = ROOT
) -> ForkedProgram | None:
    """Start this command by a fork; None where that would not be the same, and on other systems than Linux."""
    if sys.platform != "linux" or env is None or command[:2] != [sys.executable, "-m"]:
        return None
    # gevent replaces what is imported already, and OpenTelemetry reads some variables when it is imported.
    otel = [name for name in env if name.startswith("OTEL_") and not name.startswith("OTEL_EXPORTER_OTLP_")]
    if command[2] not in _FORKED_PROGRAMS or "gevent" in command or otel:
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    with _borrow_shell(env, *_FORKED_PROGRAMS[command[2]]) as shell:
        # What the shell leaves behind becomes a child of this process, which can then wait for it.
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            pid = _ask(
                shell, module=command[2], command=command, argv=["-m", *command[3:]], env=env, cwd=str(cwd),
                first_path=str(cwd), stdout=str(log or os.devnull), stderr=str(log or os.devnull),
            )  # fmt: skip
        finally:
            libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    return ForkedProgram(pid, command)


class ForkedProgram:
    """A child that another process has started, as `subprocess.Popen` shows one."""

    def __init__(self, pid: int, args: list[str]) -> None:
        self.pid = pid
        self.args = args
        self.returncode: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        with self._lock:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end_s = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end_s is not None and time.monotonic() > end_s:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_django(
    env: dict[str, str], *arguments: str, timeout_s: int = 120, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a management command in such a process."""
    code = "from django.core.management import execute_from_command_line; execute_from_command_line()"
    return run_python(code, env, argv=("manage.py", *arguments), timeout_s=timeout_s, check=check)


def _end_shell(shell: Any, owner: int) -> None:
    # A fork of this process has the handler as well.
    if os.getpid() == owner:
        shell.communicate()


def server_env(otel: dict[str, Any] | None = None, **extra: str) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    env.update({"DJANGO_SETTINGS_MODULE": "tests.settings", "PYTHONPATH": str(ROOT), **extra})
    if otel is not None:
        env["TEST_OTEL"] = json.dumps(otel)
    return env
