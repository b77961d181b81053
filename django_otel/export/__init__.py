"""Export: queues, the OTLP encoder, exporters, the metrics thread, and shutdown.

Imports the packages up to multiprocess.
"""
