"""Redaction: sensitive keys and forms, SQL without literals, spans of official instrumentors.

`keys` judges names; `forms`, `paths`, `pairs`, `database_errors`, `commands` and
`personal` find secrets in texts; `scrub` applies them to attributes, spans and
log records. Imports base and metrics.
"""
