"""What each way to observe a Django project adds to a request: `python -m benchmarks.peers`.

One process per configuration, all driving the same project and views in
process, through Django's WSGI or ASGI handler, so that nothing but the
application's side is measured. `__main__` runs everything and needs nothing but
the standard library; `worker` is the measured process; `subjects` switches each
peer on as its documentation says.
"""
