"""The pages of errors, and the notices: by mail, to a webhook, to a function; from several workers each once."""

from __future__ import annotations

import html
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import django
import pytest
from django.core import mail
from django.core.mail.backends.base import BaseEmailBackend
from django.test import Client
from django.utils.translation import gettext_lazy
from opentelemetry import trace

from django_otel import runtime
from django_otel.config.parse import parse
from django_otel.config.schema import ConfigError
from django_otel.console import notices, notify
from django_otel.tracestore.errors import ErrorCollector
from django_otel.tracestore.file import FILE_NAME
from django_otel.tracestore.issue_reader import IssueFilter, list_issues
from django_otel.tracestore.reader import read
from django_otel.tracestore.writer import TraceStore
from tests import services, sizes
from tests.console.test_console import HOSTILE
from tests.tracestore.test_issues import VIEW, catch

LIST = "/admin/django_otel/errors/"
TOLD: list[dict[str, object]] = []


def listen(content):
    TOLD.append(content)


def parse_text(answer):
    """The text of a page, without the elements around it."""
    return html.unescape(re.sub(r"<[^>]+>", "", answer.content.decode()))


def fail(console, *errors, route="/x", span=None):
    for error in errors:
        console.on_error(error, route, span)
    assert console.force_flush()


def issues_of(console):
    with read(console.store()) as reader:
        return list_issues(reader.connection, IssueFilter()).rows


@pytest.mark.usefixtures("db")
def test_the_list_and_an_issue_are_shown(page, console):
    fail(console, catch(VIEW), catch(VIEW), catch(VIEW.replace("ValueError", "KeyError")))
    listed = page(LIST)
    text = parse_text(listed)
    assert listed.status_code == 200
    for part in ("ValueError", "KeyError", "shop.views.view", "/x"):
        assert part in text or part == "/x"
    first = next(row for row in issues_of(console) if row.type == "ValueError")
    shown = page(f"{LIST}{first.id}/")
    text = parse_text(shown)
    for part in ("2 times", "shop.views.view", "/x", "views.py:2"):
        assert part in text, part
    assert "hunter2" not in text + listed.content.decode()


@pytest.mark.usefixtures("db")
def test_nothing_of_an_exception_is_taken_for_markup(page, console):
    fail(console, catch(f"def view():\n    raise ValueError({HOSTILE!r})\n", name=HOSTILE), route=HOSTILE)
    (row,) = issues_of(console)
    for address in (LIST, f"{LIST}?q={HOSTILE}", f"{LIST}{row.id}/"):
        content = page(address).content.decode()
        assert "<script>alert" not in content
        assert "<img src=x" not in content


@pytest.mark.usefixtures("db")
def test_an_issue_is_resolved_ignored_and_opened_again(page, console):
    fail(console, catch(VIEW))
    (row,) = issues_of(console)
    address = f"{LIST}{row.id}/"
    for state in ("resolved", "ignored", "open"):
        assert page.client.post(address, {"state": state}).status_code == 302
        assert [(one.state, one.changed_by) for one in issues_of(console)] == [(state, "viewer")]
        assert ("ValueError" in parse_text(page(LIST))) == (state == "open")
        assert "ValueError" in parse_text(page(f"{LIST}?state={state}"))
    page.client.post(address, {"state": "nonsense"})
    assert issues_of(console)[0].state == "open"


@pytest.mark.usefixtures("db")
def test_a_change_needs_the_csrf_token_and_the_permission(console, viewer):
    fail(console, catch(VIEW))
    client = Client(enforce_csrf_checks=True)
    client.force_login(viewer)
    assert client.post(f"{LIST}1/", {"state": "resolved"}).status_code == 403
    viewer.user_permissions.clear()
    client = Client()
    client.force_login(viewer)
    assert (client.get(LIST).status_code, client.post(f"{LIST}1/").status_code) == (403, 403)


@pytest.mark.usefixtures("db")
@pytest.mark.parametrize("path", ["999/", "x/", "9999999999999999999999/", "\u0663/", "-1/"])
def test_an_issue_that_is_not_there_is_said_to_be_so(page, console, path):
    assert page(f"{LIST}{path}").status_code == 404


@pytest.mark.usefixtures("db")
@pytest.mark.parametrize(
    "query", ["since=nonsense", "until=99999999999d", "sort=nonsense", "state=x", "page=x", "page=999999999", "q=%00"]
)
def test_no_address_breaks_the_list(page, console, query):
    fail(console, catch(VIEW))
    assert page(f"{LIST}?{query}").status_code == 200


