"""Shutdown of everything that exports: in parallel, within one time budget."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from django_otel.base import guard
from django_otel.export.batch import BatchWorker


def is_waiting(part: object) -> bool:
    """Return whether a processor holds something that is not exported yet."""
    worker = getattr(part, "worker", None)
    return isinstance(worker, BatchWorker) and worker.is_used


def shut_down(parts: Sequence[Any], budget_s: float) -> bool:
    """Shut everything down within `budget_s` seconds in all; whether everything was exported.

    All parts begin at once, so that one black hole does not use up the time of the others.
    """
    deadline_s = time.monotonic() + budget_s
    for part in parts:
        with guard.contained("the start of a shutdown"):
            part.start_shutdown() if hasattr(part, "start_shutdown") else part.shutdown()
    done = True
    for part in parts:
        if hasattr(part, "finish_shutdown"):
            with guard.contained("a shutdown"):
                done = part.finish_shutdown(max(0.0, deadline_s - time.monotonic())) and done
    return done
