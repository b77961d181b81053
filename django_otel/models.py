"""Tables of this app: the admin's sampling policy, its rules, the version of both, and log levels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import fields
from datetime import datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models, router, transaction
from django.db.models.signals import post_save, pre_delete
from django.utils import timezone
from django.utils.translation import gettext, gettext_lazy

from django_otel import conf, signals
from django_otel.base.frozen import record
from django_otel.base.text import visible
from django_otel.config.schema import ConfigError
from django_otel.log_level_model import LogLevel as LogLevel
from django_otel.sampling.policy import MAX_PATTERN, METHODS, TASK_PREFIX

#: In which rules are asked. The newest of equal ones comes first, so that a rule added last has its effect.
RULE_ORDER = ("-priority", "-id")
#: Above it a limit limits nothing; it also keeps infinity and "not a number" out of the column.
HIGHEST_PER_SECOND = 1_000_000.0
LONGEST_SLOW_S = 86_400.0
HIGHEST_PRIORITY = 10_000


def validate_ratio(value: float) -> None:
    """Refuse a ratio outside 0.0 to 1.0, and say how a percentage is written."""
    # Written so that NaN is refused, too.
    if 0.0 <= value <= 1.0:
        return
    values = {"value": f"{value:g}", "ratio": f"{value / 100:g}"}
    if 1.0 < value <= 100.0:
        message = gettext(
            "The ratio is %(value)s; expected a number from 0.0 to 1.0. For %(value)s %% write %(ratio)s."
        )
    else:
        message = gettext("The ratio is %(value)s; expected a number from 0.0 to 1.0.")
    raise ValidationError(message, code="ratio_range", params=values)


def validate_max_per_second(value: float) -> None:
    """Refuse a limit that is not above 0; 0 would read as "no limit" to one and as "nothing" to another."""
    if not 0.0 < value <= HIGHEST_PER_SECOND:
        raise ValidationError(
            gettext(
                "The limit is %(value)s; expected a number above 0 and at most %(most)s. To record nothing, "
                "set the ratio to 0."
            ),
            code="limit_range",
            params={"value": f"{value:g}", "most": f"{HIGHEST_PER_SECOND:g}"},
        )


def validate_keep_slow_s(value: float) -> None:
    """Refuse a duration of a request that is not above 0 seconds, or too long."""
    if not 0.0 < value <= LONGEST_SLOW_S:
        raise ValidationError(
            gettext(
                "The duration is %(value)s; expected seconds above 0 and at most %(most)s. To record "
                "everything, set the ratio to 1."
            ),
            code="slow_range",
            params={"value": f"{value:g}", "most": f"{LONGEST_SLOW_S:g}"},
        )


def validate_path(value: str) -> None:
    """Refuse a glob that can match no path, as it begins with neither "/" nor a wildcard."""
    if value and value[0] not in "/*?[" and not value.startswith(TASK_PREFIX):
        raise ValidationError(
            gettext('%(path)s matches nothing: start it with "/" or "*".'),
            code="path_start",
            params={"path": repr(value)},
        )


def default_keep_errors() -> bool:
    """`SAMPLING.KEEP_ERRORS` of the settings: a new policy changes only what its author has changed.

    The other values of the settings show through where the policy has none.
    """
    try:
        return conf.get_config().sampling.keep_errors
    except ConfigError:
        return False


class SamplingVersion(models.Model):
    """How often the policy or a rule was saved or deleted. It outlives the deletion of the policy.

    Its one row is also the lock of writers: a change of the policy or a
    rule updates it first, so two changes at once come one after the other.
    """

    ONLY_ID = 1

    id = models.PositiveSmallIntegerField(primary_key=True, default=ONLY_ID, editable=False)
    version = models.PositiveBigIntegerField(default=0)
    changed_at = models.DateTimeField(null=True, default=None)
    #: When a page was last looked at that shows the processes of all hosts (`hosts`).
    watched_at = models.DateTimeField(null=True, default=None)

    class Meta:
        default_permissions = ()
        constraints = (models.CheckConstraint(condition=models.Q(id=1), name="django_otel_samplingversion_one_row"),)

    def __str__(self) -> str:
        return f"version {self.version}"


class SamplingPolicy(models.Model):
    """Share of traces that is recorded, from now until `expires_at`, in place of the settings.

    There is one row or none. Saving an instance writes that row; its `version`
    grows by one with each save of it or of a rule, so that a process can say
    which it applied.
    """

    ONLY_ID = 1

    id = models.PositiveSmallIntegerField(primary_key=True, editable=False)
    enabled = models.BooleanField(
        default=True,
        help_text=gettext_lazy("Off: this policy and its rules are ignored and the settings apply. Tracing continues."),
    )
    ratio = models.FloatField(
        validators=[validate_ratio],
        help_text=gettext_lazy(
            "Share of new traces to record: 0 is none, 0.25 is every fourth, 1 is all. Metrics count every "
            "request, at any ratio."
        ),
    )
    max_per_second = models.FloatField(
        gettext_lazy("limit per second"),
        null=True,
        blank=True,
        validators=[validate_max_per_second],
        help_text=gettext_lazy(
            "Maximum new traces per second of one server, over all its processes. Empty: as in the settings."
        ),
    )
    keep_errors = models.BooleanField(
        default=default_keep_errors,
        help_text=gettext_lazy("Record every request that ends in an error, at any ratio."),
    )
    keep_slow_s = models.FloatField(
        gettext_lazy("keep slow, seconds"),
        null=True,
        blank=True,
        validators=[validate_keep_slow_s],
        help_text=gettext_lazy(
            "Record every request that takes at least this long, at any ratio. Empty: as in the settings."
        ),
    )
    expires_at = models.DateTimeField(
        gettext_lazy("until"),
        null=True,
        blank=True,
        help_text=gettext_lazy("The settings apply again from this time on. Empty: until it is changed."),
    )
    note = models.CharField(
        max_length=200,
        blank=True,
        default="",
        help_text=gettext_lazy("The reason for the change. It is kept in the history."),
    )
    version = models.PositiveBigIntegerField(default=0, editable=False)
    updated_at = models.DateTimeField(auto_now=True, editable=False)

    class Meta:
        verbose_name = gettext_lazy("sampling policy")
        verbose_name_plural = gettext_lazy("sampling policy")
        constraints = (
            models.CheckConstraint(condition=models.Q(id=1), name="django_otel_samplingpolicy_one_row"),
            models.CheckConstraint(
                condition=models.Q(ratio__gte=0.0, ratio__lte=1.0),
                name="django_otel_samplingpolicy_ratio",
                violation_error_message=gettext_lazy("The ratio must be a number from 0.0 to 1.0."),
                violation_error_code="ratio_range",
            ),
            # The upper bounds are there for "not a number", which PostgreSQL takes for the greatest of all.
            models.CheckConstraint(
                condition=models.Q(max_per_second__isnull=True)
                | models.Q(max_per_second__gt=0.0, max_per_second__lte=HIGHEST_PER_SECOND),
                name="django_otel_samplingpolicy_limit",
                violation_error_message=gettext_lazy("The limit must be a number above 0, or empty."),
                violation_error_code="limit_range",
            ),
            models.CheckConstraint(
                condition=models.Q(keep_slow_s__isnull=True)
                | models.Q(keep_slow_s__gt=0.0, keep_slow_s__lte=LONGEST_SLOW_S),
                name="django_otel_samplingpolicy_slow",
                violation_error_message=gettext_lazy("The duration must be a number of seconds above 0, or empty."),
                violation_error_code="slow_range",
            ),
        )

    def __str__(self) -> str:
        if self.ratio is None:
            return gettext("sampling policy")
        message = gettext("%(percent)s %% of traces") if self.enabled else gettext("%(percent)s %% of traces (off)")
        return message % {"percent": f"{self.ratio * 100:g}"}

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
            (`objects.create`) or a value out of its range.
        """
        if self.pk is None:
            self.pk = self.ONLY_ID
        alias = using or router.db_for_write(type(self), instance=self)
        with single_change(alias) as change:
            self.version = change.version
            super().save(
                force_insert=force_insert,
                force_update=force_update,
                using=alias,
                update_fields=None if update_fields is None else {*update_fields, "version", "updated_at"},
            )


