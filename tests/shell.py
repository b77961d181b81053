"""Processes that run Python code or a program, forked from one that has imported Django already.

See `services.run_python`, `services.run_django` and `services.running`. Arguments are further modules to import.

Reads requests from the standard input, a JSON object in each line. Answers with the exit code of each; for a request
with a "module" at once, with the id of a process that belongs to the process of the tests.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import sys
import time
import types
from pathlib import Path
from typing import Any

#: What takes long to import and reads no settings; nothing of django_otel, whose imports some of the code is about.
PRELOADED = (
    "asyncio",
    "django.contrib.admin.widgets",
    "django.contrib.auth.hashers",
    "django.contrib.contenttypes.checks",
    "django.core.cache.backends.locmem",
    "django.core.handlers.base",
    "django.core.management",
    "django.core.serializers.json",
    "django.db.backends.sqlite3.base",
    "django.db.migrations.executor",
    "django.db.models",
    "django.forms.models",
    "django.template.loader",
    "django.test.signals",
    "django.utils.translation.trans_real",
    "django.views.decorators.csrf",
    "django.views.generic",
    "opentelemetry.sdk.resources",
    "opentelemetry.sdk.trace.export",
    "psutil",
)


def wait_for_request() -> dict[str, Any]:
    """Return a request, in a process forked for it."""
    for line in sys.stdin.buffer:
        request = json.loads(line)
        readable, writable = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(readable)
            if "module" in request:
                leave_to_the_tests(writable)
            os.close(writable)
            return request
        os.close(writable)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if "module" in request:
            with os.fdopen(readable) as answer:
                code = int(answer.read())
        else:
            os.close(readable)
        os.write(1, f"{code}\n".encode())
    sys.exit()


def leave_to_the_tests(answer: int) -> None:
    """Go on in a process and group of its own, and write its id; the tests adopt it when this one ends."""
    if os.fork():
        os._exit(0)
    os.setsid()
    os.write(answer, str(os.getpid()).encode())


def enter(request: dict[str, Any]) -> None:
    """Make this process what a new one would be."""
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    # Ignored in what is started in the background, or by nohup.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for ignored in (signal.SIGQUIT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_DFL)
    signal.alarm(request.get("timeout_s", 0))
    for number, path in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        file = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = open(0)
    os.chdir(request["cwd"])
    sys.argv = request["argv"]
    wanted = [path for path in request["env"].get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [request.get("first_path", ""), *wanted, *(path for path in sys.path[1:] if path not in wanted)]
    if "command" in request:
        sys.orig_argv = request["command"]
        name_process(request["command"])


def name_process(command: list[str]) -> None:
    """Let the system show this command as that of this process, as far as the room for its own reaches."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])
    text = b"\0".join(word.encode() for word in command)[: end - begin - 1]
    ctypes.memmove(begin, text.ljust(end - begin, b"\0"), end - begin)


def main() -> dict[str, Any]:
    """Return a request, in a process of its own."""
    for name in (*PRELOADED, *(name for name in sys.argv[1:] if name.strip())):
        # A version of Django may lack one.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()
    request = wait_for_request()
    enter(request)
    return request


if __name__ == "__main__":
    # At the level of the module, so that the process ends as any other does.
    _request = main()
    if "module" in _request:
        runpy.run_module(_request["module"], run_name="__main__", alter_sys=True)
    else:
        _own, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
        exec(compile(_request["code"], "<string>", "exec"), vars(sys.modules["__main__"]))
