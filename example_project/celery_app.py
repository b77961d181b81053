"""The shop's Celery application: `celery -A example_project.celery_app worker` runs its tasks.

Only where `REDIS_URL` names a broker, see `example_project.shop.tasks`.
"""

from __future__ import annotations

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example_project.settings")

app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
# In every thread of the web server: what shared_task() made sends by this one.
app.set_default()
