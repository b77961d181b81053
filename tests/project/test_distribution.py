"""The sdist and the wheel: built from the tracked files, complete, and usable when installed from the file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("build", reason="build is in the extra test")
ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: "test" and "lint" are for contributors, and CI installs both.
SINGLE = sorted(set(PROJECT["optional-dependencies"]) - {"test", "lint"})
EXTRAS = [
    "",
    "httpx,celery,sqlalchemy,fastapi",
    ",".join(SINGLE),
    *SINGLE,
]

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
    OTEL={"SERVICE_NAME": "used", "HEALTH": {"TIMEOUT_S": 60}},
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
    for name in list_tracked():
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


@pytest.mark.long
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
@pytest.mark.long
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


def list_tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout of Git")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.long
def test_the_checkout_stays_clean(tmp_path):
    """After building both files, an editable installation, commands of manage.py and tests with their coverage."""
    for name in list_tracked():
        target = tmp_path / "checkout" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    checkout, python = tmp_path / "checkout", sys.executable
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "DJANGO_", "COVERAGE", "PYTEST_"))
    }
    env["PYTHONPATH"] = str(checkout)

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    run("git", "init", "-q")
    run("git", "add", "--all")
    run("git", "-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-qm", "as it is")
    run(python, "-m", "build", "--no-isolation")
    # Beside this environment, which has the true checkout.
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target",
        str(tmp_path / "installed"), "-e", ".")  # fmt: skip
    run(python, "manage.py", "migrate", "-v", "0")
    run(python, "manage.py", "check")
    run(python, "manage.py", "otel", "config")
    quick = ["tests/sampling/test_policy.py", "tests/project/test_public_names.py"]
    run(python, "-m", "coverage", "run", "-m", "pytest", "-q", "-n", "0", *quick)
    assert run("git", "status", "--porcelain") == ""


#: An environment for each extra takes half an hour; the sets above it have them all.
longest = pytest.mark.skipif(
    os.environ.get("DJANGO_OTEL_LONG") != "all", reason="an environment for each extra: set DJANGO_OTEL_LONG=all"
)


class Environment:
    """A fresh virtual environment with the wheel in it."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
        self.python = folder / "bin" / "python"
        self.wheel = wheel
        self.add("")

    def add(self, extras: str) -> None:
        self.pip("install", "-q", f"django-otel-kit{f'[{extras}]' if extras else ''} @ {self.wheel.as_uri()}")

    def pip(self, *arguments: str) -> None:
        subprocess.run([self.python, "-m", "pip", *arguments], check=True, timeout=900)

    def check(self) -> str:
        """Return what `pip check` finds."""
        done = subprocess.run([self.python, "-m", "pip", "check"], capture_output=True, text=True, timeout=120)
        return done.stdout if done.returncode else ""

    def examine(self) -> tuple[list[str], str]:
        """Return what `manage.py otel doctor` says of the versions: conflicts, and the command that repairs them."""
        program = (
            "import json, django; from django.conf import settings; settings.configure(); django.setup();"
            "from django_otel.operations import versions as v; found = v.installed();"
            "print(json.dumps([v.find_conflicts(found), v.repair_command(found)]))"
        )
        done = subprocess.run([self.python, "-c", program], capture_output=True, text=True, check=True, timeout=120)
        conflicts, command = json.loads(done.stdout)
        return conflicts, command


@pytest.mark.long
@pytest.mark.parametrize(
    "extras", [pytest.param(extras, marks=[longest] if extras in SINGLE else []) for extras in EXTRAS]
)
def test_a_fresh_environment_is_consistent(built, tmp_path, extras):
    """`pip check` has nothing to say after an installation, and after an extra that is added later."""
    environment = Environment(tmp_path / "venv", built[1])
    if extras:
        environment.add(extras)
    assert environment.check() == ""
    assert environment.examine()[0] == []


@pytest.mark.long
def test_the_command_of_the_doctor_repairs_an_environment(built, tmp_path):
    """An instrumentor that was installed by its own name, of a newer release than the SDK."""
    environment = Environment(tmp_path / "venv", built[1])
    environment.pip("install", "-q", "opentelemetry-instrumentation-httpx==0.66b2", "opentelemetry-api==1.45.2")
    assert environment.check() != ""
    conflicts, command = environment.examine()
    assert conflicts
    subprocess.run(command.replace("python ", f"{environment.python} ", 1), shell=True, check=True, timeout=900)
    assert environment.check() == ""
    assert environment.examine()[0] == []
