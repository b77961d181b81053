"""Live log levels: rows, file, follower, admin page, command."""

from __future__ import annotations

import datetime
import io
import json
import logging
import re
import time

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.test import override_settings
from django.urls import reverse
from django.utils import timezone

from django_otel import runtime
from django_otel.base import guard
from django_otel.base.log_levels import MAX_LEVELS, LiveLevel, levels
from django_otel.live_sampling import follower, log_levels
from django_otel.models import LogLevel, SamplingHost, SamplingPolicy, SamplingRule, SamplingVersion
from django_otel.multiprocess.host_registry import HostRegistry
from django_otel.multiprocess.level_file import FILE_NAME, LevelFile, LevelReading
from tests.services import free_port

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("fresh_policy", "levels_end")]

NAME = "tests.live.shop"


@pytest.fixture
def levels_end():
    yield
    levels.restore_all()


@pytest.fixture
def registry(tmp_path):
    tmp_path.chmod(0o700)
    found = HostRegistry(tmp_path)
    found.join()
    yield found
    found.close()


def level() -> int:
    return logging.getLogger(NAME).level


def add(logger: str = NAME, level: str = "DEBUG", lasts_s: float = 60.0, **values) -> LogLevel:
    end = timezone.now() + datetime.timedelta(seconds=lasts_s)
    return LogLevel.objects.create(logger=logger, level=level, expires_at=end, **values)


def run(*arguments: str) -> tuple[int, str]:
    """Exit code and output of `manage.py otel logs level ...`, white space as one blank."""
    out = io.StringIO()
    code = 0
    try:
        call_command("otel", "logs", "level", *arguments, stdout=out, no_color=True)
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    return code, re.sub(r"\s+", " ", out.getvalue()).strip()


# --- From the rows to the loggers. ---


def test_one_process_publishes_and_another_applies(registry):
    writer, reader = log_levels.LevelFollower(), log_levels.LevelFollower()
    reader.tick(registry)
    row = add()
    writer.poll(registry, is_following=False)
    assert level() == logging.NOTSET
    reader.tick(registry)
    assert level() == logging.DEBUG
    row.delete()
    writer.poll(registry, is_following=False)
    reader.tick(registry)
    assert level() == logging.NOTSET


def test_a_level_ends_without_the_database(registry, pass_time):
    add(lasts_s=600)
    mine = log_levels.LevelFollower()
    mine.poll(registry)
    assert level() == logging.DEBUG
    pass_time(601)
    with override_settings():
        mine.tick(None)
    assert level() == logging.NOTSET


def test_a_tick_asks_no_database(registry, django_assert_num_queries):
    add()
    mine = log_levels.LevelFollower()
    mine.poll(registry)
    with django_assert_num_queries(0):
        for _ in range(3):
            mine.tick(registry)


def test_an_older_reading_changes_nothing():
    mine = log_levels.LevelFollower()
    later = LevelReading((LiveLevel(NAME, "DEBUG", time.time() + 60),), 2.0)
    mine.take(later)
    mine.take(LevelReading((), 1.0))
    assert level() == logging.DEBUG
    mine.end()
    assert level() == logging.NOTSET


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"format": 1}', b'{"format": 2, "began_s": 1, "levels": []}',
        b'{"format": 1, "began_s": 1, "levels": [["a", "DEBUG", NaN]]}',
        b'{"format": 1, "began_s": 1, "levels": [["a", 10, 1]]}',
    ],
    ids=range(9),
)  # fmt: skip
def test_a_damaged_file_is_ignored_and_replaced(registry, content):
    (registry.folder / FILE_NAME).write_bytes(content)
    mine = log_levels.LevelFollower()
    mine.tick(registry)
    add()
    mine.poll(registry)
    assert level() == logging.DEBUG
    assert LevelFile(registry).read().levels[0].logger == NAME


