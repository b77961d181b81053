"""For gunicorn's --preload with gevent workers: Django keeps a connection per thread, so greenlets must be known as
threads before it is loaded, with telemetry and without."""

from gevent import monkey

monkey.patch_all()
