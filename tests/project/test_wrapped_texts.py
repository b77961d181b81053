"""Every text that a person sees can be translated: none stands in a template, a script or the code unmarked."""

from __future__ import annotations

import ast
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from django.template.base import Lexer, TokenType

from django_otel.operations.mcp_server import INSTRUCTIONS
from tests import sizes

PACKAGE = Path(__file__).resolve().parents[2] / "django_otel"
TEMPLATES = sorted((PACKAGE / "templates").rglob("*.html"))
#: Modules whose texts reach a page, a terminal or an answer. Log records and exceptions for developers are English.
MODULES = sorted(
    path
    for pattern in (
        "admin.py", "apps.py", "models.py", "views.py", "console/*.py", "live_sampling/*.py", "operations/*.py",
        "operations/monitoring/command.py",
        "management/commands/*.py",
    )
    for path in PACKAGE.glob(pattern)
    # What runs here says it in the log.
    if path.name
    not in (
        "conditions.py", "follower.py", "policy_rows.py", "hosts.py", "force.py", "preview.py", "large_forms.py",
        "health.py",
    )
)  # fmt: skip

# --- Templates. ---

#: Names and symbols that are the same in every language.
SAME_EVERYWHERE = {"OpenTelemetry", "OTEL", "p50", "p95", "p99", "ms"}
SHOWN_ATTRIBUTES = {"alt", "aria-label", "aria-description", "label", "placeholder", "title"}
NOT_PROSE = {"code", "pre", "script", "style"}
#: Stands for what a tag of the template language renders.
TAG = "\ufffc"
WORD = re.compile(r"[^\W\d_]{2,}[\w-]*")


