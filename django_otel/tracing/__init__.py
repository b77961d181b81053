"""Tracing: spans, ids, propagation and the tail buffer.

Imports the packages up to config.
"""
