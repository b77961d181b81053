"""The parts of `manage.py demo`: processes, embedded services, an OTLP receiver that counts, and visitors."""
