"""Starts processes and is sure to stop them again."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_TERMINATE_S = 12.0
_LOG_TAIL_CHARACTERS = 4000


class ProcessFailedError(Exception):
    """A process ended, or did not become ready; the text holds the end of its log."""


def free_port() -> int:
    """Return a free TCP port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Return whether this port of 127.0.0.1 is free."""
    with socket.socket() as probe:
        # As servers do: connections of the past that linger are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Process:
    """A child with its own children, and its log in a file.

    It is the leader of a session of its own: Ctrl-C in the terminal reaches
    only us, so that we decide in which sequence things stop, and whatever the
    child itself started can be found and ended.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, environ: Mapping[str, str], log_path: Path, cwd: Path
    ) -> None:
        self.name = name
        self.log_path = log_path
        with log_path.open("ab") as log:
            self._popen = subprocess.Popen(
                command,
                env=dict(environ),
                cwd=cwd,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def check(self) -> None:
        """Errors: `ProcessFailedError` when the process has ended."""
        code = self._popen.poll()
        if code is not None:
            raise ProcessFailedError(f"{self.name} ended ({describe_exit(code)}). {self.log_tail()}")

    def log_tail(self) -> str:
        """The end of the log, for a human."""
        try:
            text = self.log_path.read_text(errors="replace").strip()
        except OSError:
            text = ""
        if not text:
            return "Its log is empty."
        return f"The end of its log:\n\n{text[-_LOG_TAIL_CHARACTERS:]}\n"

    def ask_to_stop(self) -> None:
        """Send SIGTERM to the leader, which stops its own children in good order."""
        if self._popen.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._popen.terminate()

    def wait_stopped(self, deadline_s: float) -> None:
        """Wait for the end until `deadline_s` (monotonic clock), then kill whatever is left of the session."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(max(0.0, deadline_s - time.monotonic()))
        # Also when the leader has ended well: its children may have survived it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        if self._popen.stdin is not None:
            with contextlib.suppress(OSError):
                self._popen.stdin.close()


class StopFlag:
    """Like `threading.Event`, for signal handlers.

    A handler runs in the main thread, perhaps in the middle of `Event.wait()`,
    whose lock `Event.set()` would then wait for without end.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._told, self._tell = os.pipe()

    def set(self) -> None:
        """Set the flag; takes no lock."""
        if not self._is_set:
            self._is_set = True
            # Never read, so that everybody who waits wakes up, now and later.
            os.write(self._tell, b".")

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the flag is set, `timeout` seconds at most; whether it is."""
        select.select([self._told], [], [], timeout)
        return self._is_set


def stop_all(processes: Sequence[Process]) -> None:
    """Stop all processes at the same time, within `_TERMINATE_S` seconds; those that do not listen are killed."""
    for process in processes:
        process.ask_to_stop()
    deadline_s = time.monotonic() + _TERMINATE_S
    for process in processes:
        process.wait_stopped(deadline_s)


def describe_exit(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