@pytest.mark.usefixtures("db")
def test_the_list_is_paged_and_filtered(page, console):
    fail(console, *(catch(VIEW, name=f"m{number}") for number in range(60)))
    assert "page=2" in page(LIST).content.decode()
    assert parse_text(page(f"{LIST}?page=2")).count("ValueError") == 10
    assert parse_text(page(f"{LIST}?q=m17.view")).count("ValueError") == 1


@pytest.mark.usefixtures("db")
def test_frames_open_the_editor_while_debug_is_on(page, console, configure, settings):
    configure(EDITOR_URL="vscode://file/{file}:{line}")
    fail(console, catch(VIEW, file="/srv/my shop/views.py"))
    link = 'href="vscode://file//srv/my%20shop/views.py:2"'
    assert link not in page(f"{LIST}1/").content.decode()
    settings.DEBUG = True
    assert link in page(f"{LIST}1/").content.decode()


@sizes.each(
    "otel",
    [
        {"EDITOR_URL": "vscode://file"}, {"EDITOR_URL": "javascript:alert('{file}{line}')"},
        {"EDITOR_URL": "{file}{line}"},
        {"ERRORS": {"NOTIFY": ["http://example.com/"]}}, {"ERRORS": {"NOTIFY": "mail"}},
        {"ERRORS": {"NOTIFY": ["ftp://example.com/"]}}, {"ERRORS": {"NOTIFY": ["https://"]}},
        {"ERRORS": {"NOTIFY": [7]}},
        {"ERRORS": {"QUIET_S": -1}}, {"ERRORS": {"NOTIFY": ["no-path"]}},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(otel):
    with pytest.raises(ConfigError):
        parse(otel, {})


# --- Notices. ---


@pytest.fixture
def notified(console, monkeypatch, settings):
    """Notices are sent when the test says so."""
    settings.ADMINS = [("Ada", "ada@example.com")]
    if django.VERSION >= (6, 1):
        settings.MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}

    def put(*targets, quiet_s=3600.0):
        asked = parse({"ERRORS": {"NOTIFY": list(targets), "QUIET_S": quiet_s}}, {})
        config = replace(console._config, errors=asked.errors)
        monkeypatch.setattr(console, "_config", config)
        monkeypatch.setattr(runtime.current(), "config", config)

        def send():
            count = 0
            while notices.send_one(console):
                count += 1
            return count

        return send

    TOLD.clear()
    return put


def test_a_new_error_is_mailed_once_redacted(console, notified):
    send = notified("mail")
    fail(console, *(catch(VIEW) for _ in range(5)))
    assert (send(), send()) == (1, 0)
    (message,) = mail.outbox
    assert "ValueError" in message.subject
    assert "hunter2" not in message.body
    assert "/x" in message.body


class Recording(BaseEmailBackend):
    """As the backend of SMTP, it has a time limit."""

    made: list[Recording] = []

    def __init__(self, *arguments, timeout=None, **options):
        super().__init__(*arguments, **options)
        self.timeout = timeout
        self.made.append(self)

    def send_messages(self, messages):
        self.sent = list(messages)
        return len(self.sent)


class Unlimited(Recording):
    """One of a project, which knows none."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        del self.timeout


@pytest.mark.parametrize("admin", [("Ada", "ada@example.com"), "ada@example.com", gettext_lazy("ada@example.com")])
@pytest.mark.parametrize(
    ("name", "options", "timeout_s"),
    [("Recording", {}, notices.TIMEOUT_S), ("Recording", {"timeout": 3}, 3), ("Unlimited", {}, None)],
)
def test_a_mail_has_a_time_limit(console, notified, settings, admin, name, options, timeout_s):
    """From Django 6.1 on the backend and its options stand in MAILERS, and EMAIL_TIMEOUT is not there."""
    backend = f"{__name__}.{name}"
    if django.VERSION >= (6, 1):
        settings.MAILERS = {"default": {"BACKEND": backend, "OPTIONS": options}}
    elif options:
        pytest.skip("the backend itself reads the settings")
    else:
        settings.EMAIL_BACKEND = backend
    Recording.made.clear()
    send = notified("mail")
    settings.ADMINS = [admin]
    fail(console, catch(VIEW))
    assert send() == 1
    [made] = Recording.made
    [message] = made.sent
    assert getattr(made, "timeout", None) == timeout_s
    assert message.to == ["ada@example.com"]
    assert (message.from_email, message.subject[:9]) == (settings.SERVER_EMAIL, settings.EMAIL_SUBJECT_PREFIX)


def test_without_admins_no_mail_is_sent(console, notified, settings):
    send = notified("mail")
    settings.ADMINS = []
    fail(console, catch(VIEW))
    send()
    assert mail.outbox == []


def test_a_function_and_a_webhook_are_given_the_same(console, notified):
    received = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if len(received) == 1 else 204)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        send = notified("tests.console.test_errors.listen", f"http://127.0.0.1:{server.server_port}/hook")
        fail(console, catch(VIEW))
        assert send() == 2
        with console.store().connection() as connection:
            # The answer was 500: it is put off, and sent again when that time has come.
            connection.execute("UPDATE notice SET due_s = 0")
        assert send() == 1
    finally:
        server.shutdown()
        server.server_close()
    assert len(received) == 2
    assert received[0] == received[1]
    (content,) = TOLD
    assert {**received[1], "text": ""} == {**json.loads(json.dumps(content)), "text": ""}
    assert (content["event"], content["type"], content["place"], content["routes"]) == (
        "error.new", "ValueError", "shop.views.view", ["/x"]
    )  # fmt: skip


def test_a_redirect_of_a_webhook_is_not_followed(console, notified):
    asked = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.path)
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        send = notified(f"http://127.0.0.1:{server.server_port}/hook")
        fail(console, catch(VIEW))
        send()
    finally:
        server.shutdown()
        server.server_close()
    assert asked == ["/hook"]


def test_the_thread_sends_without_a_request_waiting(console, notified):
    notified("tests.console.test_errors.listen")
    console.on_notices = notify.notifier.wake
    fail(console, catch(VIEW))
    services.wait_until(lambda: TOLD, 60, "the notice")
    assert len(TOLD) == 1


def test_503_errors_of_three_workers_make_two_issues_and_a_mail_each(tmp_path):
    """Exact counts of unsampled requests over all workers, and one notice of each issue, from one of them."""
    mails = tmp_path / "mails"
    mails.mkdir()
    otel = {
        "SERVICE_NAME": "shop", "SERVICE_VERSION": "1.0.0", "SAMPLING": {"RATIO": 0.0, "LIVE": False},
        "CONSOLE": {"ENABLED": True, "PATH": str(tmp_path / "store")}, "ERRORS": {"NOTIFY": ["mail"]},
    }  # fmt: skip
    store = TraceStore(tmp_path / "store" / FILE_NAME, max_traces=500, max_bytes=64 << 20)

    def counts():
        with read(store) as reader:
            return sorted(row.count for row in list_issues(reader.connection, IssueFilter()).rows)

    def subjects():
        return sorted(
            re.findall(r"^Subject: (.*)", "".join(file.read_text() for file in mails.iterdir()), re.MULTILINE)
        )

    with services.serve("gunicorn", otel, workers=3, TEST_MAILS=str(mails)) as server:
        with ThreadPoolExecutor(6) as pool:
            paths = ["/boom/"] * 500 + ["/async-boom/"] * 3
            assert {answer[0] for answer in pool.map(lambda path: server.get(path, timeout_s=60), paths)} == {500}
        services.wait_until(lambda: counts() == [3, 500], 60, "both issues with their counts")
        services.wait_until(lambda: len(subjects()) == 2, 60, "both mails")
        # Another exception after all of them are stored: no further mail.
        server.get("/boom/", timeout_s=60)
        services.wait_until(lambda: counts() == [3, 501], 60, "one more")
    assert len(subjects()) == 2
    assert all("New error" in subject for subject in subjects())


# --- The request path. ---


def test_every_failed_request_counts_whether_sampled_or_not(client, settings, tmp_path, monkeypatch):
    seen = []
    from django_otel.tracing.exceptions import recording

    monkeypatch.setattr(
        recording, "report", lambda error, route, span: seen.append((type(error).__name__, route, span))
    )
    client.raise_request_exception = False
    for ratio in (0.0, 1.0):
        settings.OTEL = {"SERVICE_NAME": "tests", "SAMPLING": {"RATIO": ratio}}
        monkeypatch.setattr(
            recording, "report", lambda error, route, span: seen.append((type(error).__name__, route, span))
        )
        assert client.get("/boom/").status_code == 500
        assert client.get("/missing/").status_code == 404
        assert client.get("/forbidden/").status_code == 403
    assert [one[1] for one in seen] == ["/boom/", "/boom/"]


def test_the_span_of_an_unsampled_request_is_no_trace_of_the_issue(console):
    console.on_error(catch(VIEW), "/x", trace.NonRecordingSpan(trace.SpanContext(1, 2, False)))
    (pending,) = console.errors.take()
    assert pending.traces == []


def test_a_full_queue_loses_no_count():
    calls = []
    collector = ErrorCollector(lambda: calls.append(1))
    error = catch(VIEW)
    for _ in range(10_000):
        collector.add(error, "/x")
    assert calls == [1]
    assert collector.take()[0].count == 10_000
