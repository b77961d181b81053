"""Redaction: sensitive keys and forms, SQL without literals, spans of official instrumentors.

`keys` and `key_judge` judge names; `forms`, `paths`, `pairs`, `database_errors`, `commands` and
`personal` find secrets in texts; `scrub` applies them to attributes and texts,
`sdk_items` to spans and log records. Imports base and metrics.
"""
