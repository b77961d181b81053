"""Live sampling: carries the policy of the admin to every process.

Imports runtime and everything below it.
"""
