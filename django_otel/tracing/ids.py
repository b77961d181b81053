"""Trace and span ids from a random source of our own.

The SDK's generator uses Python's global `random`: a project that seeds it, for
tests or simulations, would get the same ids again and again, in every worker.
"""

from __future__ import annotations

import random

from opentelemetry.sdk.trace.id_generator import IdGenerator


class OwnRandomIdGenerator(IdGenerator):
    """Random ids, never zero. Source: W3C Trace Context level 2, "Random trace id flag"."""

    def __init__(self) -> None:
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: the parent's state would give the parent's ids."""
        #: So many random bits.
        self.bits = random.Random().getrandbits  # noqa: S311 (ids are not secret)

    def generate_trace_id(self) -> int:
        return self.bits(128) or self.generate_trace_id()

    def generate_span_id(self) -> int:
        return self.bits(64) or self.generate_span_id()

    def is_trace_id_random(self) -> bool:
        return True
