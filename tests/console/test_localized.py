"""Numbers and sentences of the console in other languages."""

from __future__ import annotations

import re

import pytest
from django.utils import translation

from django_otel.console import dashboard, text
from django_otel.templatetags.otel_console import bdi


@pytest.mark.parametrize(("language", "separator"), [("en", "."), ("de", ","), ("ar", ","), ("fr", ",")])
def test_figures_have_the_decimal_separator_of_the_language(language, separator):
    with translation.override(language):
        shown = [
            text.duration(2_400_000), text.duration(1_250_000_000), text.duration(24_000_000), text.count(3.5),
            text.count(34_000_000), text.share(0.0005), text.share(0.015), dashboard.figure(3.5), dashboard.rate(12.5),
            dashboard.rate(0.05),
        ]  # fmt: skip
    assert shown == [
        figure.replace(".", separator)
        for figure in (
            "2.40 ms",
            "1.25 s",
            "24.0 ms",
            "3.50",
            "34.0 M",
            "< 0.1 %",
            "1.5 %",
            "3.5",
            "12.5 / s",
            "3 / min",
        )
    ]


@pytest.mark.parametrize("language", ["en", "de", "ar"])
def test_whole_numbers_are_grouped_by_a_space_that_is_no_separator_of_any_language(language):
    with translation.override(language):
        assert text.count(1_250_000) == "1\u202f250\u202f000"


@pytest.mark.parametrize(
    ("sentence", "parts"),
    [
        ("2026-12-01 03:27:31 CST (بعد 1 d 23 h)", ["2026-12-01 03:27:31 CST", "1 d 23 h"]),
        ('100 %، من الإعدادات، OTEL["SAMPLING"]["RATIO"]', ["100 %", "OTEL[&quot;SAMPLING&quot;][&quot;RATIO&quot;]"]),
        ("القاعدة /hello/*: انتهت", ["/hello/*"]),
        ("46,8 / min خلال 14 s", ["46,8 / min", "14 s"]),
        ("מתוך 1\u202f250 בתוך 15 µs", ["1\u202f250", "15 µs"]),
        ("شغّل manage.py check.", ["manage.py check"]),
        ("القيمة <script>x</script> هنا", ["&lt;script&gt;x&lt;/script&gt;"]),
        ("لا شيء ... هنا", []),
    ],
)
def test_in_a_sentence_from_right_to_left_the_other_parts_are_isolated(sentence, parts):
    """Else "2.4 ms" is written "ms 2.4", and the slashes of a path change places."""
    shown = bdi(sentence)
    assert re.findall('<bdi dir="ltr">(.*?)</bdi>', shown) == parts
    assert "<script" not in shown


@pytest.mark.parametrize("content", ["boom at 12 ms (x)", "a < b", "für 12 ms"])
def test_a_text_from_left_to_right_is_isolated_as_a_whole(content):
    assert bdi(content).count("<bdi") == 1


def test_marks_of_direction_are_written_out_in_either():
    assert "\\u202e" in bdi("a\u202eb")
    assert "\\u202e" in bdi("قيمة \u202e")
