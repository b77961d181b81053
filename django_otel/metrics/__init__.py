"""Metrics: the catalogue, the data model, the cells that hold numbers, their merge, and the Prometheus text.

Imports base.
"""
