"""Foundations that every other package may import.

Frozen dataclasses, the fault guard, lazy patterns, import hooks, and the non-public names of the
SDK.
"""
