"""Work outside the request: tasks sent to queues and run by workers, in several libraries.

`runs` measures; each other module attaches it to a library. Imported by the entry points and `django_otel.tasks` alone.
"""
