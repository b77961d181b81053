"""The scrape and the probes: `/metrics`, `/livez`, `/readyz`, `/startupz`.

`OTelMiddleware` calls these views itself at the paths where the URLconf mounts
them, before any other middleware: a kubelet asks by the pod's address, over
HTTP, and also while the database is down. They answer in plain text to GET and
HEAD, are never cached, never traced and never measured, and a fault in one of
them shows no traceback, not even with DEBUG. Sync, because collecting may call
a project's own callbacks, which may use the database; under ASGI they run in
the thread of sync views.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import ipaddress
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.exceptions import SuspiciousOperation
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils import translation
from django.utils.cache import add_never_cache_headers, patch_vary_headers
from django.utils.module_loading import import_string
from django.utils.translation import gettext, gettext_lazy, ngettext

from django_otel import conf, runtime
from django_otel.base import frozen, guard
from django_otel.base.suppression import suppress_instrumentation
from django_otel.config.schema import Config
from django_otel.own_paths import own_page

if TYPE_CHECKING:
    from django_otel.metrics.exposition import Page

View = Callable[[HttpRequest], HttpResponse]

#: Scrapes that may be rendered at once in this process, and how long one more waits before it is sent away.
_MAX_SCRAPES = 4
_MAX_WAIT_S = 5.0

_PLAIN_TEXT = "text/plain; charset=utf-8"


def _answer(text: object, status: int = 200) -> HttpResponse:
    return HttpResponse(f"{text}\n", status=status, content_type=_PLAIN_TEXT)


def _probe(view: View) -> View:
    """Base of the views."""

    @functools.wraps(view)
    def wrapper(request: HttpRequest, *_captured: object, **_named: object) -> HttpResponse:
        # Values captured by the prefix of the included URLs, such as a tenant, are ignored.
        request.__dict__[_REACHED] = True
        _discard(request)
        if request.method not in ("GET", "HEAD"):
            response = _answer(gettext("Only GET and HEAD are allowed here."), 405)
            response.headers["Allow"] = "GET, HEAD"
        else:
            try:
                # A staff check reads session and user, a callback may query anything: none of it is a trace.
                with suppress_instrumentation():
                    response = view(request)
            except Exception as error:
                guard.report(f"the view {view.__name__}", error)
                response = _answer(gettext("This page failed; the log says why."), 500)
        add_never_cache_headers(response)
        if response.status_code == 503:
            # Django would log each of them as an error, and mail it: `health` logs a change once.
            response._has_been_logged = True  # type: ignore[attr-defined]  # noqa: SLF001 (Django has no public name for it)
        return response

    # ATOMIC_REQUESTS would open a transaction first, which fails while the database is down.
    wrapper._non_atomic_requests = _EveryAlias()  # type: ignore[attr-defined]  # noqa: SLF001 (Django has no public name for it)
    # Django's LoginRequiredMiddleware and CsrfViewMiddleware: access is decided here, and nothing is ever changed.
    wrapper.login_required = False  # type: ignore[attr-defined]
    wrapper.csrf_exempt = True  # type: ignore[attr-defined]
    return own_page(wrapper)


class _EveryAlias:
    """A set that contains every alias of a database."""

    def __contains__(self, alias: object) -> bool:
        return True


def _discard(request: HttpRequest) -> None:
    from django_otel.requests.record import find

    record = find(request)
    if record is not None:
        with guard.contained("leaving a probe out of the telemetry"):
            record.discard()


# --- The probes --------------------------------------------------------------------------------------------------


@_probe
def livez(request: HttpRequest) -> HttpResponse:
    """200 while the process answers."""
    return _answer("ok")


@_probe
def readyz(request: HttpRequest) -> HttpResponse:
    """200 when everything in `HEALTH["READY"]` works, else 503 with the failed checks."""
    return _report_health(request, "readyz", key="ready")


@_probe
def startupz(request: HttpRequest) -> HttpResponse:
    """200 when everything in `HEALTH["STARTUP"]` works, else 503 with the failed checks."""
    return _report_health(request, "startupz", key="startup")


def _report_health(request: HttpRequest, probe: str, key: str) -> HttpResponse:
    ids = _problem_ids()
    if ids:
        return _refuse_faulty(ids)
    config = runtime.current().config
    names = getattr(config.health, key)
    # Late, here and below: every process loads these pages, and few are asked for them at once.
    from django_otel import health

    checks = health.get_checks()
    results = [health.check_started()] if checks is None else checks.evaluate(probe, names, config.health.timeout_s)
    failed = [result for result in results if result.problem]
    status = 503 if failed else 200
    if _is_verbose(request) and _refuse(request, config) is None:
        lines = [
            f"[{'-' if result.problem else '+'}] {result.name} {result.detail or result.problem or 'ok'}"
            f" ({result.duration_s * 1000:.0f} ms)"
            for result in results
        ]
        return _answer("\n".join([*lines, "failed" if failed else "ok"]), status)
    if failed:
        return _answer("failed: " + ", ".join(f"{result.name} ({result.problem})" for result in failed), status)
    return _answer("ok")


def _is_verbose(request: HttpRequest) -> bool:
    """Return whether a line for each check is asked for; not by a query that Django refuses to read."""
    try:
        return "verbose" in request.GET
    except (SuspiciousOperation, ValueError):
        return False


def _problem_ids() -> list[str]:
    problems = conf.get_problems() or runtime.current().problems
    return sorted({problem.id for problem in problems})


def _refuse_faulty(ids: list[str]) -> HttpResponse:
    # Anyone may read this, so it names no value and no key: `manage.py check` does.
    message = gettext("settings.OTEL is not valid: %(ids)s. Run manage.py check.")
    return _answer(message % {"ids": ", ".join(ids)}, 503)


# --- The scrape --------------------------------------------------------------------------------------------------


@_probe
def metrics(request: HttpRequest) -> HttpResponse:
    """Every metric of the process, in the format and compression the scraper asks for."""
    ids = _problem_ids()
    if ids:
        return _refuse_faulty(ids)
    config = runtime.current().config
    refusal = _refuse(request, config)
    if refusal is not None:
        return refusal
    if not config.enabled or "prometheus" not in config.metrics.exporters:
        message = gettext('This page is off: OTEL["ENABLED"] is False or "prometheus" not in METRICS.EXPORTERS.')
        return _answer(message, 404)
    slots = _scrape_slots()
    if not slots.acquire(timeout=_MAX_WAIT_S):
        message = ngettext(
            "%(count)d scrape is under way in this process; try again.",
            "%(count)d scrapes are under way in this process; try again.",
            _MAX_SCRAPES,
        )
        response = _answer(message % {"count": _MAX_SCRAPES}, 503)
        response.headers["Retry-After"] = "5"
        return response
    try:
        return _render(request, config)
    finally:
        slots.release()


def _render(request: HttpRequest, config: Config) -> HttpResponse:
    from django_otel.metrics import exposition, negotiation

    accept = request.META.get("HTTP_ACCEPT")
    page_format = negotiation.negotiate(accept)
    named = negotiation.negotiate_escaping(accept, page_format)
    escaping = named if config.metrics.negotiate_names else ""
    page = exposition.render(
        runtime.current().present(runtime.collect()),
        openmetrics=page_format.is_openmetrics,
        resource_attributes=runtime.current().resource.attributes,
        exemplars=config.metrics.exemplars,
        extra=_include_registry if config.metrics.include_registry else None,
        escaping=escaping,
    )
    is_compressed = negotiation.accepts_gzip(request.META.get("HTTP_ACCEPT_ENCODING"))
    response = HttpResponse(
        negotiation.compress(page) if is_compressed else page, content_type=page_format.content_type_with(named)
    )
    if is_compressed:
        # Also keeps Django's GZipMiddleware from doing it again.
        response.headers["Content-Encoding"] = "gzip"
    patch_vary_headers(response, ("Accept", "Accept-Encoding"))
    return response


def _include_registry(page: Page) -> None:
    from django_otel.metrics.registry import is_multiprocess, render_registry

    if runtime.group_name() is not None and not is_multiprocess():
        guard.warn_once(
            "include registry",
            "METRICS.INCLUDE_REGISTRY shows the numbers of the worker process that answers; they differ from scrape to "
            "scrape. Set PROMETHEUS_MULTIPROC_DIR to a folder that is empty when the server starts: prometheus_client "
            "then adds up all processes.",
        )
    with runtime.store.around_callbacks():
        render_registry(page)


#: By process id; one entry.
_slots: dict[int, threading.BoundedSemaphore] = {}


def _scrape_slots() -> threading.BoundedSemaphore:
    # Created at the first scrape, after gevent has patched threading, and again in a forked child: there a slot that
    # another thread of the parent held would never come back.
    process_id = os.getpid()
    found = _slots.get(process_id)
    if found is None:
        _slots.clear()
        found = _slots.setdefault(process_id, threading.BoundedSemaphore(_MAX_SCRAPES))
    return found


# --- Before every other middleware ----------------------------------------------------------------------------------

#: Set on a request that one of our views has answered.
_REACHED = "_django_otel_reached"


def needs_user(view: View, request: HttpRequest) -> bool:
    """Return whether access to `view` depends on the signed-in user, or on a function of the project."""
    if view is livez or (view is not metrics and not _is_verbose(request)) or _problem_ids():
        return False
    config = runtime.current().config
    allow = config.metrics_view.allow
    if allow == "all":
        return False
    rule = _RULES.get(allow) if isinstance(allow, str) else None
    # A function of the project may look at anything that its middleware adds.
    return rule is None or (rule.staff and not _is_allowed_without_user(request, config, rule))


def call(view: View, request: HttpRequest) -> HttpResponse:
    """Call `view` where no middleware has chosen a language: else it would be that of the thread's last request."""
    with translation.override(translation.get_language_from_request(request)):
        return view(request)


