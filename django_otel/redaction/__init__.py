"""Redaction: sensitive keys and forms, SQL without literals, spans of official instrumentors.

Imports base and metrics.
"""
