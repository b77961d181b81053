"""Processes that run Python code, forked from one that has imported Django already.

See `services.run_python` and `services.run_django`.

Reads requests from the standard input, a JSON object in each line; answers with the exit code of each.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import sys
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


def wait_for_code() -> dict[str, Any]:
    """Return a request, in a process forked for it."""
    for line in sys.stdin.buffer:
        pid = os.fork()
        if pid == 0:
            return json.loads(line)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.write(1, f"{code}\n".encode())
    sys.exit()


def enter(request: dict[str, Any]) -> None:
    """Make this process what a new one would be."""
    os.environ.clear()
    os.environ.update(request["env"])
    signal.alarm(request["timeout_s"])
    for number, path in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        file = os.open(path, os.O_RDWR)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = open(0)
    os.chdir(request["cwd"])
    sys.argv = request["argv"]
    sys.path[0] = ""


def main() -> str:
    """Return code to run, in a process of its own."""
    for name in PRELOADED:
        # A version of Django may lack one.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()
    request = wait_for_code()
    enter(request)
    return request["code"]


if __name__ == "__main__":
    # At the level of the module, so that the process ends as any other does.
    exec(compile(main(), "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