async def call_async(view: View, request: HttpRequest) -> HttpResponse:
    """Call `view` from the event loop."""
    if view is livez:
        # It waits for nothing, and answers while every thread for sync views is taken.
        return livez(request)
    # The scrape calls callbacks of the project: on the thread on which Django runs sync views.
    return await sync_to_async(call, thread_sensitive=view is metrics)(view, request)


def settle(view: View, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    """Answer with `view` if another middleware answered in its place (ALLOWED_HOSTS, a database that is down).

    A browser is redirected to HTTPS, where its session cookie is sent.
    """
    if _REACHED in request.__dict__ or (300 <= response.status_code < 400 and request.COOKIES):
        return response
    return call(view, request)


# --- The page for visitors when a view fails ---------------------------------------------------------------------


def server_error(request: HttpRequest) -> HttpResponse:
    """A page that names the trace, for `handler500 = "django_otel.views.server_error"` in the root URLconf.

    The project's own `500.html` is taken when there is one; it may extend `django_otel/500.html`.
    """
    with guard.contained("the page for a failed request"):
        from django.template import loader

        template = loader.select_template(["500.html", "django_otel/500.html"])
        # No context processors: what they need may be what has failed.
        return HttpResponse(template.render(), status=500)
    from django.views.defaults import server_error as plain_server_error

    return plain_server_error(request)


# --- Who may read the scrape -------------------------------------------------------------------------------------

_PRIVATE_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16",
        "::1/128", "fc00::/7", "fe80::/10",
    )
)  # fmt: skip
#: With one of these the request came through a proxy, and REMOTE_ADDR says nothing about who sent it.
_FORWARDING_HEADERS = frozenset(
    f"HTTP_{name}"
    for name in (
        "FORWARDED", "VIA", "X_REAL_IP", "X_CLIENT_IP", "X_CLUSTER_CLIENT_IP", "X_ORIGINAL_FORWARDED_FOR",
        "X_ORIGINAL_HOST", "X_PROXYUSER_IP", "X_ENVOY_EXTERNAL_ADDRESS", "X_AZURE_CLIENTIP", "X_AZURE_SOCKETIP",
        "TRUE_CLIENT_IP", "CF_CONNECTING_IP", "CF_CONNECTING_IPV6", "CF_RAY", "CDN_LOOP", "FASTLY_CLIENT_IP",
        "FLY_CLIENT_IP", "CLIENT_IP", "X_APPENGINE_USER_IP", "X_AMZN_TRACE_ID", "X_AMZ_CF_ID",
    )
)  # fmt: skip