class SamplingRule(models.Model):
    """A ratio of its own for the requests that a path or a route, and perhaps a method, names.

    Rules are evaluated in the order of `Meta.ordering`: the highest priority
    first, of equal ones the newest; the first that matches decides.
    """

    policy = models.ForeignKey(
        SamplingPolicy,
        on_delete=models.CASCADE,
        related_name="rules",
        default=SamplingPolicy.ONLY_ID,
        editable=False,
        # A rule may stand without a policy: then it applies over the ratio of the settings.
        db_constraint=False,
    )
    path = models.CharField(
        max_length=MAX_PATTERN,
        blank=True,
        default="",
        validators=[validate_path],
        help_text=gettext_lazy("A path with wildcards: /checkout/* is everything below /checkout/."),
    )
    route = models.CharField(
        max_length=MAX_PATTERN,
        blank=True,
        default="",
        help_text=gettext_lazy("A URL pattern of the project, written as in the attribute http.route."),
    )
    method = models.CharField(
        max_length=16,
        blank=True,
        default="",
        choices=[(method, method) for method in METHODS],
        help_text=gettext_lazy("Empty: every method."),
    )
    ratio = models.FloatField(
        validators=[validate_ratio], help_text=gettext_lazy("Share of new traces to record, from 0 to 1.")
    )
    priority = models.SmallIntegerField(
        default=0,
        # SQLite has no bounds of its own.
        validators=[MinValueValidator(-HIGHEST_PRIORITY), MaxValueValidator(HIGHEST_PRIORITY)],
        help_text=gettext_lazy(
            "The highest is evaluated first; at equal priority, the newest. The first match decides."
        ),
    )
    expires_at = models.DateTimeField(
        gettext_lazy("until"),
        null=True,
        blank=True,
        help_text=gettext_lazy("The rule is ignored from this time on. Empty: until it is changed."),
    )
    note = models.CharField(max_length=200, blank=True, default="")

    class Meta:
        verbose_name = gettext_lazy("sampling rule")
        ordering = RULE_ORDER
        constraints = (
            models.CheckConstraint(condition=models.Q(policy=1), name="django_otel_samplingrule_policy"),
            models.CheckConstraint(
                condition=(models.Q(path="") & ~models.Q(route="")) | (~models.Q(path="") & models.Q(route="")),
                name="django_otel_samplingrule_path_or_route",
                violation_error_message=gettext_lazy("Name either a path or a route, not both."),
                violation_error_code="path_or_route",
            ),
            models.CheckConstraint(
                condition=models.Q(ratio__gte=0.0, ratio__lte=1.0),
                name="django_otel_samplingrule_ratio",
                violation_error_message=gettext_lazy("The ratio must be a number from 0.0 to 1.0."),
                violation_error_code="ratio_range",
            ),
            models.CheckConstraint(
                condition=models.Q(method__in=("", *METHODS)),
                name="django_otel_samplingrule_method",
                violation_error_message=gettext_lazy("The method is not known."),
                violation_error_code="method",
            ),
        )

    def __str__(self) -> str:
        share = "" if self.ratio is None else f": {self.ratio * 100:g} %"
        return visible(f"{self.method} {self.path or self.route}".strip()) + share

    def normalise(self) -> None:
        """Bring path, route and method into the form in which they are compared."""
        self.path, self.route, self.method = self.path.strip(), self.route.strip(), self.method.strip().upper()
        if self.route and self.route[0] not in "/*?[" and not self.route.startswith(TASK_PREFIX):
            # As it stands in a URLconf.
            self.route = f"/{self.route}"
        if (self.path or self.route).startswith(TASK_PREFIX):
            # Tasks have no method.
            self.method = ""

    def clean_fields(self, exclude: Iterable[str] | None = None) -> None:
        """As Django does, but without asking whether there is a policy: a rule may stand without one."""
        self.normalise()
        super().clean_fields(exclude={*(exclude or ()), "policy"})

    def save(
        self,
        *,
        force_insert: Any = False,
        force_update: bool = False,
        using: str | None = None,
        update_fields: Iterable[str] | None = None,
    ) -> None:
        """Write the rule; the version of the policy grows, and every process applies it once it is committed.

        Errors: `IntegrityError` from the database for both or neither of path
            and route, and for a value out of its range.
        """
        self.normalise()
        alias = using or router.db_for_write(type(self), instance=self)
        with single_change(alias):
            super().save(force_insert=force_insert, force_update=force_update, using=alias, update_fields=update_fields)


