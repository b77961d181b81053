"""A Celery application over the test project, for a real worker."""

from __future__ import annotations

import logging
import os

import django
from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()

app = Celery("shop", broker=os.environ["TEST_BROKER"], backend=os.environ["TEST_BROKER"])


@app.task
def send_mail(number: int) -> int:
    import django_otel

    with django_otel.span("send mail", number=number):
        logging.getLogger("shop").warning("mail %d", number)
    return number
