"""The shop's work as jobs of RQ."""

from __future__ import annotations

import os
import signal
import time

from redis import Redis
from rq import Queue

queue = Queue("shop", connection=Redis.from_url(os.environ.get("TEST_BROKER", "redis://127.0.0.1:1/0")))


def send_invoice(number: int, secret: str = "") -> str:
    from tests.business_app.models import Order

    Order.objects.create(number=number)
    return f"result-{secret}"


def fail(secret: str) -> None:
    raise ValueError(f"password={secret}")


def die(secret: str) -> None:
    """Its process is killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def nap(seconds: float) -> None:
    time.sleep(seconds)


def fail_once(path: str) -> None:
    """Fail at the first try."""
    if not os.path.exists(path):
        with open(path, "w"):
            pass
        raise ValueError("the first try")
