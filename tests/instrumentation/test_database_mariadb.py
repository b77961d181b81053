"""The cases of `mariadb_cases` on MariaDB from Debian, in a process of their own."""

import os
import shutil
import subprocess
import sys

import pytest

from tests import services
from tests.services import ROOT

pytestmark = pytest.mark.debian


@pytest.fixture(scope="module")
def mariadb_socket(tmp_path_factory):
    """The socket of a MariaDB server with an empty database "shop"."""
    pytest.importorskip("pymysql")
    if shutil.which("mariadbd") is None:
        services.missing("MariaDB is not installed. Run: apt-get install mariadb-server")
    folder = tmp_path_factory.mktemp("mariadb")
    # The server runs as root only when it is named.
    user = ["--user=root"] if os.geteuid() == 0 else []
    common = [*user, f"--datadir={folder}/data"]
    subprocess.run(
        ["mariadb-install-db", "--no-defaults", *common, "--auth-root-authentication-method=normal", "--skip-test-db"],
        check=True,
        capture_output=True,
        timeout=120,
    )
    socket = folder / "socket"
    command = ["mariadbd", "--no-defaults", *common, f"--socket={socket}", "--skip-networking"]
    with services.running(command, log=folder / "log") as process:
        services.wait_until(lambda: socket.exists() or process.poll() is not None, 60, "MariaDB")
        assert process.poll() is None, (folder / "log").read_text()
        import pymysql

        with pymysql.connect(unix_socket=str(socket), user="root") as connection:
            connection.cursor().execute("CREATE DATABASE shop")
        yield str(socket)


def test_the_database_layers_on_mariadb(mariadb_socket):
    finished = subprocess.run(
        [sys.executable, "-m", "tests.mariadb_cases"],
        cwd=ROOT,
        env={**os.environ, "TEST_MARIADB_SOCKET": mariadb_socket},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout
    assert finished.stdout.count("passed") == 6