@frozen.record
class _Rule:
    """Return whether one value of `METRICS_VIEW.ALLOW` admits the request."""

    debug: bool = False
    token: bool = False
    staff: bool = False
    private: bool = False


_RULES = {
    "auto": _Rule(debug=True, token=True, staff=True),
    "private": _Rule(debug=True, token=True, staff=True, private=True),
    "token": _Rule(token=True),
    "staff": _Rule(staff=True),
}

_SEND_IT = gettext_lazy(
    'Send the metrics token as "Authorization: Bearer <token>" (authorization.credentials in Prometheus).'
)
_SET_ONE = gettext_lazy(
    'To let a scraper in, set OTEL["METRICS_VIEW"]["TOKEN"] and have it send "Authorization: Bearer <token>", '
    'or set OTEL["METRICS_VIEW"]["ALLOW"].'
)
_OPEN_IT = gettext_lazy(
    'To let a scraper in, set OTEL["METRICS_VIEW"]["ALLOW"] to "auto" and OTEL["METRICS_VIEW"]["TOKEN"] to what it '
    'sends as "Authorization: Bearer <token>".'
)


def _refuse(request: HttpRequest, config: Config) -> HttpResponse | None:
    """None when this client may read the scrape, else the answer that says how to become one that may."""
    allow = config.metrics_view.allow
    if allow == "all":
        return None
    rule = _RULES.get(allow) if isinstance(allow, str) else None
    if rule is None:
        return None if _is_allowed_by(allow, request) else _answer(_OPEN_IT, 403)
    # The user last, because it may read the session.
    if _is_allowed_without_user(request, config, rule) or (rule.staff and _is_staff(request)):
        return None
    if not (rule.token and config.metrics_view.token):
        return _answer(_SET_ONE if rule.token else _OPEN_IT, 403)
    response = _answer(_SEND_IT, 401)
    # RFC 6750, section 3: the error is named only when a token was sent.
    error = ', error="invalid_token"' if _bearer(request) is not None else ""
    response.headers["WWW-Authenticate"] = f'Bearer realm="metrics"{error}'
    return response


