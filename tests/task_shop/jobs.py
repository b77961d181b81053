"""The shop's work as Django's tasks: `django.tasks`, and its backport before Django 6."""

from __future__ import annotations

import os
import signal
import time

import django

if django.VERSION >= (6, 0):
    from django.tasks import task
else:
    from django_tasks import task


@task
def invoice(number: int, secret: str = "") -> str:
    from tests.business_app.models import Order

    Order.objects.create(number=number)
    return f"result-{secret}"


@task
def fail(secret: str) -> None:
    raise ValueError(f"password={secret}")


@task
def outer() -> None:
    invoice.enqueue(1)


@task
async def asynchronous() -> None:
    """Runs on an event loop."""


@task
def nap(seconds: float) -> None:
    time.sleep(seconds)


@task
def die() -> None:
    """Its worker is killed."""
    os.kill(os.getpid(), signal.SIGKILL)
