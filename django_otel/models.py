"""The only table of this app: one row with the sampling policy that the admin sets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.core.exceptions import ValidationError
from django.db import models, router, transaction
from django.db.models.signals import post_delete, post_save

from django_otel import live


def validate_ratio(value: float) -> None:
    """Refuse what is no share from 0.0 to 1.0, and say how a percentage is written."""
    # Written so that NaN is refused, too.
    if 0.0 <= value <= 1.0:
        return
    hint = f" For {value:g} % write {value / 100:g}." if 1.0 < value <= 100.0 else ""
    raise ValidationError(f"The ratio is {value:g}; expected a number from 0.0 to 1.0.{hint}", code="ratio_range")


class SamplingPolicy(models.Model):
    """What share of traces is recorded, from now until `expires_at`, whatever the settings say.

    There is one row or none. Saving an instance writes that row; its `version`
    grows by one with each save, so that a process can say which it applied.
    """

    ONLY_ID = 1

    id = models.PositiveSmallIntegerField(primary_key=True, editable=False)
    enabled = models.BooleanField(
        default=True,
        help_text="Off: this policy is ignored and the settings apply. Tracing itself goes on.",
    )
    ratio = models.FloatField(
        validators=[validate_ratio],
        help_text="Share of new traces to record: 0 is none, 0.25 is every fourth, 1 is all. "
        "Metrics count every request, whatever the ratio.",
    )
    expires_at = models.DateTimeField(
        "until",
        null=True,
        blank=True,
        help_text="From then on the settings apply again. Empty: until it is changed.",
    )
    note = models.CharField(
        max_length=200, blank=True, default="", help_text="Why, for whoever looks next. It is kept in the history."
    )
    version = models.PositiveBigIntegerField(default=0, editable=False)
    updated_at = models.DateTimeField(auto_now=True, editable=False)

    class Meta:
        verbose_name = "sampling policy"
        verbose_name_plural = "sampling policy"
        constraints = (
            models.CheckConstraint(condition=models.Q(id=1), name="django_otel_samplingpolicy_one_row"),
            models.CheckConstraint(
                condition=models.Q(ratio__gte=0.0, ratio__lte=1.0),
                name="django_otel_samplingpolicy_ratio",
                violation_error_message="The ratio must be a number from 0.0 to 1.0.",
                violation_error_code="ratio_range",
            ),
        )

    def __str__(self) -> str:
        if self.ratio is None:
            return "sampling policy"
        return f"{self.ratio * 100:g} % of traces{'' if self.enabled else ' (off)'}"

    def save(
        self,
        *,
        force_insert: Any = False,
        force_update: bool = False,
        using: str | None = None,
        update_fields: Iterable[str] | None = None,
    ) -> None:
        """Write the row with the next version; every process applies it once it is committed.

        Errors: `IntegrityError` from the database for a second row
            (`objects.create`) or a ratio outside 0.0 to 1.0.
        """
        if self.pk is None:
            self.pk = self.ONLY_ID
        alias = using or router.db_for_write(type(self), instance=self)
        rows = type(self)._base_manager.using(alias).filter(pk=self.pk)
        with transaction.atomic(using=alias):
            # The update comes first: it locks the row, so two saves at once take two versions.
            rows.update(version=models.F("version") + 1)
            self.version = rows.values_list("version", flat=True).first() or 1
            super().save(
                force_insert=force_insert,
                force_update=force_update,
                using=alias,
                update_fields=None if update_fields is None else {*update_fields, "version", "updated_at"},
            )


def _on_change(*, using: str, **_: object) -> None:
    live.after_commit(using)


# Signals rather than the methods: they also tell of fixtures and of QuerySet.delete().
post_save.connect(_on_change, sender=SamplingPolicy, dispatch_uid="django_otel.models.saved")
post_delete.connect(_on_change, sender=SamplingPolicy, dispatch_uid="django_otel.models.deleted")
