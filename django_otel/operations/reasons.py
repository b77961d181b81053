"""Explains why an OTLP receiver rejects exports: sends a bare request to the same address and interprets the answer."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from django.utils.translation import gettext

from django_otel.export.exporters import DEFAULT_HTTP_ENDPOINT, Receiver, grpc_target

_SERVICES = {
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
    "logs": "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
}


def show_url(url: str) -> str:
    """A URL without user, password and query."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def http_url(settings: Receiver, signal: str) -> str:
    """Return where OTLP over HTTP sends `signal`."""
    return settings.endpoint or f"{DEFAULT_HTTP_ENDPOINT}/v1/{signal}"


# --- Why not, over HTTP. ---


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something does not work, and what to do about it."""

    text: str
    advice: str = ""


def probe_http(
    settings: Receiver, signal: str, timeout_s: float, arrived: bool, *, is_json: bool = False
) -> Reason | None:
    """Post an empty message and explain the answer. When our message has arrived only a web page is a fault."""
    import requests

    url = http_url(settings, signal)
    kind = "application/json" if is_json else "application/x-protobuf"
    headers = {"content-type": kind, **settings.headers}
    try:
        # An empty body is an empty message of every signal. A redirect would turn the POST into a GET.
        with requests.post(
            url, b"{}" if is_json else b"", headers=headers, timeout=timeout_s, allow_redirects=False, stream=True
        ) as answer:
            return explain_answer(answer.status_code, answer.headers, url, signal)
    except Exception as error:
        # The exporter has ways of its own (certificates of the environment), so its success counts.
        return None if arrived else explain_http_error(error, url, timeout_s)


def explain_answer(status: int, headers: Mapping[str, str], url: str, signal: str) -> Reason | None:
    """Return the fault in an answer to OTLP over HTTP; None if there is none."""
    place = f'OTEL["{signal.upper()}"]'
    kind = str(headers.get("content-type", "")).partition(";")[0].strip().lower()
    if 200 <= status < 300:
        if kind in ("text/html", "application/xhtml+xml"):
            return Reason(
                gettext("answers %(status)s with a web page (%(type)s), not as an OTLP receiver does.")
                % {"status": status, "type": kind},
                gettext("Another service listens there; check %(setting)s.") % {"setting": f'{place}["ENDPOINT"]'},
            )
        return None
    if 300 <= status < 400:
        where = show_url(str(headers.get("location", "")))
        text = gettext("redirects (%(status)s) to %(address)s.") if where else gettext("redirects (%(status)s).")
        advice = gettext("Set %(setting)s to the final address.") % {"setting": f'{place}["ENDPOINT"]'}
        return Reason(text % {"status": status, "address": where}, advice)
    text, advice = _explain_status(status, urlsplit(url).path or "/", signal, f'{place}["HEADERS"]')
    if kind == "text/html":
        text = " ".join((text, gettext("The answer is a web page (text/html).")))
    return Reason(text, advice)


def _explain_status(status: int, path: str, signal: str, setting: str) -> tuple[str, str]:
    """The meaning of an HTTP status of 400 or more, and what to do."""
    is_receiver = gettext("Is it an OTLP receiver of this signal?")
    look_at = gettext("Check %(setting)s.") % {"setting": setting}
    where = gettext("An OTLP receiver accepts %(signal)s at %(path)s, sometimes below a prefix.") % {
        "signal": signal, "path": f"/v1/{signal}"
    }  # fmt: skip
    known = {
        400: (gettext("answers 400 Bad Request: it did not understand the message."), is_receiver),
        401: (gettext("answers 401 Unauthorized: credentials are missing or wrong."), look_at),
        403: (
            gettext("answers 403 Forbidden: the credentials have no permission to write."),
            gettext("Check %(setting)s and the permissions of its key.") % {"setting": setting},
        ),
        404: (gettext("answers 404 Not Found: nothing at the path %(path)s.") % {"path": path}, where),
        405: (gettext("answers 405 Method Not Allowed: it does not accept POST at this path."), where),
        413: (
            gettext("answers 413: the message is too large for it."),
            gettext("Lower %(setting)s.") % {"setting": 'OTEL["TRACES"]["BATCH"]["BATCH_SIZE"]'},
        ),
        415: (
            gettext("answers 415 Unsupported Media Type: it does not accept protobuf."),
            gettext("Is it an OTLP receiver?"),
        ),
        429: (
            gettext("answers 429 Too Many Requests: it limits the rate."),
            gettext("Sample less, or raise the limit there."),
        ),
    }  # fmt: skip
    if status in known:
        return known[status]
    if status >= 500:
        return gettext("answers %(status)s: an internal error of the receiver.") % {"status": status}, ""
    return gettext("answers %(status)s, which OTLP does not define.") % {"status": status}, ""


def explain_http_error(error: BaseException, url: str, timeout_s: float) -> Reason:
    """Why a request got no answer, from the exception and all that caused it."""
    import requests

    parts = urlsplit(url)
    host = parts.hostname or ""
    chain = list(_causes(error))
    text = " ".join(str(cause) for cause in chain)
    if isinstance(error, requests.exceptions.ProxyError):
        return Reason(
            gettext("the proxy in the environment (HTTP_PROXY, HTTPS_PROXY) rejects the request."),
            gettext("Set NO_PROXY=%(host)s or repair the proxy.") % {"host": host},
        )
    if isinstance(error, requests.exceptions.SSLError):
        return _explain_tls_error(text)
    if any(isinstance(cause, socket.gaierror) for cause in chain) or "NameResolutionError" in text:
        return _unresolved(host)
    if any(isinstance(cause, ConnectionRefusedError) for cause in chain):
        return Reason(*_refused(host, parts.port or (443 if parts.scheme == "https" else 80)))
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return _unanswered(timeout_s)
    # One that ends while the request is sent is none of the timeouts of requests.
    is_cut_off = "Connection aborted" in text and any(isinstance(cause, TimeoutError) for cause in chain)
    if isinstance(error, requests.exceptions.Timeout) or is_cut_off:
        return _hanging(timeout_s)
    if isinstance(error, requests.exceptions.ConnectionError) and _is_nonsense(text):
        return Reason(
            gettext("the server did not answer in HTTP/1.1; it may speak gRPC on this port, or TLS."),
            gettext(
                'OTLP over HTTP usually has port 4318 and gRPC 4317: change the port, or use the exporter "otlp-grpc".'
            ),
        )
    if "unreachable" in text.lower() or "No route" in text:
        return Reason(gettext("the host %(host)s cannot be reached from this network.") % {"host": repr(host)})
    return Reason(gettext("the request failed: %(error)s.") % {"error": name_error(error)})


def _explain_tls_error(text: str) -> Reason:
    if "WRONG_VERSION_NUMBER" in text or "record layer failure" in text.lower():
        return _no_tls()
    if "CERTIFICATE_VERIFY_FAILED" in text:
        if "self" in text or "local issuer" in text:
            said = gettext("TLS failed: the server's certificate is self-signed or of an unknown authority.")
        else:
            said = gettext("TLS failed: the server's certificate is not valid.")
        return Reason(said, gettext("Set OTEL_EXPORTER_OTLP_CERTIFICATE to the file of the authority that signed it."))
    return Reason(
        gettext("TLS failed: the server refused the connection, or client and server support no common version of TLS.")
    )


def _no_tls() -> Reason:
    return Reason(
        gettext("TLS failed: the server does not speak TLS on this port."),
        gettext("Write http:// instead of https://."),
    )


def _hanging(timeout_s: float) -> Reason:
    return Reason(
        gettext("timeout: the connection was accepted, but no answer came within %(seconds)s s.")
        % {"seconds": f"{timeout_s:g}"},
        gettext("The receiver hangs, or another service listens there."),
    )


def _unresolved(host: str) -> Reason:
    return Reason(
        gettext("the host name %(host)s cannot be resolved (DNS).") % {"host": repr(host)},
        gettext("Is the name correct, and does it resolve on this machine?"),
    )


def _unanswered(timeout_s: float) -> Reason:
    return Reason(
        gettext("no response to the connection attempt within %(seconds)s s.") % {"seconds": f"{timeout_s:g}"},
        gettext("The host is down, or a firewall drops packets."),
    )


def _refused(host: str, port: int) -> tuple[str, str]:
    advice = gettext("Is the receiver running, and does it listen on this address?")
    if host in ("localhost", "127.0.0.1", "::1"):
        advice = " ".join((advice, gettext("In a container, localhost is the container itself.")))
    text = gettext("connection refused: nothing listens on %(address)s.")
    return text % {"address": f"{host}:{port}"}, advice


def _is_nonsense(text: str) -> bool:
    marks = ("BadStatusLine", "RemoteDisconnected", "Connection aborted", "reset by peer", "Connection broken")
    return any(mark in text for mark in marks)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, its causes, and those that libraries keep in `reason` and `args`."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        current = waiting.pop(0)
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting += [current.__cause__, current.__context__, getattr(current, "reason", None), *current.args]


def name_error(error: BaseException) -> str:
    """The class of an exception; its text may hold secrets."""
    return type(error).__name__


# --- Why not, over gRPC. ---


def probe_grpc(settings: Receiver, signal: str, timeout_s: float) -> Reason | None:
    """Send an empty message and explain the answer; None when it was taken."""
    if importlib.util.find_spec("grpc") is None:
        return Reason(
            gettext("the package %(name)s is not installed.") % {"name": "grpcio"},
            gettext("Run: %(command)s") % {"command": 'pip install "django-otel-kit[grpc]"'},
        )
    import grpc

    target = grpc_target(settings)
    is_secure = target.startswith("https://")
    address = target.partition("://")[2] or target
    reason = _probe_tcp(address, 443 if is_secure else 80, timeout_s)
    if reason is not None:
        return reason
    channel = (
        grpc.secure_channel(address, grpc.ssl_channel_credentials()) if is_secure else grpc.insecure_channel(address)
    )
    try:
        with channel:
            # Without serialisers: bytes go as they are, and no bytes are an empty message of every signal.
            call = channel.unary_unary(_SERVICES[signal])
            metadata = [(name.lower(), value) for name, value in settings.headers.items()]
            call(b"", timeout=timeout_s, metadata=metadata)
    except grpc.RpcError as error:
        return explain_grpc_error(error.code().name, str(error.details() or ""), signal, is_secure, timeout_s)
    return None


def _probe_tcp(address: str, default_port: int, timeout_s: float) -> Reason | None:
    parts = urlsplit(f"//{address}")
    host, port = parts.hostname or "", parts.port or default_port
    try:
        socket.create_connection((host, port), timeout_s).close()
    except socket.gaierror:
        return _unresolved(host)
    except ConnectionRefusedError:
        return Reason(*_refused(host, port))
    except TimeoutError:
        return _unanswered(timeout_s)
    except OSError as error:
        text = gettext("the host %(host)s cannot be reached: %(reason)s.")
        return Reason(text % {"host": repr(host), "reason": error.strerror or name_error(error)})
    return None


def explain_grpc_error(code: str, details: str, signal: str, is_secure: bool, timeout_s: float) -> Reason:
    """Return the meaning of a gRPC status for an operator."""
    look_at = gettext("Check %(setting)s.") % {"setting": f'OTEL["{signal.upper()}"]["HEADERS"]'}
    low = details.lower()
    if code == "UNAUTHENTICATED":
        return Reason(gettext("UNAUTHENTICATED: credentials are missing or wrong."), look_at)
    if code == "PERMISSION_DENIED":
        return Reason(gettext("PERMISSION_DENIED: the credentials have no permission to write."), look_at)
    if code == "UNIMPLEMENTED":
        return Reason(
            gettext("UNIMPLEMENTED: it speaks gRPC, but does not accept %(signal)s.") % {"signal": signal},
            gettext("Another service listens there."),
        )
    if code == "DEADLINE_EXCEEDED":
        return _hanging(timeout_s)
    if "certificate" in low or "ssl" in low or "tls" in low or "handshak" in low:
        if is_secure and "wrong_version" in low.replace(" ", "_"):
            return _no_tls()
        return Reason(
            gettext("TLS failed: the server's certificate is not accepted, or it does not speak TLS on this port."),
            gettext(
                "Set OTEL_EXPORTER_OTLP_CERTIFICATE to the authority's file, or write http:// for a server without TLS."
            ),
        )
    if code in ("UNAVAILABLE", "UNKNOWN", "INTERNAL"):
        return Reason(
            gettext("%(status)s: the server does not speak gRPC on this port; it may speak HTTP, or TLS.")
            % {"status": code},
            gettext('OTLP over gRPC usually has port 4317 and HTTP 4318: change the port, or use the exporter "otlp".'),
        )
    return Reason(gettext("gRPC status %(status)s.") % {"status": code})
