"""The three signals: their names, the OTLP protocols, and their endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

SIGNALS = {"TRACES": "traces", "METRICS": "metrics", "LOGS": "logs"}
#: By the name of a protocol in the environment, the exporter that speaks it.
PROTOCOLS = {"grpc": "otlp-grpc", "http/protobuf": "otlp", "http/json": "otlp-json"}


def find_protocol(environ: Mapping[str, str], signal: str) -> str:
    """The exporter that the environment's protocol stands for ("otlp", ...); "" where it names none."""
    for name in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if found := PROTOCOLS.get(environ.get(name, "").strip().lower()):
            return found
    return ""


def add_signal_path(url: str, signal: str) -> str:
    """The URL of one signal below a base URL (OTLP exporter specification, "Endpoint URLs for OTLP/HTTP")."""
    if "://" not in url:
        return url
    # A query stays behind the path: https://host/otlp?tenant=a
    base, mark, query = url.partition("?")
    return f"{base.rstrip('/')}/v1/{signal}{mark}{query}"


def signal_url(url: str, signal: str) -> str:
    """The URL of one signal for a setting, which may be a base URL or the signal's own (that ends in its name)."""
    return url if urlsplit(url).path.rstrip("/").endswith(f"/{signal}") else add_signal_path(url, signal)
