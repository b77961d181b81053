"""The shop with Django's own tasks in RQ."""

import os

import django

from tests.task_shop.settings import *  # noqa: F403

INSTALLED_APPS = [*INSTALLED_APPS, "django_rq", "django_tasks_rq"]  # noqa: F405
if django.VERSION < (6, 0):
    INSTALLED_APPS.append("django_tasks")
RQ_QUEUES = {"default": {"URL": os.environ["TEST_BROKER"]}}
TASKS = {"default": {"BACKEND": "django_tasks_rq.RQBackend", "QUEUES": ["default"]}}