# Names that the models have beside the words of the migrations, so that they need no migration of their own.
_FIELD_NAMES: dict[type[models.Model], dict[str, object]] = {
    SamplingPolicy: {
        "enabled": gettext_lazy("enabled"),
        "ratio": gettext_lazy("ratio"),
        "keep_errors": gettext_lazy("keep errors"),
        "note": gettext_lazy("note"),
    },
    SamplingRule: {
        "path": gettext_lazy("path"),
        "route": gettext_lazy("route"),
        "method": gettext_lazy("method"),
        "ratio": gettext_lazy("ratio"),
        "priority": gettext_lazy("priority"),
        "note": gettext_lazy("note"),
    },
}
for _named, _names in _FIELD_NAMES.items():
    for _name, _words in _names.items():
        _named._meta.get_field(_name).verbose_name = _words  # type: ignore[union-attr]
SamplingRule._meta.verbose_name_plural = gettext_lazy("sampling rules")


class SamplingHost(models.Model):
    """Versions that the processes of one host apply, reported while the page was open (`hosts`)."""

    name = models.CharField(max_length=250, primary_key=True)
    members = models.TextField()
    told_at = models.DateTimeField()

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return self.name


# --- The console's entries in the admin. ---


class Trace(SamplingPolicy):
    """The pages of traces: no table of its own (what they show stands in the store), only a name and a permission.

    A proxy, because `dumpdata` would look for the table of an unmanaged model.
    """

    class Meta:
        proxy = True
        default_permissions = ()
        permissions = (
            ("view_console", "Can view traces and dashboard"),
            ("explain_query", "Can ask the database for query plans"),
        )
        verbose_name = gettext_lazy("trace")
        verbose_name_plural = gettext_lazy("traces")


