"""Recent traces in one bounded SQLite file: the file, its writer and its reader.

Imports the packages up to export.
"""
