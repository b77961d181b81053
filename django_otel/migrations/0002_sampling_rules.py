import django.core.validators
import django.db.models.deletion
from django.db import migrations, models

import django_otel.models


class Migration(migrations.Migration):
    dependencies = [
        ("django_otel", "0001_initial"),
    ]

    operations = [
        migrations.CreateModel(
            name="SamplingRule",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "path",
                    models.CharField(
                        blank=True,
                        default="",
                        help_text="A path with wildcards: /checkout/* is everything below /checkout/.",
                        max_length=200,
                        validators=[django_otel.models.validate_path],
                    ),
                ),
                (
                    "route",
                    models.CharField(
                        blank=True,
                        default="",
                        help_text="A URL pattern of the project, written as in the attribute http.route.",
                        max_length=200,
                    ),
                ),
                (
                    "method",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("GET", "GET"),
                            ("HEAD", "HEAD"),
                            ("POST", "POST"),
                            ("PUT", "PUT"),
                            ("PATCH", "PATCH"),
                            ("DELETE", "DELETE"),
                            ("OPTIONS", "OPTIONS"),
                            ("CONNECT", "CONNECT"),
                            ("TRACE", "TRACE"),
                            ("QUERY", "QUERY"),
                            ("_OTHER", "_OTHER"),
                        ],
                        default="",
                        help_text="Empty: every method.",
                        max_length=16,
                    ),
                ),
                (
                    "ratio",
                    models.FloatField(
                        help_text="Share of new traces to record, from 0 to 1.",
                        validators=[django_otel.models.validate_ratio],
                    ),
                ),
                (
                    "priority",
                    models.SmallIntegerField(
                        default=0,
                        validators=[
                            django.core.validators.MinValueValidator(-10000),
                            django.core.validators.MaxValueValidator(10000),
                        ],
                        help_text="The highest is evaluated first; at equal priority, the newest. The first "
                        "match decides.",
                    ),
                ),
                (
                    "expires_at",
                    models.DateTimeField(
                        blank=True,
                        help_text="The rule is ignored from this time on. Empty: until it is changed.",
                        null=True,
                        verbose_name="until",
                    ),
                ),
                ("note", models.CharField(blank=True, default="", max_length=200)),
            ],
            options={
                "verbose_name": "sampling rule",
                "ordering": ("-priority", "-id"),
            },
        ),
        migrations.CreateModel(
            name="SamplingVersion",
            fields=[
                ("id", models.PositiveSmallIntegerField(default=1, editable=False, primary_key=True, serialize=False)),
                ("version", models.PositiveBigIntegerField(default=0)),
                ("changed_at", models.DateTimeField(default=None, null=True)),
                ("watched_at", models.DateTimeField(default=None, null=True)),
            ],
            options={
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="SamplingHost",
            fields=[
                ("name", models.CharField(max_length=250, primary_key=True, serialize=False)),
                ("members", models.TextField()),
                ("told_at", models.DateTimeField()),
            ],
            options={
                "default_permissions": (),
            },
        ),
        migrations.AddField(
            model_name="samplingpolicy",
            name="keep_errors",
            field=models.BooleanField(
                default=django_otel.models.default_keep_errors,
                help_text="Record every request that ends in an error, at any ratio.",
            ),
        ),
        migrations.AddField(
            model_name="samplingpolicy",
            name="keep_slow_s",
            field=models.FloatField(
                blank=True,
                help_text="Record every request that takes at least this long, at any ratio. Empty: as in the "
                "settings.",
                null=True,
                validators=[django_otel.models.validate_keep_slow_s],
                verbose_name="keep slow, seconds",
            ),
        ),
        migrations.AddField(
            model_name="samplingpolicy",
            name="max_per_second",
            field=models.FloatField(
                blank=True,
                help_text="Maximum new traces per second of one server, over all its processes. Empty: as in "
                "the settings.",
                null=True,
                validators=[django_otel.models.validate_max_per_second],
                verbose_name="limit per second",
            ),
        ),
        migrations.AlterField(
            model_name="samplingpolicy",
            name="enabled",
            field=models.BooleanField(
                default=True,
                help_text="Off: this policy and its rules are ignored and the settings apply. Tracing continues.",
            ),
        ),
        migrations.AddConstraint(
            model_name="samplingpolicy",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("max_per_second__isnull", True),
                    models.Q(("max_per_second__gt", 0.0), ("max_per_second__lte", 1000000.0)),
                    _connector="OR",
                ),
                name="django_otel_samplingpolicy_limit",
                violation_error_code="limit_range",
                violation_error_message="The limit must be a number above 0, or empty.",
            ),
        ),
        migrations.AddConstraint(
            model_name="samplingpolicy",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("keep_slow_s__isnull", True),
                    models.Q(("keep_slow_s__gt", 0.0), ("keep_slow_s__lte", 86400.0)),
                    _connector="OR",
                ),
                name="django_otel_samplingpolicy_slow",
                violation_error_code="slow_range",
                violation_error_message="The duration must be a number of seconds above 0, or empty.",
            ),
        ),
        migrations.AddField(
            model_name="samplingrule",
            name="policy",
            field=models.ForeignKey(
                db_constraint=False,
                default=1,
                editable=False,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="rules",
                to="django_otel.samplingpolicy",
            ),
        ),
        migrations.AddConstraint(
            model_name="samplingversion",
            constraint=models.CheckConstraint(
                condition=models.Q(("id", 1)), name="django_otel_samplingversion_one_row"
            ),
        ),
        migrations.AddConstraint(
            model_name="samplingrule",
            constraint=models.CheckConstraint(
                condition=models.Q(("policy", 1)), name="django_otel_samplingrule_policy"
            ),
        ),
        migrations.AddConstraint(
            model_name="samplingrule",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("path", ""), models.Q(("route", ""), _negated=True)),
                    models.Q(models.Q(("path", ""), _negated=True), ("route", "")),
                    _connector="OR",
                ),
                name="django_otel_samplingrule_path_or_route",
                violation_error_code="path_or_route",
                violation_error_message="Name either a path or a route, not both.",
            ),
        ),
        migrations.AddConstraint(
            model_name="samplingrule",
            constraint=models.CheckConstraint(
                condition=models.Q(("ratio__gte", 0.0), ("ratio__lte", 1.0)),
                name="django_otel_samplingrule_ratio",
                violation_error_code="ratio_range",
                violation_error_message="The ratio must be a number from 0.0 to 1.0.",
            ),
        ),
        migrations.AddConstraint(
            model_name="samplingrule",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "method__in",
                        (
                            "",
                            "GET",
                            "HEAD",
                            "POST",
                            "PUT",
                            "PATCH",
                            "DELETE",
                            "OPTIONS",
                            "CONNECT",
                            "TRACE",
                            "QUERY",
                            "_OTHER",
                        ),
                    )
                ),
                name="django_otel_samplingrule_method",
                violation_error_code="method",
                violation_error_message="The method is not known.",
            ),
        ),
    ]
