"""Wagtail's bakerydemo, crawled with django_otel and without it: are the responses equal?

    python3.12 tests/field/bakerydemo.py                     clones it from GitHub, installs it in a temporary folder
    python3.12 tests/field/bakerydemo.py --source DIR        a checkout of bakerydemo instead of a clone
    ... --python PATH                                        an environment that has its requirements and this package

It needs the Python that bakerydemo's Django needs (3.12 for Django 6.0). The
demo's own database is loaded once and copied, so that both sites begin equal.
Each is crawled by Django's test client, in one process: the site as a visitor,
its API and sitemap, then Wagtail's admin as its superuser, at most `--pages`
addresses for each (and 20 minutes for each command).

Prints every address whose status, headers or body differ; the exit code is 1
when one does. What differs in every answer is replaced: CSRF tokens, nonces,
the version in addresses of static files, which is made at each start, and the
minutes of "2 minutes ago". The site without the app is crawled twice: pages
that differ from themselves (Wagtail's random identifiers, and sets in random
order) are compared by status, headers and length alone. Django's own admin is
left out: it lists the app's models, as it should.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = "https://github.com/wagtail/bakerydemo.git"
LIMIT_S = 1200

SETTINGS = """
import os
from bakerydemo.settings.test import *

SECRET_KEY = "crawled"
# Django's pages for developers show the folder and the URLconf.
DEBUG = False
if os.environ.get("CRAWL_WITH_APP"):
    INSTALLED_APPS = [*INSTALLED_APPS, "django_otel"]
    MIDDLEWARE = ["django_otel.middleware.OTelMiddleware", *MIDDLEWARE]
    OTEL = {"SERVICE_NAME": "bakery", "CONSOLE": {"ENABLED": True}, "METRICS_VIEW": {"ALLOW": "all"}}
"""

URLS = """
import os
from django.conf import settings
from django.urls import include, path
from django.views.static import serve
from bakerydemo.urls import urlpatterns

urlpatterns = [path("media/<path:path>", serve, {"document_root": settings.MEDIA_ROOT}), *urlpatterns]

if os.environ.get("CRAWL_WITH_APP"):
    urlpatterns = [path("otel/", include("django_otel.urls")), *urlpatterns]
"""

CRAWL = r"""
import json, re, sys
from collections import deque
from urllib.parse import urldefrag, urljoin, urlsplit

import django

django.setup()
from django.contrib.auth import get_user_model
from django.test import Client

LINK = re.compile(r'''(?:href|src|action)=["']([^"'#]+)''')
RANDOM = [
    (re.compile(r'''(csrf(?:middleware)?_?token["']?(?:\s+value=|[^\w]{1,12}))["']?\w{64}''', re.I), r"\1TOKEN"),
    (re.compile(r'''nonce=["'][^"']+'''), "nonce"),
    (re.compile(r"\?v=[0-9a-f]{8}"), "?v=started"),
    (re.compile(r"\d+\s(second|minute)s?(\sago)?"), "moments"),
]
VOLATILE = ("date", "expires", "last-modified", "server-timing", "set-cookie", "etag")


def read(response):
    if not response.streaming:
        return response.content
    return b"".join(response)


def crawl(client, starts, inside, limit):
    found, waiting = {}, deque(starts)
    while waiting and len(found) < limit:
        path = waiting.popleft()
        if path in found:
            continue
        response = client.get(path)
        headers = {name.lower(): value for name, value in response.items() if name.lower() not in VOLATILE}
        body = read(response)
        response.close()
        text = body.decode("utf-8", "replace") if "charset" in headers.get("content-type", "text/html; charset") or \
            "json" in headers["content-type"] else f"{len(body)} bytes, {hash_of(body)}"
        for pattern, replacement in RANDOM:
            text = pattern.sub(replacement, text)
        headers.pop("content-length", None)
        found[path] = [response.status_code, headers, text]
        links = [headers["location"]] if "location" in headers else []
        if headers.get("content-type", "").startswith("text/html"):
            links += LINK.findall(text)
        for link in links:
            parts = urlsplit(urldefrag(urljoin(f"http://testserver{path}", link.replace("&amp;", "&")))[0])
            address = parts.path + (f"?{parts.query}" if parts.query else "")
            if parts.netloc in ("testserver", "localhost", "localhost:8000") and inside(address):
                waiting.append(address)
    return found


def hash_of(body):
    import hashlib

    return hashlib.sha256(body).hexdigest()


