"""The resource of this process: which service, which instance, which version."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry.sdk import version as sdk_version
from opentelemetry.sdk.resources import Resource

from django_otel._version import __version__
from django_otel.config.schema import Config


def build_resource(config: Config, clean: Callable[[Mapping[str, Any]], Any] | None = None) -> Resource:
    """The resource of this process, through `clean`; `service.instance.id` is new with each call.

    Not `Resource.create`, which runs detectors in a thread pool and reads the
    environment a second time.
    Source: OpenTelemetry semantic conventions, "Service" and "Telemetry SDK".
    """
    attributes: dict[str, Any] = {
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "opentelemetry",
        "telemetry.sdk.version": sdk_version.__version__,
        "telemetry.distro.name": "django-otel-kit",
        "telemetry.distro.version": __version__,
    }
    attributes.update(config.resource)
    attributes["service.name"] = config.service_name or "django"
    if config.service_version is not None:
        attributes["service.version"] = config.service_version
    if config.environment is not None:
        attributes["deployment.environment.name"] = config.environment
    # One that is given is kept, but two processes must not be one instance.
    given = attributes.get("service.instance.id")
    attributes["service.instance.id"] = f"{given}-{uuid.uuid4().hex[:12]}" if given else str(uuid.uuid4())
    return Resource(attributes if clean is None else clean(attributes))