class TextFinder(HTMLParser):
    """Gathers the words of an HTML page: text, and attributes that are shown or read out."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in NOT_PROSE:
            self._open.append(tag)
        self.found += [
            value for name, value in attrs if value and (name in SHOWN_ATTRIBUTES or _is_sentence(name, value))
        ]

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if not self._open:
            self.found.append(data)


def _is_sentence(name: str, value: str) -> bool:
    return name.startswith("data-otel-") and " " in value.strip()


def texts_of_template(source: str) -> list[str]:
    """Words of a template that are neither in `translate` nor in `blocktranslate`."""
    parts, is_marked = [], False
    for token in Lexer(source).tokenize():
        if token.token_type == TokenType.TEXT:
            parts.append(TAG if is_marked else token.contents)
            continue
        name = token.contents.split(" ")[0]
        is_classes = token.contents == "block bodyclass"
        is_marked = (is_marked or is_classes or name in ("blocktranslate", "blocktrans", "comment")) and name not in (
            "endblocktranslate", "endblocktrans", "endcomment", "endblock",
        )  # fmt: skip
        parts.append(TAG)
    finder = TextFinder()
    finder.feed("".join(parts))
    finder.close()
    words = [word for text in finder.found for word in WORD.findall(text)]
    return [word for word in words if word not in SAME_EVERYWHERE]


@sizes.each("path", TEMPLATES)
def test_every_text_of_a_template_is_marked(path: Path) -> None:
    """As text, or in an attribute that is shown or read out."""
    assert texts_of_template(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("<p>Planted</p>", ["Planted"]),
        ('<p>{% translate "Good" %} planted {{ value }}</p>', ["planted"]),
        ("<p>{% blocktranslate %}Good {{ value }}{% endblocktranslate %} planted</p>", ["planted"]),
        ('<input placeholder="planted"{% if value %} disabled{% endif %}>', ["planted"]),
        ('<p data-otel-said="Planted here">', ["Planted", "here"]),
        ('<option value="" label="planted">{{ value }}</option>', ["planted"]),
        ('<code>not prose</code> <a class="{% if x %}also-not{% endif %}" href="/not/">{{ value }}</a>', []),
        ('{% blocktranslate count n=n trimmed %}one{% plural %}many{% endblocktranslate %}', []),
    ],
)  # fmt: skip
def test_an_unmarked_text_in_a_template_is_found(source: str, found: list[str]) -> None:
    """Or the test above could not fail."""
    assert texts_of_template(source) == found


# --- Scripts. ---


def texts_of_script(source: str) -> list[str]:
    """String literals of a script that are sentences, and words that become text."""
    source = re.sub(r"/\*.*?\*/|^\s*//.*?$", "", source, flags=re.DOTALL | re.MULTILINE)
    literals = [found[1] for found in re.finditer(r"""(?<![\w])["'`]([^"'`\n]*)["'`]""", source)]
    return [text for text in literals if re.fullmatch(r"[A-Z][a-z]+(:| [a-z].*)?|[a-z]+ [a-z]+( [a-z]+)+.*", text)
            and text not in SCRIPT_WORDS]  # fmt: skip


#: Names of the browser's keys and of requests, no texts.
SCRIPT_WORDS = {"Home", "End", "Escape"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "static").rglob("*.js")), ids=lambda path: path.name)
def test_no_script_has_a_text_of_its_own(path: Path) -> None:
    """They stand, translated, in the page."""
    assert texts_of_script(path.read_text(encoding="utf-8")) == []


def test_a_text_in_a_script_is_found() -> None:
    """Or the test above could not fail."""
    script = """say("You are signed out."); element("label", {}, "Route:"); at = 'click'; /* "Not this one." */"""
    assert texts_of_script(script) == ["You are signed out.", "Route:"]


# --- Code. ---

MARKS = {
    "gettext",
    "gettext_lazy",
    "gettext_noop",
    "ngettext",
    "ngettext_lazy",
    "pgettext",
    "npgettext",
    "pgettext_lazy",
}
#: Calls whose texts are for the log, for developers or for machines.
NOT_SHOWN = {
    # The log.
    "contained", "report", "warn_once", "debug", "info", "warning", "error", "log", "exception", "with_classic_buckets",
    # Exceptions for developers.
    "ValueError", "TypeError", "RuntimeError", "PermissionDenied", "ImproperlyConfigured", "Misfit",
    # Other than text.
    "compile", "fullmatch", "match", "search", "findall", "sub", "getattr", "_attributes", "ContextVar", "cast",
    "TypeVar", "import_string", "strftime", "TooManyFieldsSent", "startswith", "removeprefix", "partition",
}  # fmt: skip
#: A sentence or a part of one: words with spaces between them.
PROSE = re.compile(r"[^\W\d_]{2,}[,;:.]? [^\W\d_]{2,}")
#: Keywords and calls that show even a single word.
SHOWN_KEYWORDS = {"help", "description", "epilog", "help_text", "label", "short_description", "title", "hint"}
SHOWN_NAMES = {"verbose_name", "verbose_name_plural", "page_title", "help"}
ANY_WORD = re.compile(r"[^\W\d_]{2,}")


def _without_markup(text: str) -> list[str]:
    """The text itself, or of HTML what is shown or read out."""
    if not re.match(r"(\{\} )?<[a-z]", text):
        return [text]
    finder = TextFinder()
    finder.feed(text)
    finder.close()
    return finder.found


def _is_command(text: str) -> bool:
    return all(line.lstrip().startswith("manage.py ") for line in text.splitlines()) and text != ""


def _is_mark_of(node: ast.AST, text: object) -> bool:
    """Whether `node` marks this text for translation."""
    return (
        isinstance(node, ast.Call)
        and getattr(node.func, "id", getattr(node.func, "attr", "")) in MARKS
        and any(isinstance(each, ast.Constant) and each.value == text for each in node.args)
    )


class UnmarkedFinder(ast.NodeVisitor):
    """Finds texts outside the functions that mark one for translation."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def visit_Call(self, node: ast.Call) -> None:
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name in MARKS:
            # A mark needs the text itself: what is put together cannot be looked up.
            self.found += [ast.unparse(each) for each in node.args[: 2 if name[0] in "np" else 1]
                           if name != "npgettext" and isinstance(each, ast.JoinedStr | ast.BinOp)]  # fmt: skip
            return
        if name in NOT_SHOWN:
            return
        for keyword in node.keywords:
            if keyword.arg in SHOWN_KEYWORDS:
                self._check(keyword.value, ANY_WORD)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        names = {getattr(target, "id", "") for target in node.targets}
        if names & SHOWN_NAMES:
            self._check(node.value, ANY_WORD)
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        # A docstring is no text.
        if not isinstance(node.value, ast.Constant):
            self.generic_visit(node)

    def visit_Dict(self, node: ast.Dict) -> None:
        for key, value in zip(node.keys, node.values, strict=True):
            # A key that stands for its own translation is a name of the code.
            if key is not None and not (isinstance(key, ast.Constant) and _is_mark_of(value, key.value)):
                self.visit(key)
            self.visit(value)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and not _is_command(node.value):
            self.found += [text for text in _without_markup(node.value) if PROSE.search(text)]

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        text = "".join(part.value if isinstance(part, ast.Constant) else TAG for part in node.values)
        in_words = rf"{TAG} [a-z]{{2,}} |[a-z]{{2,}}:? {TAG}"
        self.found += [each for each in _without_markup(text) if PROSE.search(each) or re.search(in_words, each)]
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                self.visit(part)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def _check(self, node: ast.AST, words: re.Pattern[str]) -> None:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and words.search(node.value):
            self.found.append(node.value)


def texts_of_code(source: str) -> list[str]:
    """Texts of a module that are not marked for translation."""
    finder = UnmarkedFinder()
    finder.visit(ast.parse(source))
    return list(dict.fromkeys(finder.found))


#: What looks like a text and is none: names of what was examined, commands, headers, what a library says.
NO_TEXTS: dict[str, set[str]] = {
    "console/text.py": {f"{TAG} min {TAG} s"},
    # Values of JSON, and what an assistant reads.
    "console/answers.py": {f"{TAG} in {TAG}", "This answer is too long."},
    # Answers to programs.
    "operations/collect.py": {
        'The body is not an OTLP message.',
        'The trace store cannot be written to now.',
        'Metrics are not stored here; export traces and logs only.',
        'Expected /v1/traces or /v1/logs.',
        f'Expected {TAG} or {TAG}.',
        'The length of the body is missing.',
        f'The body has more than {TAG} bytes.',
        'The body ended early.',
        'A chunk without its length.',
        'Expected gzip, or no compression.',
        'The body is not gzip.',
        f'The body has more than {TAG} bytes when unpacked.',
    },
    "operations/mcp_server.py": {
        'pip install "django-otel-kit[mcp]"', "Expected a status such as 404, or a class such as 5xx.",
        INSTRUCTIONS, f"Expected a level out of {TAG}.", "There is no such trace in the store.",
    },
    "live_sampling/log_level_command.py": {"logs level"},
    # The name of the permission in the database; an object that no page shows.
    "models.py": {f"version {TAG}", "Can view traces and dashboard", "Can ask the database for query plans"},
    # SQL.
    "console/plans.py": {"BEGIN READ ONLY", f"SET LOCAL statement_timeout = {TAG}", f"EXPLAIN (GENERIC_PLAN) {TAG}"},
    "console/plan_pages.py": {"ORDER BY ?"},
    "operations/checks.py": {f"pip install {TAG}", "METRICS.SHARED_DIR, METRICS.GROUP"},
    "operations/doctor.py": {
        "django_otel doctor", "child of the test", "Runs of the doctor.", "A test record of manage.py otel doctor.",
        "django_otel send-test", f"configuration {TAG}", f"instrumentor {TAG}",
    },
    "operations/reasons.py": {
        "No route", "record layer failure", "local issuer", "Connection aborted", "reset by peer", "Connection broken",
        'pip install "django-otel-kit[grpc]"',
    },
    "operations/serve.py": {
        "the client sends its request", "the page is rendered, or waits for that", "the client reads the answer",
        "GET, HEAD", 'Bearer realm="metrics"', "Accept, Accept-Encoding", "text/plain; charset=utf-8",
    },
    "operations/surroundings.py": {
        f"database {TAG}", f"cache {TAG}", "shared folder", f"pip install {TAG}",
        f"django-otel-kit {TAG}, Django {TAG}, Python {TAG}, OpenTelemetry {TAG}",
    },
    "operations/versions.py": {"python -m pip install "},
    "views.py": {"text/plain; charset=utf-8", "GET, HEAD", f'Bearer realm="metrics"{TAG}'},
}  # fmt: skip


@sizes.each("path", MODULES)
def test_every_text_of_a_module_is_marked(path: Path) -> None:
    """Sentences anywhere, single words where they are labels, titles or help."""
    known = NO_TEXTS.get(str(path.relative_to(PACKAGE)), set())
    assert [text for text in texts_of_code(path.read_text(encoding="utf-8")) if text not in known] == []


@sizes.each(
    ("source", "found"),
    [
        ("raise ValidationError('This is planted.')", ["This is planted."]),
        ("yield Finding('x', 'ok', f'planted with {value}')", [f"planted with {TAG}"]),
        ("parser.add_argument('--x', help='planted')", ["planted"]),
        ("class Meta:\n    verbose_name = 'planted'", ["planted"]),
        ("self.stdout.write('Planted words.')", ["Planted words."]),
        ("x = gettext(f'planted {value}')", ["f'planted {value}'"]),
        ("x = gettext('planted ' + value)", ["'planted ' + value"]),
        ("x = gettext('This is marked.')", []),
        ("logger.warning('For the log.')\nraise ValueError('For developers.')", []),
        ("def f():\n    'Not this one.'", []),
    ],
)
def test_an_unmarked_text_in_code_is_found(source: str, found: list[str]) -> None:
    """Or the test above could not fail."""
    assert texts_of_code(source) == found