class Dashboard(SamplingPolicy):
    """The page of figures, likewise; the permission is that of `Trace`."""

    class Meta:
        proxy = True
        default_permissions = ()
        verbose_name = gettext_lazy("dashboard")
        verbose_name_plural = gettext_lazy("dashboard")


# --- The version of both. ---


class Change:
    """Set of rows that are changed together and so have one version."""

    def __init__(self, alias: str, version: int) -> None:
        self.alias = alias
        self.version = version
        self.is_noticed = False


_open_change: ContextVar[Change | None] = ContextVar("django_otel-sampling-change", default=None)


def lock_version(using: str) -> int:
    """Make every other change of the policy and its rules wait until this transaction ends; return the version.

    Must be called inside `transaction.atomic`, and there before anything else
    is read: SQLite gives no write lock to a transaction with an outdated read.
    """
    rows = SamplingVersion._base_manager.using(using).filter(pk=SamplingVersion.ONLY_ID)
    if not rows.update(version=models.F("version")):
        # The first change. If another transaction creates the row now, this one waits and keeps it.
        SamplingVersion._base_manager.using(using).bulk_create([SamplingVersion()], ignore_conflicts=True)
        rows.update(version=models.F("version"))
    return current_version(using)


def current_version(using: str) -> int:
    """The version of the policy and its rules; 0 when there was never any."""
    # A row that was put in by other means than `save()` has a version of its own.
    policies = SamplingPolicy._base_manager.using(using).filter(pk=SamplingPolicy.ONLY_ID)
    return max(_counted_version(using), next(iter(policies.values_list("version", flat=True)[:1]), 0))


