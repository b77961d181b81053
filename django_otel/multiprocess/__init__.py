"""Worker processes that share their numbers: leases, the file format, shared memory, and the reader that merges.

Imports the packages up to tracing.
"""
