"""Test tools over recorded spans, metrics and logs, for any test runner; with pytest also a plugin.

With any test runner:

    class CheckoutTests(TestCase):
        def test_checkout(self):
            with capture_spans() as spans, capture_metrics() as metrics:
                self.client.post("/checkout/")
            self.assertEqual(spans.one("charge_payment").attributes["amount"], 12)
            self.assertEqual(metrics.value("orders.total", region="eu"), 1)

With pytest the same as fixtures:

    def test_checkout(client, otel_spans, otel_metrics):
        client.post("/checkout/")
        assert otel_spans.one("charge_payment").attributes["amount"] == 12

While pytest runs nothing is exported: exporters are replaced by memory. Spans,
logs and numbers begin again with every test. Without django_otel among the
INSTALLED_APPS of configured settings the plugin does nothing.
"""

from __future__ import annotations

import sys

from django_otel.testing.query_limit import assert_max_queries_per_statement
from django_otel.testing.recorded import HistogramDelta, RecordedLogs, RecordedMetrics, RecordedSpans, SpanTree
from django_otel.testing.tools import (
    capture_logs,
    capture_metrics,
    capture_spans,
    override_sampling,
)

if sys.modules.get("pytest") is not None:
    # The entry point names this package, so its hooks and fixtures must be found here.
    from django_otel.testing.plugin import otel_logs as otel_logs
    from django_otel.testing.plugin import otel_metrics as otel_metrics
    from django_otel.testing.plugin import otel_spans as otel_spans
    from django_otel.testing.plugin import pytest_collection as pytest_collection
    from django_otel.testing.plugin import pytest_fixture_setup as pytest_fixture_setup
    from django_otel.testing.plugin import pytest_runtest_setup as pytest_runtest_setup

__all__ = [
    "HistogramDelta",
    "RecordedLogs",
    "RecordedMetrics",
    "RecordedSpans",
    "SpanTree",
    "assert_max_queries_per_statement",
    "capture_logs",
    "capture_metrics",
    "capture_spans",
    "override_sampling",
]
