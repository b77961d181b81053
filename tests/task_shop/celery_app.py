"""The shop's Celery application and tasks."""

from __future__ import annotations

import os
import time

from celery import Celery
from celery.exceptions import Ignore, Reject

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.task_shop.settings")
app = Celery("shop", broker=os.environ.get("TEST_BROKER", "memory://"), backend=os.environ.get("TEST_BROKER"))
app.conf.update(
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
    task_default_queue="shop",
    worker_hijack_root_logger=False,
)
app.autodiscover_tasks(["tests.task_shop"], related_name="nothing")


@app.task(name="orders.send_invoice")
def send_invoice(number: int, secret: str = "") -> str:
    from tests.business_app.models import Order

    Order.objects.update_or_create(number=number, defaults={"status": "paid"})
    return f"result-{secret}"


@app.task(name="orders.nap")
def nap(seconds: float) -> None:
    time.sleep(seconds)


@app.task(name="orders.fail")
def fail(secret: str) -> None:
    raise ValueError(f"password={secret}")


@app.task(name="orders.again", bind=True, max_retries=2)
def again(self, times: int) -> None:
    if self.request.retries < times:
        raise self.retry(countdown=0)


@app.task(name="orders.ignore")
def ignore() -> None:
    raise Ignore


@app.task(name="orders.reject", acks_late=True)
def reject() -> None:
    raise Reject("no", requeue=False)


@app.task(name="orders.too_long", time_limit=1)
def too_long() -> None:
    time.sleep(60)


@app.task(name="orders.soft", soft_time_limit=1)
def soft() -> None:
    time.sleep(60)


@app.task(name="orders.part", ignore_result=False)
def part(number: int, secret: str) -> str:
    return f"result-{secret}"


@app.task(name="orders.whole")
def whole(results: list, number: int = 0) -> None:
    """The end of a chord."""


@app.task(name="orders.late", acks_late=True, reject_on_worker_lost=True)
def late(seconds: float) -> None:
    time.sleep(seconds)
