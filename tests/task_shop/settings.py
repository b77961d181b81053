"""The test project with a broker."""

from tests.settings import *  # noqa: F403

ROOT_URLCONF = "tests.task_shop.urls"
