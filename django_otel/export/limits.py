"""The limits of the SDK's spans, which the settings change in place."""

from __future__ import annotations

from opentelemetry.sdk.trace import SpanLimits

from django_otel.config.schema import Config


def build_span_limits() -> SpanLimits:
    """Limits that `apply_span_limits` changes in place: tracers copy the object, not its values."""
    return SpanLimits(
        max_attributes=128,
        max_span_attributes=128,
        max_events=128,
        max_links=128,
        max_event_attributes=128,
        max_link_attributes=128,
        max_attribute_length=4096,
        max_span_attribute_length=4096,
    )


def apply_span_limits(limits: SpanLimits, config: Config) -> None:
    """Apply the settings' limits to spans started from now on."""
    wanted = config.traces.limits
    limits.max_attributes = limits.max_span_attributes = wanted.attributes
    limits.max_event_attributes = wanted.attributes if wanted.event_attributes is None else wanted.event_attributes
    limits.max_link_attributes = wanted.attributes if wanted.link_attributes is None else wanted.link_attributes
    limits.max_attribute_length = limits.max_span_attribute_length = wanted.attribute_length
    limits.max_events = wanted.events
    limits.max_links = wanted.links


def apply_sdk_span_limits(limits: SpanLimits, own: SpanLimits) -> None:
    """Apply `own` to spans that the SDK creates, except for lengths: it would cut before anything is redacted."""
    for name in ("attributes", "span_attributes", "event_attributes", "link_attributes", "events", "links"):
        setattr(limits, f"max_{name}", getattr(own, f"max_{name}"))
    limits.max_attribute_length = limits.max_span_attribute_length = None
