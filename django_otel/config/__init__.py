"""Configuration: turns settings.OTEL and the environment into one frozen Config, or lists every problem.

Imports the packages up to sampling.
"""
