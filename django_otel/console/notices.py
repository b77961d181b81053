"""Sends due notifications: by mail to ADMINS, to a webhook, or to a function of the project.

The store knows what is due and who is sending it, so that of all processes one sends, and the next one that looks goes
on where a process was killed.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPMessage
from typing import IO, Any

from django.conf import settings
from django.core import mail
from django.urls import NoReverseMatch, reverse
from django.utils.translation import gettext, override

from django_otel import runtime
from django_otel.base import forks, guard
from django_otel.config.packages import import_path
from django_otel.tracestore.file import transaction
from django_otel.tracestore.issue_reader import Issue, find_issue
from django_otel.tracestore.issues import Notice, claim_notice, key_of, next_due_s, settle_notice
from django_otel.tracestore.processor import StoreProcessor

#: One notice may take so long, in seconds, where the project's settings say nothing.
TIMEOUT_S = 10.0
#: The thread waits for a notice that is due so soon, in seconds; later ones are found by the look every ten seconds.
_PATIENCE_S = 60.0


def wait_s(console: StoreProcessor) -> float | None:
    """Return how long until the next notice is due, in seconds; None when that is not soon."""
    with console.store().connection() as connection:
        due_s = next_due_s(connection, console.service())
    left_s = None if due_s is None else max(0.1, due_s - time.time())
    return left_s if left_s is not None and left_s <= _PATIENCE_S else None


def send_one(console: StoreProcessor) -> bool:
    """Send the oldest notice that is due; whether there was one. Errors: those of the store."""
    store, service = console.store(), console.service()
    with store.connection() as connection:
        # A look first: most of the time there is none, and a look takes no lock.
        due_s = next_due_s(connection, service)
        if due_s is None or due_s > time.time():
            return False
        with transaction(connection):
            notice = claim_notice(connection, service, time.time())
        issue = find_issue(connection, notice.issue) if notice is not None else None
    if notice is None:
        return False
    is_sent = issue is None or issue.row.state != "open" or _deliver(notice, issue)
    with store.connection() as connection, transaction(connection):
        will_retry = settle_notice(connection, notice, time.time(), is_sent=is_sent)
    if not is_sent and not will_retry:
        guard.warn_once(
            f"notice {notice.target}",
            "django_otel: a notice of an error could not be delivered to %s in %d attempts; it is given up.",
            notice.target.partition(" ")[0],
            notice.attempts,
        )
    return True


def _deliver(notice: Notice, issue: Issue) -> bool:
    target = next((one for one in runtime.current().config.errors.notify if key_of(one) == notice.target), None)
    if target is None:
        # No longer among the settings.
        return True
    content = describe(issue, notice.reason)
    try:
        if target == "mail":
            _mail(content)
        elif "://" in target:
            _post(target, content)
        else:
            with forks.importing.using():
                tell = import_path(target)
            tell(content)
    except Exception as error:
        guard.report("notifying of an error", error)
        return False
    return True


def describe(issue: Issue, reason: str) -> dict[str, object]:
    """Return the payload for a target: redacted, and without secrets of the settings."""
    row = issue.row
    try:
        address = reverse("admin:django_otel_errors_detail", args=[row.id])
    except NoReverseMatch:
        address = ""
    return {
        "event": "error.new" if reason == "new" else "error.back",
        "id": row.id,
        "type": row.type,
        "message": row.message,
        "place": row.place,
        "file": row.file,
        "line": row.line,
        "service": row.service,
        "release": row.last_release,
        "environment": runtime.current().config.environment or "",
        "count": row.count,
        "first_seen": _iso(row.first_s),
        "last_seen": _iso(row.last_s),
        "routes": [route for route, _ in issue.routes[:10]],
        "trace_ids": [seen.trace_id for seen in issue.traces[:5]],
        "path": address,
    }


def _iso(at_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_s))


def _mail(content: Mapping[str, object]) -> None:
    with override(settings.LANGUAGE_CODE):
        what = gettext("New error") if content["event"] == "error.new" else gettext("Error is back")
        title = gettext("%(what)s: %(type)s in %(place)s") % {"what": what, **content}
        lines = [
            f"{content['type']}: {content['message']}",
            "",
            *(
                f"{name}: {value}"
                for name, value in (
                    (gettext("Place"), f"{content['place']} ({content['file']}:{content['line']})"),
                    (gettext("Service"), content["service"]),
                    (gettext("Release"), content["release"]),
                    (gettext("Routes"), ", ".join(map(str, content["routes"]))),  # type: ignore[call-overload]
                    (gettext("First seen"), content["first_seen"]),
                    (gettext("Last seen"), content["last_seen"]),
                    (gettext("In the admin"), content["path"]),
                )
                if value
            ),
        ]
    _mail_admins(" ".join(title.split())[:200], "\n".join(lines))


def _mail_admins(subject: str, body: str) -> None:
    """Do as Django's `mail_admins`, but within a time limit where the settings have none.

    Its argument for a connection is deprecated from Django 6.1 on, and so are settings such as EMAIL_TIMEOUT.
    """
    recipients = [entry[1] if isinstance(entry, list | tuple) else str(entry) for entry in settings.ADMINS]
    if not recipients:
        return
    mailers: Any = getattr(mail, "mailers", None)
    backend: Any = mail.get_connection() if mailers is None else mailers.default
    # That of SMTP has it, with what the settings say.
    if getattr(backend, "timeout", TIMEOUT_S) is None:
        backend.timeout = TIMEOUT_S
    subject = f"{settings.EMAIL_SUBJECT_PREFIX}{subject}"
    backend.send_messages([mail.EmailMessage(subject, body, settings.SERVER_EMAIL, recipients)])


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Treats a redirect as a failure: a notice is meant for the address of the settings."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


def _post(url: str, content: Mapping[str, object]) -> None:
    # "text" is what chat services show of a webhook.
    text = f"{content['type']}: {content['message']} ({content['place']}, {content['service']})"
    body = json.dumps({"text": text, **content}, ensure_ascii=False).encode("utf-8", "replace")
    request = urllib.request.Request(  # noqa: S310 (the settings allow https and this machine alone)
        url, body, {"Content-Type": "application/json", "User-Agent": "django-otel"}, method="POST"
    )
    opener = urllib.request.build_opener(_NoRedirects())
    try:
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            answer.read(1000)
    except urllib.error.HTTPError as error:
        # It is the answer itself, whose connection is open.
        error.close()
        raise
