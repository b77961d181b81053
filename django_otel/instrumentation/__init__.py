"""Instrumentation of Django's own layers and of libraries through official instrumentors.

Imports runtime and everything below it.
"""
