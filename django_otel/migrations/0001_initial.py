from django.db import migrations, models

import django_otel.models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="SamplingPolicy",
            fields=[
                ("id", models.PositiveSmallIntegerField(editable=False, primary_key=True, serialize=False)),
                (
                    "enabled",
                    models.BooleanField(
                        default=True,
                        help_text="Off: this policy is ignored and the settings apply. Tracing itself goes on.",
                    ),
                ),
                (
                    "ratio",
                    models.FloatField(
                        help_text="Share of new traces to record: 0 is none, 0.25 is every fourth, 1 is all. "
                        "Metrics count every request, at any ratio.",
                        validators=[django_otel.models.validate_ratio],
                    ),
                ),
                (
                    "expires_at",
                    models.DateTimeField(
                        blank=True,
                        help_text="The settings apply again from this time on. Empty: until it is changed.",
                        null=True,
                        verbose_name="until",
                    ),
                ),
                (
                    "note",
                    models.CharField(
                        blank=True,
                        default="",
                        help_text="The reason for the change. It is kept in the history.",
                        max_length=200,
                    ),
                ),
                ("version", models.PositiveBigIntegerField(default=0, editable=False)),
                ("updated_at", models.DateTimeField(auto_now=True)),
            ],
            options={
                "verbose_name": "sampling policy",
                "verbose_name_plural": "sampling policy",
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("id", 1)),
                        name="django_otel_samplingpolicy_one_row",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("ratio__gte", 0.0), ("ratio__lte", 1.0)),
                        name="django_otel_samplingpolicy_ratio",
                        violation_error_code="ratio_range",
                        violation_error_message="The ratio must be a number from 0.0 to 1.0.",
                    ),
                ],
            },
        ),
    ]