def main():
    limit = int(sys.argv[1])
    visitor = Client(raise_request_exception=False)
    starts = ["/", "/search/?q=bread", "/sitemap.xml", "/api/v2/pages/?limit=20", "/api/v2/images/", "/not-there/"]
    result = {"site": crawl(visitor, starts, lambda path: not path.startswith(("/admin", "/django-admin")), limit)}
    staff = Client(raise_request_exception=False)
    staff.force_login(get_user_model().objects.filter(is_superuser=True).order_by("pk").first())
    inside = lambda path: path.startswith("/admin/") and "logout" not in path
    result["admin"] = crawl(staff, ["/admin/"], inside, limit)
    from django.apps import apps

    if apps.is_installed("django_otel"):
        from django_otel import runtime

        runtime.flush(5)
        page = visitor.get("/otel/metrics").content.decode()
        lines = [line for line in page.splitlines() if line.startswith("http_server_request_duration_seconds_count")]
        result["counted"] = int(sum(float(line.rpartition(" ")[2]) for line in lines))
    json.dump(result, open(sys.argv[2], "w"))


main()
"""


def run(command: list[str | Path], folder: Path, **environment: str) -> None:
    """Run a command in `folder`; CalledProcessError or TimeoutExpired where it does not succeed in time."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "DJANGO_"))}
    env |= {"DJANGO_SETTINGS_MODULE": "crawl_settings", "PYTHONPATH": str(folder), "PYTHONHASHSEED": "0", **environment}
    print("+", " ".join(map(str, command))[:160], flush=True)
    subprocess.run(command, cwd=folder, env=env, check=True, timeout=LIMIT_S)


def prepare(folder: Path, source: Path | None, python: Path | None) -> Path:
    """Put bakerydemo with its data into `folder`, and return the Python that has its requirements."""
    if source is None:
        subprocess.run(["git", "clone", "-q", "--depth", "1", REPOSITORY, str(folder)], check=True, timeout=LIMIT_S)
    else:
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns(".git", "node_modules", "*db"))
    if python is None:
        venv.create(folder.parent / "venv", with_pip=True)
        python = folder.parent / "venv" / "bin" / "python"
        run([python, "-m", "pip", "install", "-q", "-r", "requirements/base.txt", ROOT], folder)
    (folder / "crawl_settings.py").write_text(SETTINGS + 'ROOT_URLCONF = "crawl_urls"\n')
    (folder / "crawl_urls.py").write_text(URLS)
    (folder / "crawl.py").write_text(CRAWL)
    run([python, "manage.py", "migrate", "-v", "0"], folder)
    run([python, "manage.py", "load_initial_data"], folder)
    return python


def reduce(answer: list) -> list:
    """Return the status, the headers and the length of a page that is random in itself."""
    status, headers, text = answer
    return [status, headers, len(text)]


def report(without: dict, again: dict, with_app: dict) -> int:
    """Print what differs between the responses of one part, and return how many addresses do."""
    differing = 0
    for path in sorted({*without, *with_app}):
        before, after = without.get(path), with_app.get(path)
        is_random = before != again.get(path)
        if before == after or (is_random and before and after and reduce(before) == reduce(after)):
            continue
        differing += 1
        print(f"\n{path}: {before and before[:2]} without, {after and after[:2]} with django_otel")
        if before and after:
            lines = difflib.unified_diff(before[2].splitlines(), after[2].splitlines(), lineterm="", n=0)
            print("\n".join(line[:300] for line in list(lines)[:12]))
    return differing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="a checkout of bakerydemo")
    parser.add_argument("--python", type=Path, help="the Python of an environment that has its requirements")
    parser.add_argument("--pages", type=int, default=300, help="addresses of the site, and of the admin")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        first = Path(name) / "without"
        python = prepare(first, options.source, options.python and options.python.absolute())
        again, second = Path(name) / "again", Path(name) / "with"
        for copy in (again, second):
            shutil.copytree(first, copy)
        for folder, environment in ((first, {}), (again, {}), (second, {"CRAWL_WITH_APP": "1"})):
            if environment:
                run([python, "manage.py", "migrate", "-v", "0"], folder, **environment)
            run([python, "crawl.py", str(options.pages), "found.json"], folder, **environment)
            results.append(json.loads((folder / "found.json").read_text()))
    without, again, with_app = results
    differing = 0
    for part in ("site", "admin"):
        differing += report(without[part], again[part], with_app[part])
        statuses = Counter(entry[0] for entry in without[part].values())
        random = sum(answer != again[part].get(path) for path, answer in without[part].items())
        print(f"{part}: {len(without[part])} addresses, by status {dict(sorted(statuses.items()))}; random: {random}")
    print(f"requests counted by django_otel: {with_app['counted']}; addresses that differ: {differing}")
    return differing > 0


if __name__ == "__main__":
    sys.exit(main())
