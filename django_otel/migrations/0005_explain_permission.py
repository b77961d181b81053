from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [
        ("django_otel", "0004_log_levels"),
    ]

    operations = [
        migrations.AlterModelOptions(
            name="trace",
            options={
                "default_permissions": (),
                "permissions": (
                    ("view_console", "Can view traces and dashboard"),
                    ("explain_query", "Can ask the database for query plans"),
                ),
                "verbose_name": "trace",
                "verbose_name_plural": "traces",
            },
        ),
    ]
