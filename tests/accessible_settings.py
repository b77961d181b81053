"""The test project with our page for failed requests and a language that is written from right to left."""

from tests.settings import *  # noqa: F403
from tests.settings import LANGUAGES

LANGUAGES = [*LANGUAGES, ("ar", "Arabic")]
ROOT_URLCONF = "tests.urls_with_server_error"
