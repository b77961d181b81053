"""The part of django_otel that does not know Django; nothing in here may import it."""
