"""Live sampling and live log levels: carries the admin's changes to every process.

Imports runtime and everything below it.
"""
