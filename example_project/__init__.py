"""A small shop and its payment gateway: `django_otel` as a project uses it.

Start everything with `python manage.py demo`.
"""
