"""The form that sets a log level in the admin."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext, gettext_lazy

from django_otel.base import log_levels
from django_otel.live_sampling import wording as text
from django_otel.live_sampling.isolation import bdi
from django_otel.live_sampling.log_levels import level_alias
from django_otel.log_level_model import TooManyError, refuse_too_many, validate_logger
from django_otel.models import LogLevel

if TYPE_CHECKING:
    _ModelForm = forms.ModelForm[LogLevel]
else:
    # Generic only for the type checker.
    _ModelForm = forms.ModelForm

#: Most names of loggers that the form offers.
_MAX_CHOICES = 300
_LOGGERS_ID = "django-otel-loggers"
_DURATIONS = [(code, words) for code, _, words in text.DURATIONS]


class _LoggerInput(forms.TextInput):
    """The name of a logger, with those of this process to choose from."""

    def render(self, name: str, value: object, attrs: Any = None, renderer: Any = None) -> SafeString:
        shown = super().render(name, value, {**(attrs or {}), "list": _LOGGERS_ID}, renderer)
        options = format_html_join("", '<option value="{}"></option>', ((name,) for name in known_loggers()))
        return shown + format_html('<datalist id="{}">{}</datalist>', _LOGGERS_ID, options)


def known_loggers() -> list[str]:
    """Return the names of the loggers of this process, the root logger first, at most `_MAX_CHOICES`."""
    # A copy: other threads make loggers meanwhile.
    known = dict(logging.root.manager.loggerDict)
    found = sorted(name for name, logger in known.items() if isinstance(logger, logging.Logger))
    return [log_levels.ROOT, *found][:_MAX_CHOICES]


class LogLevelForm(_ModelForm):
    lasts = forms.ChoiceField(
        label=gettext_lazy("For how long"),
        choices=_DURATIONS,
        help_text=gettext_lazy(
            "By the server's clock, starting when you save. The logger then has its previous level again."
        ),
    )

    class Meta:
        model = LogLevel
        fields = ("logger", "level", "note")
        widgets = {
            "logger": _LoggerInput(attrs={"spellcheck": "false", "dir": "ltr", "class": "vTextField"}),
            "note": forms.TextInput(attrs={"dir": "auto", "class": "vTextField"}),
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "level" in self.fields:
            names = log_levels.level_names()
            if self.instance.level and self.instance.level not in names:
                names = [self.instance.level, *names]
            self.fields["level"] = forms.ChoiceField(
                label=gettext("Level"), choices=[(name, name) for name in names], initial="DEBUG"
            )
        if "logger" in self.fields:
            # Else the message about an empty field would be the only answer for the root logger.
            self.fields["logger"].required = True
            self.fields["logger"].help_text = bdi(self.fields["logger"].help_text)

    def clean_logger(self) -> str:
        given = str(self.cleaned_data["logger"])
        validate_logger(given)
        return log_levels.logger_name(given)

    def clean(self) -> None:
        super().clean()
        cleaned = self.cleaned_data
        if self.instance.pk is None and "logger" in cleaned:
            try:
                refuse_too_many(level_alias(), cleaned["logger"])
            except TooManyError as refusal:
                raise ValidationError(str(refusal), code="too_many") from None

    def validate_unique(self) -> None:
        """Setting the level of a logger that has one already replaces it (`LogLevelAdmin.save_model`)."""