def test_a_missing_table_leaves_sampling_alone(registry, caplog):
    with connection.schema_editor() as editor:
        editor.delete_model(LogLevel)
    try:
        caplog.set_level(logging.WARNING, "django_otel")
        guard.reset()
        log_levels.LevelFollower().poll(registry)
        log_levels.LevelFollower().poll(registry)
        assert caplog.text.count("manage.py migrate django_otel") == 1
        follower.follower().read_and_apply("default")
        assert follower.status()["error"] == ""
        assert run() == (
            1, 'The table of the log levels is missing in database "default". Run: manage.py migrate django_otel'
        )  # fmt: skip
    finally:
        with connection.schema_editor() as editor:
            editor.create_model(LogLevel)


def test_of_all_missing_tables_only_the_sampling_policy_speaks(registry, caplog):
    """One migration makes them all; a table of the levels that is still missing afterwards has its own warning."""
    caplog.set_level(logging.WARNING, "django_otel")
    guard.reset()
    missing = [LogLevel, SamplingHost, SamplingRule, SamplingVersion, SamplingPolicy]
    with connection.schema_editor() as editor:
        for model in missing:
            editor.delete_model(model)
    try:
        mine = follower.follower()
        for _ in range(2):
            mine.read_and_apply("default")
            mine.log_levels.poll(registry)
        assert caplog.text.count("manage.py migrate django_otel") == 1
        with connection.schema_editor() as editor:
            while len(missing) > 1:
                editor.create_model(missing.pop())
        mine.read_and_apply("default")
        mine.log_levels.poll(registry)
        assert caplog.text.count("manage.py migrate django_otel") == 2
        assert "the log levels cannot be read" in caplog.text
    finally:
        with connection.schema_editor() as editor:
            while missing:
                editor.create_model(missing.pop())


def test_follower_applies_and_ends_levels():
    add()
    mine = follower.follower()
    try:
        mine.log_levels.poll(None)
        assert level() == logging.DEBUG
    finally:
        mine.log_levels.end()
    assert level() == logging.NOTSET


def test_records_of_a_lowered_logger_are_exported(otel_logs):
    logger = logging.getLogger(NAME)
    logger.debug("before")
    levels.apply([LiveLevel(NAME, "DEBUG", time.time() + 60)], time.time())
    logger.debug("while")
    levels.restore_all()
    logger.debug("after")
    bodies = [item.log_record.body for item in otel_logs]
    assert [body for body in bodies if body in ("before", "while", "after")] == ["while"]


# --- The page. ---


@pytest.fixture
def staff(client):
    user = User.objects.create_user("ada", password="ada", is_staff=True)
    client.force_login(user)
    return user


def permit(user, *names):
    for name in names:
        user.user_permissions.add(Permission.objects.get(codename=f"{name}_loglevel"))


ADD, LIST = reverse("admin:django_otel_loglevel_add"), reverse("admin:django_otel_loglevel_changelist")
PAGES_OF_ONE = ("change", "delete", "history")


def test_only_its_own_permissions_open_the_page(client, staff):
    assert client.get(LIST).status_code == 403
    staff.user_permissions.add(Permission.objects.get(codename="view_console"))
    assert client.get(LIST).status_code == 403
    permit(staff, "view")
    assert client.get(LIST).status_code == 200
    assert client.get(ADD).status_code == 403
    row = add(note="why")
    page = client.get(reverse("admin:django_otel_loglevel_change", args=[row.pk])).content.decode()
    assert NAME in page and "why" in page and "_save" not in page


