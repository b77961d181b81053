"""What a request does for live sampling: no query, no cache call, no file, no socket, and none of its locks.

Counted in a process of its own, because an audit hook cannot be taken away again. The process follows a policy with
rules, a limit and tail keeping, whose thread works at the same time; only what the requests' thread does is counted.
"""

from __future__ import annotations

import json
import subprocess
import sys

from tests import services

PROBE = """
import collections, json, sys, threading, time
import django
django.setup()
from django.core.cache import caches
from django.core.cache.backends.base import BaseCache
from django.db import connections
from django.test import Client
from django_otel import runtime
from django_otel.live_sampling import follower
from django_otel.models import SamplingPolicy, SamplingRule

SamplingPolicy(ratio=0.5, max_per_second=50, keep_errors=True, keep_slow_s=10).save()
SamplingRule(path="/orders/*", ratio=1.0).save()
SamplingRule(route="/nested/*", ratio=1.0).save()
client = Client()
client.get("/hello/")
follower = follower.follower()
assert follower.is_following and follower.registry is not None
deadline = time.monotonic() + 20
while runtime.current().sampler.policy.source != "admin" and time.monotonic() < deadline:
    time.sleep(0.05)

main, counted = threading.get_ident(), collections.Counter()
others = collections.Counter()

def count(name):
    (counted if threading.get_ident() == main else others)[name] += 1

class Lock:
    # Stands for one of our locks and counts who takes it.
    def __init__(self, name, inner):
        self.name, self.inner = name, inner
    def acquire(self, *arguments):
        count("lock " + self.name)
        return self.inner.acquire(*arguments)
    def release(self):
        self.inner.release()
    def __enter__(self):
        count("lock " + self.name)
        return self.inner.__enter__()
    def __exit__(self, *error):
        return self.inner.__exit__(*error)

follower._lock = Lock("follower", follower._lock)
runtime.current().lock = Lock("runtime", runtime.current().lock)

def watch(event, arguments):
    if not watching:
        return
    if event in ("open", "sqlite3.connect", "os.listdir", "os.scandir", "os.rename", "os.remove", "fcntl.flock"):
        if event == "open" and str(arguments[0]).endswith((".py", ".pyc")):
            return
        count(event)
    elif event.startswith(("socket.", "subprocess.")):
        count(event)

caches["default"].get("loads the class")
for name in ("get", "set", "get_many", "touch", "incr"):
    for kind in (BaseCache, *BaseCache.__subclasses__()):
        if name in vars(kind):
            def spied(self, *arguments, _inner=vars(kind)[name], _name=name, **keywords):
                count("cache " + _name)
                return _inner(self, *arguments, **keywords)
            setattr(kind, name, spied)
# Opened again, with the spied methods below those that measure it.
del caches["default"]

def query(execute, sql, params, many, context):
    count("query")
    return execute(sql, params, many, context)

watching = False
sys.addaudithook(watch)
WORKED = ("lock follower", "sqlite3.connect")
paths = ["/hello/", "/orders/5/", "/nested/deep/x/", "/json/", "/nowhere/"]
for path in paths:
    client.get(path)  # what is loaded or looked up once
with connections["default"].execute_wrapper(query):
    watching = True
    begun = time.monotonic()
    requests = 0
    while requests < 100 or (min(others[name] for name in WORKED) <= 2 and time.monotonic() < begun + 60):
        for path in paths:
            client.get(path)
            requests += 1
        time.sleep(0.01)
    watching = False
# The counters work: the save that follows is seen by every one of them.
seen = dict(counted)
counted.clear()
watching = True
with connections["default"].execute_wrapper(query):
    SamplingPolicy(ratio=0.25).save()
caches["default"].get("x")
watching = False
print(json.dumps({"requests": requests, "counted": seen, "others": others, "save": counted}))
"""


def test_requests_do_nothing_for_live_sampling_but_compare_and_count(tmp_path):
    """Rules by path and route, limit, tail keeping and a policy of the admin in force, while the thread works."""
    otel = {
        "SERVICE_NAME": "path",
        "METRICS": {"SHARED_DIR": str(tmp_path)},
        "SAMPLING": {"REFRESH_S": 0.3},
    }
    env = services.server_env(otel, TEST_SQLITE=str(tmp_path / "db.sqlite3"))
    services.migrate_database(env)
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=services.ROOT, env=env, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["requests"] >= 100
    assert found["counted"] == {}
    # The thread has worked meanwhile, and the counters count.
    assert found["others"]["lock follower"] > 2
    assert found["others"]["sqlite3.connect"] > 2
    assert found["save"]["query"] >= 1
    assert found["save"]["lock follower"] >= 1
    assert found["save"]["open"] >= 1
    assert found["save"]["cache get"] == 1
