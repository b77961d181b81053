"""A small project that is measured by django-prometheus, by django_otel, or by what else `MOVED_BY` names."""
