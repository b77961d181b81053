"""psutil stays out of a start; another thread that imports it meanwhile gets it."""

from __future__ import annotations

import threading

import pytest

from django_otel.base.late_psutil import _Refusal


def test_only_the_thread_that_imports_the_resources_is_refused():
    refusal = _Refusal()
    with pytest.raises(ModuleNotFoundError) as refused:
        refusal.find_spec("psutil")
    assert refused.value.name == "psutil"
    assert refusal.find_spec("psutil._common") is None
    assert refusal.find_spec("json") is None
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(refusal.find_spec("psutil")))
    thread.start()
    thread.join()
    assert found == [None]