def test_setting_and_ending_a_level_on_the_page(client, staff):
    permit(staff, "view", "add", "change", "delete")
    page = client.get(ADD).content.decode()
    assert '<option value="django.request">' in page and '<option value="root">' in page
    values = {"logger": f" {NAME} ", "level": "DEBUG", "lasts": "15m", "note": "incident 7"}
    before_s = time.time()
    assert client.post(ADD, values).status_code == 302
    row = LogLevel.objects.get()
    assert (row.logger, row.level, row.note, row.set_by) == (NAME, "DEBUG", "incident 7", "ada")
    assert before_s + 899 <= row.expires_at.timestamp() <= time.time() + 900
    entry = LogEntry.objects.get()
    assert entry.user == staff and entry.object_repr == f"{NAME}: DEBUG"
    assert "Level DEBUG for 15 min. incident 7" in entry.get_change_message()

    # Again: in place of the first.
    assert client.post(ADD, {**values, "level": "ERROR"}).status_code == 302
    assert LogLevel.objects.get().level == "ERROR"
    listed = client.get(LIST).content.decode()
    assert NAME in listed and "ERROR" in listed and "ada" in listed
    change = reverse("admin:django_otel_loglevel_change", args=[row.pk])
    assert client.post(change, {**values, "level": "INFO", "lasts": "5m"}).status_code == 302
    assert LogLevel.objects.get().level == "INFO"
    assert client.post(reverse("admin:django_otel_loglevel_delete", args=[row.pk]), {"post": "yes"}).status_code == 302
    assert not LogLevel.objects.exists()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"level": "LOUD"}, "Select a valid choice. LOUD is not one of the available choices."),
        ({"level": ""}, "This field is required."),
        ({"lasts": "99d"}, "Select a valid choice."),
        ({"logger": "x" * 201}, "at most 200 characters"),
        ({"logger": "a\x07b"}, "all of them printable"),
        ({"logger": ""}, "This field is required."),
    ],
    ids=range(6),
)
def test_the_page_refuses(admin_client, values, said):
    given = {"logger": NAME, "level": "DEBUG", "lasts": "5m", "note": ""} | values
    response = admin_client.post(ADD, given)
    assert response.status_code == 200 and said in response.content.decode()
    assert not LogLevel.objects.exists()


def test_the_list_is_bounded(admin_client):
    for number in range(MAX_LEVELS):
        add(f"{NAME}.{number}")
    values = {"logger": NAME, "level": "DEBUG", "lasts": "5m", "note": ""}
    assert "which is the maximum" in admin_client.post(ADD, values).content.decode()
    assert run(NAME, "DEBUG")[0] == 1
    # One that is set already may be set again, and what is over does not count.
    assert admin_client.post(ADD, {**values, "logger": f"{NAME}.3"}).status_code == 302
    LogLevel.objects.filter(logger=f"{NAME}.4").update(expires_at=timezone.now())
    assert run(NAME, "DEBUG")[0] == 0
    assert not LogLevel.objects.filter(logger=f"{NAME}.4").exists()


def test_hostile_texts_are_escaped(admin_client):
    add("<script>alert(1)</script>", note="\u202e<b>", set_by="<i>")
    page = admin_client.get(LIST).content.decode()
    assert "<script>alert" not in page and "<b>" not in page.replace("<bdi>", "") and "\u202e" not in page
    row = LogLevel.objects.create(logger="a\u202eb", level="DEBUG", expires_at=timezone.now())
    for name in PAGES_OF_ONE:
        page = admin_client.get(reverse(f"admin:django_otel_loglevel_{name}", args=[row.pk])).content.decode()
        assert "\u202e" not in page, name
    assert "\u202e" not in admin_client.get(LIST).content.decode()


def test_the_page_says_why_nothing_would_happen(admin_client):
    with override_settings(OTEL={"SAMPLING": {"LIVE": False}}):
        assert "SAMPLING.LIVE is False" in admin_client.get(LIST).content.decode()
        assert run(NAME, "DEBUG") == (1, "SAMPLING.LIVE is False, so no process applies a log level.")


@pytest.fixture(params=[False, True], ids=["", "atomic"])
def no_table(request):
    """The table is missing, with and without a transaction for each request."""
    with connection.schema_editor() as editor:
        editor.delete_model(LogLevel)
    connection.settings_dict["ATOMIC_REQUESTS"] = request.param
    yield
    connection.settings_dict["ATOMIC_REQUESTS"] = False
    with connection.schema_editor() as editor:
        editor.create_model(LogLevel)


