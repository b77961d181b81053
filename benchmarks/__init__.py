"""What django_otel costs, and what the alternatives cost. See README.md in this folder."""
