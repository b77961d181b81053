"""The table of temporary log levels."""

from __future__ import annotations

from datetime import datetime

from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.db.models.signals import post_delete, post_save
from django.utils import timezone
from django.utils.translation import gettext, gettext_lazy, ngettext

from django_otel import signals
from django_otel.base import log_levels
from django_otel.base.text import visible


def validate_logger(value: str) -> None:
    """Refuse a name that no logger should have."""
    try:
        log_levels.logger_name(value)
    except ValueError:
        raise ValidationError(
            gettext("A logger's name has at most %(most)s characters, all of them printable."),
            code="logger",
            params={"most": log_levels.MAX_LOGGER_NAME},
        ) from None


def validate_level(value: str) -> None:
    """Refuse a level that logging does not have."""
    if log_levels.level_number(value) is None:
        raise ValidationError(
            gettext("%(level)s is not a log level; expected one of %(levels)s."),
            code="level",
            params={"level": repr(value), "levels": ", ".join(log_levels.level_names())},
        )


class TooManyError(Exception):
    """The maximum number of log levels is set; the text says how to go on."""


class LogLevel(models.Model):
    """A level that one logger has until `expires_at` in every process, in place of that of the settings."""

    logger = models.CharField(
        gettext_lazy("logger"),
        max_length=log_levels.MAX_LOGGER_NAME,
        unique=True,
        validators=[validate_logger],
        help_text=gettext_lazy(
            "The name of a logger, such as django.request or one of your modules. The level also applies to "
            "child loggers that have no level of their own; “root” is the root logger."
        ),
    )
    level = models.CharField(gettext_lazy("level"), max_length=50, validators=[validate_level])
    expires_at = models.DateTimeField(gettext_lazy("until"))
    note = models.CharField(gettext_lazy("note"), max_length=200, blank=True, default="")
    set_by = models.CharField(gettext_lazy("set by"), max_length=200, blank=True, default="", editable=False)
    set_at = models.DateTimeField(gettext_lazy("set at"), auto_now=True, editable=False)

    class Meta:
        verbose_name = gettext_lazy("log level")
        verbose_name_plural = gettext_lazy("log levels")
        ordering = ("logger",)

    def __str__(self) -> str:
        return visible(f"{self.logger}: {self.level}")

    @property
    def is_over(self) -> bool:
        """Return whether it has ended by itself."""
        return self.expires_at <= timezone.now()


def set_level(using: str, logger: str, level: str, expires_at: datetime, *, set_by: str, note: str) -> LogLevel:
    """Let a logger have a level until then, in place of the one set before; rows that are over are removed.

    Errors: `ValidationError`, `TooManyError`; those of the database.
    """
    row = LogLevel(
        logger=logger.strip() or log_levels.ROOT, level=level.upper(), expires_at=expires_at, set_by=set_by[:200],
        note=note,
    )  # fmt: skip
    with transaction.atomic(using=using):
        refuse_too_many(using, row.logger)
        row.full_clean(validate_unique=False)
        save_in_place(using, row)
    return row


def refuse_too_many(using: str, logger: str) -> None:
    """Look whether a level for this logger would be one too many. Errors: `TooManyError`."""
    others = LogLevel._base_manager.using(using).exclude(logger=logger).filter(expires_at__gt=timezone.now())
    if others.count() >= log_levels.MAX_LEVELS:
        raise TooManyError(describe_most())


def save_in_place(using: str, row: LogLevel) -> None:
    """Save a level in place of the one that its logger has already, and remove rows that are over."""
    rows = LogLevel._base_manager.using(using)
    rows.filter(expires_at__lte=timezone.now()).exclude(pk=row.pk).delete()
    if row.pk is None:
        found = rows.filter(logger=row.logger).values_list("pk", flat=True).first()
        row.pk, row._state.adding = found, found is None
    row.save(using=using)


def describe_most() -> str:
    """Return why no further level can be set."""
    message = ngettext(
        "%(most)d log level is set, which is the maximum. End it first.",
        "%(most)d log levels are set, which is the maximum. End one of them first.",
        log_levels.MAX_LEVELS,
    )
    return message % {"most": log_levels.MAX_LEVELS}


def _notice(*, using: str, **_: object) -> None:
    signals.log_levels_changed.send_robust(sender=LogLevel, using=using)


# Signals rather than the methods: they also cover fixtures and QuerySet.delete().
post_save.connect(_notice, sender=LogLevel, dispatch_uid="django_otel.models.saved.LogLevel")
post_delete.connect(_notice, sender=LogLevel, dispatch_uid="django_otel.models.deleted.LogLevel")