def _is_allowed_without_user(request: HttpRequest, config: Config, rule: _Rule) -> bool:
    token = config.metrics_view.token if rule.token else None
    return bool(
        (rule.debug and settings.DEBUG)
        or (token and _has_token(request, token))
        or (rule.private and _is_private(request))
    )


def _is_allowed_by(allow: Any, request: HttpRequest) -> bool:
    """Return the answer of the project's own function; False if it fails."""
    with guard.contained("METRICS_VIEW.ALLOW"):
        decide = import_string(allow) if isinstance(allow, str) else allow
        verdict = decide(request)
        # A coroutine or a response is true as well: only True opens the page.
        if verdict is True:
            return True
        if not isinstance(verdict, bool):
            close = getattr(verdict, "close", None)
            if callable(close):
                close()
            raise TypeError(f"METRICS_VIEW.ALLOW must return True or False, not {type(verdict).__name__}")
    return False


def _bearer(request: HttpRequest) -> bytes | None:
    """The bearer token as it stood in the request, in bytes; None without one."""
    scheme, _, credentials = str(request.META.get("HTTP_AUTHORIZATION", "")).strip().partition(" ")
    if scheme.lower() != "bearer":
        return None
    credentials = credentials.strip()
    try:
        # Headers reach Django as latin-1, whatever the client meant by its bytes.
        return credentials.encode("latin-1")
    except UnicodeEncodeError:
        return credentials.encode("utf-8", "surrogatepass")


def _has_token(request: HttpRequest, token: str) -> bool:
    given = _bearer(request)
    if given is None:
        return False
    # Digests have one length, so that not even the length of the token shows in the time.
    wanted_digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
    return hmac.compare_digest(hashlib.sha256(given).digest(), wanted_digest)


def _is_private(request: HttpRequest) -> bool:
    """Return whether the client is on this machine or a private network and reached us without a proxy."""
    for key in request.META:
        if key.startswith("HTTP_X_FORWARDED") or key in _FORWARDING_HEADERS:
            return False
    try:
        # A unix socket gives no address, and behind it is usually a proxy.
        address = ipaddress.ip_address(str(request.META.get("REMOTE_ADDR") or ""))
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address.version == network.version and address in network for network in _PRIVATE_NETWORKS)


def _is_staff(request: HttpRequest) -> bool:
    with guard.contained("the staff check of /metrics"):
        # Absent without AuthenticationMiddleware; a user model need not have `is_staff`.
        user = getattr(request, "user", None)
        return bool(
            user is not None
            and getattr(user, "is_authenticated", False)
            and getattr(user, "is_active", False)
            and getattr(user, "is_staff", False)
        )
    return False
