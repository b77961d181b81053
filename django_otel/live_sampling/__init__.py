"""Live sampling and live log levels: carries what the admin sets to every process.

Imports runtime and everything below it.
"""