def test_every_page_that_needs_the_table_says_what_makes_it(admin_client, no_table):
    for address in (LIST, *(reverse(f"admin:django_otel_loglevel_{name}", args=[1]) for name in PAGES_OF_ONE)):
        response = admin_client.get(address)
        assert response.status_code == 503, address
        assert "manage.py migrate django_otel" in response.content.decode(), address
    response = admin_client.post(ADD, {"logger": NAME, "level": "DEBUG", "lasts": "15m", "note": ""})
    assert response.status_code == 503 and "Nothing was saved." in response.content.decode()


def test_staff_who_may_not_see_log_levels_learn_nothing_of_their_table(client, no_table):
    client.force_login(User.objects.create_user("clerk", is_staff=True))
    for address in (LIST, ADD, *(reverse(f"admin:django_otel_loglevel_{name}", args=[1]) for name in PAGES_OF_ONE)):
        response = client.get(address)
        assert response.status_code == 403, address
        assert "migrate" not in response.content.decode()


# --- The command. ---


def test_command_sets_lists_and_ends():
    User.objects.create_user("ada")
    before_s = time.time()
    code, said = run(NAME, "debug", "--for", "10m", "--user", "ada", "--note", "incident 7")
    assert code == 0, said
    assert f"{NAME} has level DEBUG until" in said and "set by ada" in said and "within a second" in said
    row = LogLevel.objects.get()
    assert (row.level, row.set_by, row.note) == ("DEBUG", "ada", "incident 7")
    assert before_s + 599 <= row.expires_at.timestamp() <= time.time() + 600
    entry = LogEntry.objects.get()
    assert entry.user.username == "ada" and "Level DEBUG for 10 min. incident 7" in entry.get_change_message()
    assert "1 log level is set" in run()[1]
    assert json.loads(run("--format", "json")[1])[0]["logger"] == NAME
    assert run(NAME, "--end", "--user", "ada")[0] == 0
    assert not LogLevel.objects.exists() and LogEntry.objects.count() == 2
    assert run(NAME, "--end") == (1, f"No level is set for {NAME}.")
    assert run() == (0, "No temporary log level is set.")


def test_command_names_the_root_logger():
    assert run("", "DEBUG")[0] == 0
    assert LogLevel.objects.get().logger == "root"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((NAME, "LOUD"), "'LOUD' is not a log level; expected one of CRITICAL, ERROR, WARNING, INFO, DEBUG"),
        ((NAME, "NOTSET"), "is not a log level"),
        ((NAME, "DEBUG", "--for", "2d"), "longer than a day"),
        ((NAME, "DEBUG", "--for", "10"), "is not a duration"),
    ],
    ids=range(4),
)
def test_command_line_is_refused(arguments, said):
    with pytest.raises(CommandError, match=re.escape(said)):
        run(*arguments)


def test_command_refuses():
    assert run(NAME)[0] == 1
    assert run(NAME, "DEBUG", "--user", "nobody") == (1, "There is no user 'nobody'; nothing was changed.")
    assert "all of them printable" in run("a\x1b[2J", "DEBUG")[1]
    assert not LogLevel.objects.exists()


def test_command_with_a_database_that_does_not_answer():
    before = connections.settings["default"]
    connections["default"].close()
    connections.settings["default"] = {**before, "HOST": "127.0.0.1", "PORT": str(free_port())}
    if "sqlite" in before["ENGINE"]:
        pytest.skip("SQLite always answers")
    wrapper = connections["default"]
    del connections["default"]
    try:
        assert "does not answer" in run(NAME, "DEBUG")[1]
    finally:
        connections.settings["default"] = before
        connections["default"] = wrapper


def test_nothing_is_started_by_a_save_in_a_test():
    add()
    assert level() == logging.NOTSET
    assert runtime.current().enabled
