"""The script that takes pictures of every page; what they show is tested in `test_accessible`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import screenshots
from tests.live_sampling.test_browser import chromium

__all__ = ["chromium"]


@pytest.mark.debian
@pytest.mark.long
def test_pictures_are_taken_of_a_page_in_every_look(chromium: Any, tmp_path: Path) -> None:
    """The script still runs; `python -m tests.screenshots FOLDER` takes all."""
    names = screenshots.take_all(chromium, tmp_path, ["traces-none"])
    assert len(names) == len(screenshots.LOOKS)
    assert {path.name for path in tmp_path.iterdir()} == set(names)
