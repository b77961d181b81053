"""What `manage.py demo` asks of gunicorn; addresses and the number of workers come on the command line."""

from __future__ import annotations

worker_class = "gthread"
threads = 4
# Long enough for a request that waits for the slow bank, short enough for Ctrl-C.
graceful_timeout = 5
timeout = 30
# Newer gunicorns open a control socket in the user's folder; older ones do not know the setting and ignore it here.
control_socket_disable = True
