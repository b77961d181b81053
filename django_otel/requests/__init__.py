"""One request from start to finish: its span, its metrics, its context.

Imports the packages up to tracestore.
"""
