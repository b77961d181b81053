"""A model for whatever needs a table."""

from django.db import models


class Item(models.Model):
    name = models.CharField(max_length=200, unique=True)
    price_cents = models.IntegerField(default=0)

    def __str__(self) -> str:
        return self.name