def _counted_version(using: str) -> int:
    rows = SamplingVersion._base_manager.using(using).filter(pk=SamplingVersion.ONLY_ID)
    return next(iter(rows.values_list("version", flat=True)[:1]), 0)


@contextlib.contextmanager
def single_change(using: str) -> Iterator[Change]:
    """Everything that is saved or deleted inside, in one transaction, is one change with one version."""
    outer = _open_change.get()
    if outer is not None and outer.alias == using:
        yield outer
        return
    with transaction.atomic(using=using):
        change = Change(using, lock_version(using) + 1)
        versions = SamplingVersion._base_manager.using(using).filter(pk=SamplingVersion.ONLY_ID)
        versions.update(version=change.version, changed_at=timezone.now())
        SamplingPolicy._base_manager.using(using).filter(pk=SamplingPolicy.ONLY_ID).update(version=change.version)
        token = _open_change.set(change)
        try:
            yield change
        finally:
            _open_change.reset(token)


def _on_saved(*, using: str, raw: bool = False, **_: object) -> None:
    _notice(using)


def _on_delete(*, using: str, **_: object) -> None:
    # Before the deletion, not after it: every change locks the version first, or two could wait
    # for each other.
    with single_change(using):
        _notice(using)


def _notice(using: str) -> None:
    change = _open_change.get()
    if change is not None and change.alias == using:
        if change.is_noticed:
            return
        change.is_noticed = True
    signals.sampling_changed.send_robust(sender=SamplingPolicy, using=using)


# Signals rather than the methods: they also cover fixtures and QuerySet.delete().
for _model in (SamplingPolicy, SamplingRule):
    post_save.connect(_on_saved, sender=_model, dispatch_uid=f"django_otel.models.saved.{_model.__name__}")
    pre_delete.connect(_on_delete, sender=_model, dispatch_uid=f"django_otel.models.deleted.{_model.__name__}")


# --- What all rows say together. ---


@record
class PolicyRow:
    """The policy as it is stored in the database; the values are not checked."""

    enabled: bool
    ratio: float
    max_per_second: float | None
    keep_errors: bool
    keep_slow_s: float | None
    expires_at: datetime | None
    note: str


@record
class RuleRow:
    """A rule as it is stored in the database; the values are not checked."""

    id: int
    path: str
    route: str
    method: str
    ratio: float
    priority: int
    expires_at: datetime | None
    note: str


@record
class SamplingState:
    """The policy (None: no row) and its rules, in the order of evaluation, at one moment."""

    version: int
    policy: PolicyRow | None
    rules: tuple[RuleRow, ...]


_POLICY_FIELDS = tuple(field.name for field in fields(PolicyRow))
_RULE_FIELDS = tuple(field.name for field in fields(RuleRow))
#: A change that is committed between two of the queries shows in the version; this often one may come.
_MOST_READINGS = 5


def read_state(using: str) -> SamplingState:
    """The policy, its rules and their version, as of one moment.

    Errors: what the database raises. Four queries, and no transaction: the
    version is read again at the end, and everything is read again if it has grown.
    """
    after = _counted_version(using)
    for _ in range(_MOST_READINGS):
        before = after
        policies = SamplingPolicy._base_manager.using(using).filter(pk=SamplingPolicy.ONLY_ID)
        row: dict[str, Any] | None = next(iter(policies.values("version", *_POLICY_FIELDS)[:1]), None)
        ordered = SamplingRule._base_manager.using(using).order_by(*RULE_ORDER)
        rules = tuple(RuleRow(**values) for values in ordered.values(*_RULE_FIELDS))
        after = _counted_version(using)
        if after == before:
            break
    if row is None:
        return SamplingState(after, None, rules)
    # A row that was put in by other means than `save()` has a version of its own.
    return SamplingState(max(after, row.pop("version")), PolicyRow(**row), rules)
