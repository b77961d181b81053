"""The sdist and the wheel: built from the tracked files, complete, and usable when installed from the file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("build", reason="build is in the extra test")
ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ["", "[httpx,celery,sqlalchemy,fastapi]", "[psycopg,aiohttp-client,urllib3]", "[grpc]"]

USE = """
import django
from django.conf import settings
settings.configure(
    SECRET_KEY="x", DEBUG=True, ALLOWED_HOSTS=["*"], ROOT_URLCONF="used_urls", STATIC_URL="/static/",
    INSTALLED_APPS=["django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes",
                    "django.contrib.sessions", "django.contrib.messages", "django.contrib.staticfiles", "django_otel"],
    MIDDLEWARE=["django_otel.middleware.OTelMiddleware", "django.contrib.sessions.middleware.SessionMiddleware",
                "django.contrib.auth.middleware.AuthenticationMiddleware",
                "django.contrib.messages.middleware.MessageMiddleware"],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True, "OPTIONS": {
        "context_processors": ["django.template.context_processors.request",
                               "django.contrib.auth.context_processors.auth",
                               "django.contrib.messages.context_processors.messages"]}}],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "used.sqlite3"}},
    OTEL={"SERVICE_NAME": "used"},
)
django.setup()
import django_otel
assert "installed" in django_otel.__file__, django_otel.__file__
from django.contrib.auth.models import User
from django.contrib.staticfiles import finders
from django.core.management import call_command
from django.test import Client
call_command("migrate", verbosity=0)
call_command("check")
client = Client()
client.force_login(User.objects.create_superuser("root", "", "x"))
for page in ("/metrics", "/startupz", "/admin/django_otel/samplingpolicy/", "/admin/django_otel/trace/"):
    assert client.get(page, follow=True).status_code == 200, page
from django.utils import translation
for language, text in (("de", "Worker-Prozesse"), ("ar", "العمليات العاملة")):
    with translation.override(language):
        assert translation.gettext("Worker processes") == text
import pathlib
static = pathlib.Path(django_otel.__file__).parent / "static"
files = [path.relative_to(static) for path in static.rglob("*") if path.is_file()]
assert files and all(finders.find(str(path)) for path in files)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Both files, built from a copy of what is tracked, without a network."""
    folder = tmp_path_factory.mktemp("built")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout of Git")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            target = folder / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(folder / "source")],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    [wheel] = (folder / "dist").glob("*.whl")
    [sdist] = (folder / "dist").glob("*.tar.gz")
    return folder / "source", wheel, sdist


def test_both_hold_every_file_of_the_package(built):
    source, wheel, sdist = built
    wanted = {
        path.relative_to(source).as_posix()
        for path in (source / "django_otel").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"django_otel/py.typed", "django_otel/migrations/0001_initial.py"} <= wanted
    assert wanted - set(zipfile.ZipFile(wheel).namelist()) == set()
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert wanted - inside == set()


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_it_works_when_installed_from_the_file(built, tmp_path, kind):
    _, wheel, sdist = built
    target = tmp_path / "installed"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index",
         "--target", str(target), str(wheel if kind == "wheel" else sdist)],
        check=True, timeout=300,
    )  # fmt: skip
    (tmp_path / "used_urls.py").write_text(
        "from django.contrib import admin\nfrom django.urls import include, path\n"
        'urlpatterns = [path("", include("django_otel.urls")), path("admin/", admin.site.urls)]\n'
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "DJANGO_"))}
    env["PYTHONPATH"] = f"{target}{os.pathsep}{tmp_path}"
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.long
@pytest.mark.skipif(os.environ.get("DJANGO_OTEL_LONG") != "1", reason="long: set DJANGO_OTEL_LONG=1")
@pytest.mark.parametrize("extras", EXTRAS)
def test_a_fresh_environment_is_consistent(built, tmp_path, extras):
    """`pip check` has nothing to say after an installation, and after an extra that is added later."""
    _, wheel, _ = built
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=120)
    python = tmp_path / "venv" / "bin" / "python"
    for wanted in dict.fromkeys(["", extras]):
        subprocess.run(
            [python, "-m", "pip", "install", "-q", f"django-otel-kit{wanted} @ {wheel.as_uri()}"],
            check=True,
            timeout=900,
        )
        done = subprocess.run([python, "-m", "pip", "check"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout
