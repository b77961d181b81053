"""One model, counted by the library in use."""

import os

from django.db import models

if os.environ.get("MOVED_BY") == "django_prometheus":
    from django_prometheus.models import ExportModelOperationsMixin

    Base = ExportModelOperationsMixin("lawn")
else:

    class Base:
        """Nothing to add: the model is registered in settings."""


class Lawn(Base, models.Model):
    """Something to insert, update and delete."""

    location = models.CharField(max_length=100)

    class Meta:
        app_label = "moved"
