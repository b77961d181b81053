"""Secrets that stand beside their name: `password=x`, `"token": "x"`, `<secret>x</secret>`, query strings, source lines."""  # noqa: E501

from __future__ import annotations

import re
from bisect import bisect_right

from django_otel.base.patterns import lazy_pattern
from django_otel.redaction.bare_pairs import Judge, find_divided, find_secret, says_something
from django_otel.redaction.expressions import (
    is_field_error,
    is_line_of_prose,
    is_metavar,
    is_no_literal,
    is_no_secret_list,
    is_no_value,
    is_prompt,
)
from django_otel.redaction.keys import (
    LABEL,
    PLAIN,
    REDACTED,
    SENSITIVE,
    SENSITIVE_LINE,
    has_random_part,
    is_harmless,
    is_masked,
    is_mixed,
    is_phrase,
    is_property,
    is_short_word,
    is_thing,
    mask_end,
    words,
)
from django_otel.redaction.value_spans import bracket_end, line_end, run_end, skip_blanks, value_span

# A pair in a URL that is itself a parameter, percent-encoded once or more often.
_ENCODED_KEY = lazy_pattern(
    r"(?<![\w.\-])([\w.\-]++)(?:%(?:25){0,4}(?:5[Dd]|2[27])){0,3}%(?:25){0,4}3[DdAa](?:%(?:25){0,4}2[027])?"
)
_ENCODED_VALUE = lazy_pattern(r"""(?:[^\s&"'<>%]|%(?!(?:25){0,4}(?:26|3[Bb]|2[027]|0[AaDd])))++""")

# A key: a run of word characters (with "." and "-", percent-encoding), then what may close it, then a separator.
_TYPE = (
    r"(?:&?(?:'static )?str|[Ss]tring\??|"
    r"bytes|int|float|bool|None|Any|object|dict|list|tuple|Optional|Union|Sequence|Mapping|SecretStr|Option|Annotated|Final|ClassVar"
    r"|(?:typing|t)\.[A-Z]\w{0,30}+)(?:[\[<][\w., |]{0,60}[\]>])?"
)
_KEY = lazy_pattern(
    r"(?<![\w.\-%])([\w.\-%]++)"
    r"(?:"
    r"""\\{0,4}["']\s*+,\s*+\\{0,4}["'][Vv]alue\\{0,4}["']\s*+:\s*+"""  # {"name": "...", "value": "..."}
    r"""|["']?[ \t]*+\r?\n[ \t]*+value:[ \t]*+"""  # name: ...\n value: ...
    r"""|(?:\[[\w\-]{0,20}\]){0,2}+[\\"'\])}`]{0,8}+\s*+(?:"""
    rf":[ \t]*+{_TYPE}(?:[ \t]?\|[ \t]?{_TYPE}){{0,4}}+[ \t]++=[ \t]++(?!=)"  # an annotated name in a line of source
    r"|=>|-{1,3}>|:=|!=|={1,3}|[:\uff1a\uff1d]|%3[Aa]|%3[Dd]|(?i:(?:not )?(?:i?like(?= ')|in(?= ?\(')))"
    r"|(?=[|→⇒¦│┃║~^;<?>\u2013\u2014-])(?:\|(?!\|)|[→⇒¦│┃║]|(?<=[ \t])[\u2013\u2014-](?=[ \t])|<-|~>|\?=|(?<=-)>|[~^;](?=\S)))\s*+"  # what divides them in tables and logs  # noqa: E501
    r"""|["']\s{0,4}+\{\s{0,8}+default\s{0,8}+=\s{0,8}+"""  # variable "name" { default = "value"
    r"""|["']\s++(?:value|content)\s*+=\s*+"""  # <input name="..." value="...">
    r"""|\\{0,4}["'],\s*+(?=[bu]?\\{0,4}["'])"""  # ("name", "value")
    r"|(?=[ \t]+[^\s\-]))"  # --name value
)
#: config.set('smtp', 'password', 'x')
_CALL_OPENING = lazy_pattern(
    r"\.(?:h?set|put|add|set_?option|set_?value|replace|update)\(\s{0,4}(?:\"[^\"\n]{0,60}\"|'[^'\n]{0,60}'),\s{0,4}[\"']\Z"
)
_PAIR_OPENING = lazy_pattern(r"""[(\[]\s{0,4}[bu]?\\{0,4}["']\Z""")
#: "authtoken_token"."key"
_TABLE_BEFORE = lazy_pattern(r"([A-Za-z_]\w{0,60})[\"`\]]?\.[\"`\[]\Z")
#: Of objects that are secrets: Token(key=
_OWNERS = (
    "Token", "Device", "Secret", "Session", "Credential", "Credentials", "ApiKey", "APIKey", "Cipher", "SigningKey",
    "PrivateKey", "SecretKey", "SymmetricKey", "EncryptionKey", "MasterKey", "SharedKey", "AccessKey",
)  # fmt: skip
#: Their arguments: Token(key=x), SigningKey(k=x).
_ARGUMENTS = words("key k raw data value material")
#: Columns of which the name of their table says what they are.
_COLUMNS = words("key keys code codes hash number value")
_WORD_BEFORE = lazy_pattern(r"(?<![^\W\d_])([^\W\d_]{2,30})[ \t]\Z")
_RANDOM_CODES = words("code key ticket state nonce")
_CODE = lazy_pattern(r"[bu]?[\"']?([A-Za-z0-9_\-]{24,}+)(?![\w.:/+])")
#: Of a column's literal with no capitals.
_SHORTEST_HEX = 32
_SECOND_WORDS = words(
    "id ids key value values number no num hash string code codes data header headers text phrase answer "
    # Of names of two words in Arabic, Vietnamese, Indonesian and Russian.
    "المرور مرور السر سر السري التحقق تحقق الدخول khẩu sandi подтверждения"
)
_EXCEPTION_NAME = lazy_pattern(
    r"(?:Error|Exception|Warning|Exit|Interrupt|DoesNotExist|MultipleObjectsReturned)\Z"
    r"|\A(?:[a-z_]\w*+\.)++(?=[A-Z]*+[a-z])[A-Z][A-Za-z]*+\Z|(?:\A|\.)(?:Invalid|Expired|Missing|Bad|Unknown)[A-Z][A-Za-z]*+\Z"
)
#: A value that is looked for elsewhere in its text, and of how many this is done.
_REPEATED = lazy_pattern(r"[A-Za-z0-9_\-+/=.~:]{16,1000}\Z")
_MOST_REPEATED = 20
#: "session.rb:12": a place in a file.
_SOURCE_FILE = lazy_pattern(
    r"\.(?:java|kt|scala|clj|rb|py|pyx|js|mjs|cjs|jsx|ts|tsx|vue|go|rs|c|cc|cpp|h|hpp|cs|fs|vb|php|pl|pm|ex|exs|erl|swift|m"
    r"|lua|sh|sql|html|htm|css|scss|json|toml|ya?ml|ini|cfg|conf|md|txt|xml|log)\Z"
)
_ARN = lazy_pattern(r"\barn:[\w\-:]{1,110}:\Z")
#: Of Java's tools: -storepass x
_LONG_OPTION = lazy_pattern(r"-[a-z][A-Za-z]{3,30}\Z")
_CONVERTER = lazy_pattern(r"\w+>")
#: Behind a name in markup: there is no value.
_CLOSING_TAG = lazy_pattern(r"</[A-Za-z][\w:.\-]{0,60}\s{0,8}>(?!\w)")
#: The next line behind a key of YAML: another key, or the items of a list.
_NEXT_KEY = lazy_pattern(r"[\w.\-]{1,60}:(?=[ \t]|\r?\n|\Z)")
_NEXT_ITEM = lazy_pattern(r"[ \t]*-[ \t]+(?P<quote>[\"']?)(?P<item>[^\s\"'\[{:][^\n\"']*?)(?P=quote)[ \t\r]*(?:\n|\Z)")
#: A member of a mapping of YAML with its value, if that is on its line.
_NESTED = lazy_pattern(
    r"(?P<blank>[ \t]*+)(?:- )?(?P<name>[\w.\-]{1,60}):(?:[ \t]+(?P<quote>[\"']?)(?P<value>[^\s\"'\[{|>&!#][^\n\"']*?)(?P=quote))?[ \t\r]*(?:#[^\n]*)?(?:\n|\Z)"  # noqa: E501
)
#: An object, or a list of objects, with its names in quotes.
_OBJECT = lazy_pattern(r"(?:\[\s{0,8})?\{\s{0,8}[\"']\w")
#: Lines below a name that are read.
_MOST_LINES = 50
#: "${PASSWORD}" | sudo
_VARIABLE = lazy_pattern(r"\$\{?\Z")
_MEMBER = lazy_pattern(r"(?P<quote>[\"'])(?P<name>[\w.\- ]{1,60})(?P=quote)\s{0,8}:\s{0,8}")
#: {user: bob, pass: x}
_OBJECT_BEFORE = lazy_pattern(r"\{[^{}\n]{0,100}(?:, ?|\{ ?)\Z")
_SMALL_NUMBER = lazy_pattern(r"[ ]?[0-9]{1,4}(?![\w.\-])")
_MEMBER_BEFORE = lazy_pattern(r"[{ ][A-Z]\w{0,40}:[^\s{}:]{0,80} \Z")
_LONGEST_PATH = 200
_NAME = lazy_pattern(r"[\"']([a-z]{2,20}(?:_[a-z]{2,20}){1,3})[\"']")
#: password: x -> y
_CHANGED = lazy_pattern(r"[\"']?[ \t]{1,4}(?:[=-]{1,2}>|\u2192)[ \t]{1,4}[\"']?(?=[^\s\"'])")
#: Further codes of a list.
_MORE_CODES = lazy_pattern(r"(?:(?:,[ ]?|[ ])[A-Za-z0-9]{1,8}(?:-[A-Za-z0-9]{1,8})*+(?<=[0-9])(?![\w.:]))++")

_NEXT_CODE = lazy_pattern(r"(?:,[ ]?|[ ])([A-Za-z0-9\-]++)(?![\w.:])")
_SHORTEST_CODE = 6
_MORE_DIGITS = lazy_pattern(r"(?<=[ =:][0-9]{4})(?:[ \-][0-9]{3,7}){2,4}+(?![\w.:])")

#: The dividers of `_KEY` behind which a name may stand as well as a value.
_DIVIDERS = frozenset(
    ("->", "-->", "|", "-", "\u2013", "\u2014", "→", "⇒", "¦", "│", "┃", "║", "<-", "~>", ">", "~", "^", ";")
)

_AROUND_DIVIDERS = " \t\r\n\"'`)]}\\"

_MAYBE_PAIR = lazy_pattern(r"[=:,\uff1a\uff1d]|%3[AaDd]|--\w|->|\s-[a-z]{4}")
#: A frame of a stack trace, and the lines of source below it.
_FRAME = lazy_pattern(
    r"""^([ \t|+]*+)File "[^"\n]*+", line [0-9]++[^\n]*+\n((?:\1[ \t]{2}[^\n]*+(?:\n|\Z))*+)""", re.MULTILINE
)
_SOURCE_LITERAL = lazy_pattern(
    r"""([bBuUrRfF]{0,2})("[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"|'[^'\\\n]*+(?:\\.[^'\\\n]*+)*+')"""
)
#: A longer line was not written by a person (characters).
_MAX_SOURCE_LENGTH = 2000
_SOURCE_NUMBER = lazy_pattern(r"[0-9]{3,}+")
_INTERPOLATION = lazy_pattern(r"\{[^{}]*+\}|(?i:bearer|basic|token|digest)|[^A-Za-z0-9]")
_STATEMENT = lazy_pattern(
    r"""(?:\A|[\s"'(;:])(?:SELECT\s|INSERT\s+(?:OR\s+\w{1,10}\s+)?INTO\s|UPDATE\s+\S{1,120}\s+SET\s|DELETE\s+FROM\s|MERGE\s+INTO\s"""
    r"""|(?:CREATE|ALTER)\s+(?:TABLE|INDEX|UNIQUE)\s|EXPLAIN\s)"""
)
_XML = lazy_pattern(r"<(?:\w{1,30}:)?([\w.\-]{1,60})(?:\s[^<>]{0,300})?>\s{0,20}(?:<!\[CDATA\[)?([^<\s\]][^<\]]*+)")
_XML_VALUE = lazy_pattern(
    r"""<(?:property|entry|setting|string|param|parameter|env|item|variable|field|constant|arg|option|add|data|attribute)\s"""
    r"""[^<>]{0,100}?\b(?:name|key)=["']([^"'\n]{1,60})["'][^<>]{0,100}>\s{0,20}(?:<value>)?([^<\s][^<]*+)"""
)
#: ENV NAME value
_ENV = lazy_pattern(
    r"\b(?:git config(?: --[a-z]{1,20}){0,3}|ENV|ARG|SetEnv|setx|fastcgi_param|setenv|(?:config|configure|env|secrets?|user-secrets) set)[ \t]{1,8}[\"']?([\w.:/\-]{1,100})[\"']?[ \t]{1,8}(?:--?[a-z]{1,20}(?:=|[ \t]{1,4}))?[\"']?([^\s\"']++)"  # noqa: E501
)
#: Of http.cookiejar and requests: <Cookie name=x for shop.example/>
_COOKIE = lazy_pattern(r"(<Cookie [^\s=<>]{1,100}=)(?!\[redacted\])[^\s<>]++")
#: A line of a browser's file of cookies.
_COOKIE_LINE = lazy_pattern(r"\t(?:TRUE|FALSE)\t[0-9]{1,12}\t([^\t\n]{1,200})\t([^\s]++)")
_TAB_PAIR = lazy_pattern(r"^[ \t]{0,20}([\w.\- ]{1,60}?):?\t+(\S[^\t\n]*+)$", re.MULTILINE)
_INPUT = lazy_pattern(
    r"""^([\w.\[\]]{1,100})\n {2}[^\n]{0,500}?input_value=('[^'\n]*+'?|"[^"\n]*+"?|[^\s,\]]++)""", re.MULTILINE
)


class PairScrubber:
    """Redacts values beside a sensitive name. `judge` gives the verdict on a key."""

    __slots__ = ("_judge",)

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def redact(self, text: str, *, query: bool = False, is_sql: bool = False, may_be_bare: bool = True) -> str:
        """Redact values of pairs. `query`: the text is a query string; `is_sql`: it is a statement;
        `may_be_bare`: it holds the name of a secret, behind which a blank or a pipe may stand."""
        if query or _MAYBE_PAIR.search(text) or may_be_bare:
            text = self._pairs(text, query, is_sql)
        if "%" in text:
            text = self._encoded_pairs(text)
        if "</" in text or "CDATA" in text:
            text = self._by_key(_XML, text)
            text = self._by_key(_XML_VALUE, text)
        if (
            "ENV " in text
            or "ARG " in text
            or " set " in text
            or "setenv " in text
            or "setx " in text
            or "SetEnv " in text
            or "git config " in text
            or "fastcgi_param " in text
        ):
            text = self._by_key(_ENV, text)
        if "<Cookie " in text:
            text = _COOKIE.sub(rf"\1{REDACTED}", text)
        if "\t" in text:
            text = self._by_key(_COOKIE_LINE, self._by_key(_TAB_PAIR, text))
        if "input_value=" in text:
            text = self._by_key(_INPUT, text)
        return text

    def _by_key(self, pattern: re.Pattern[str], text: str) -> str:
        def replace(match: re.Match[str]) -> str:
            key, value = match.groups()
            verdict = self._judge(key, True, False)
            if (
                verdict == PLAIN
                or is_harmless(value, key, verdict)
                or value.startswith("[redacted")
                or value.strip() in (key, f"{key}:")
            ):
                return match.group()
            return f"{match.group()[: match.start(2) - match.start()]}{REDACTED}{match.group()[match.end(2) - match.start() :]}"  # noqa: E501

        return pattern.sub(replace, text)

    def _pairs(self, text: str, query: bool, is_sql: bool) -> str:
        source = [match.span(2) for match in _FRAME.finditer(text)] if 'File "' in text else []
        is_sql = is_sql or _STATEMENT.search(text) is not None
        out: list[str] = []
        values: list[str] = []
        done = pos = object_end = 0
        while (match := _KEY.search(text, pos)) is not None:
            key = match.group(1)
            pos = match.end(1)
            # Most keys are not secret anywhere.
            if self._judge(key, True, True) == PLAIN and key.lower() not in _SECOND_WORDS and key not in _ARGUMENTS:
                continue
            separator = text[pos : match.end()]
            is_source = _is_within(source, match.start())
            is_bare = _is_bare(key, separator)
            verdict = SENSITIVE if is_bare else self._judge_in_text(text, match.start(), key, separator, query)
            if verdict == PLAIN and not (is_sql and _is_random_literal(text, key, match.end())):
                continue
            begin = match.end() if separator else skip_blanks(text, pos)
            if is_bare:
                spans = self._bare_spans(text, match, separator, is_code=is_source or is_sql)
            elif is_source:
                spans = self._source_spans(text, match, verdict, separator, begin)
            elif (skipped := _skipped_end(text, begin, separator, is_sql)) >= 0:
                spans, pos = [], skipped
            elif self._is_object(text, key, begin):
                spans, object_end = self._object_spans(text, key, begin, object_end)
            else:
                spans = self._spans(text, key, verdict, separator, begin)
            for start, end in spans:
                if start < done or self._is_harmless(text[start:end], key, verdict):
                    continue
                out += (text[done:start], REDACTED)
                values.append(text[start:end])
                done = pos = end
            if spans:
                pos = max(pos, spans[0][0])
        if not out:
            return text
        out.append(text[done:])
        return _redact_again("".join(out), values)

    def _is_harmless(self, value: str, key: str, verdict: int) -> bool:
        """Return whether a value says nothing, or is a word under a parameter that means many things: ?key=brand."""
        return (
            is_harmless(value, key, verdict)
            or (key in ("PWD", "OLDPWD") and value[:1] == "/" and len(value) < _LONGEST_PATH)
            or (is_short_word(value) and self._judge(key, True, False) == PLAIN)
        )

    def _bare_spans(self, text: str, key: re.Match[str], separator: str, *, is_code: bool) -> list[tuple[int, int]]:
        """Return where the secret behind a key without `=` or `:` stands; nowhere in source and in statements."""
        start = key.start(1)
        if is_code or "\n" in separator or _VARIABLE.search(text, max(0, start - 2), start):
            return []
        if separator:
            is_dash = separator.strip(_AROUND_DIVIDERS) in ("-", "\u2013", "\u2014")
            span = find_divided(text, key.group(1), key.end(), self._judge, is_dash=is_dash)
        else:
            span = find_secret(text, key.start(1), key.end(1), self._judge)
        return [] if span is None else [span]

    def _source_spans(
        self, text: str, key: re.Match[str], verdict: int, separator: str, begin: int
    ) -> list[tuple[int, int]]:
        """Return where the value of a pair stands in a line of source."""
        start, end = key.span(1)
        if line_end(text, start) - text.rfind("\n", 0, start) > _MAX_SOURCE_LENGTH:
            return self._spans(text, key.group(1), verdict, separator, begin)
        literal = _literal_around(text, start, end)
        if literal is None:
            return _literal_spans(text, begin)
        if begin >= literal.end(2) - 1 or text[begin] in "{%":
            return []
        return self._spans(text, key.group(1), verdict, separator, begin)

    def _spans(self, text: str, key: str, verdict: int, separator: str, begin: int) -> list[tuple[int, int]]:
        """Return where the value of a pair stands in an ordinary text; nothing when it is prose or a program's."""
        whole_line = verdict == SENSITIVE_LINE and (":" in separator or ("=" in separator and is_phrase(key)))
        closed_key = separator[:1] not in (":", "=", "-", "!", " ", "\t", "", "\uff1a", "\uff1d")
        if "\n" in separator and (below := self._spans_below(text, key, separator, begin)) is not None:
            return below
        if is_metavar(text, key, begin) or is_prompt(text, separator, begin):
            return []
        if _CLOSING_TAG.match(text, begin) or is_no_secret_list(text, begin, key):
            return []
        start, end = value_span(text, begin, whole_line, closed_key)
        if is_masked(text, start) or _CLOSING_TAG.match(text, start):
            return []
        if whole_line and separator == ": " and not is_phrase(key) and is_line_of_prose(text[start:end], self._judge):
            return []
        if whole_line:
            return [(start, end)]
        if start > begin and is_field_error(text[start:end]):
            return []
        if start == begin and is_no_value(
            text, key, begin, text[start:end], separator, self._judge, is_closed=closed_key
        ):
            return []
        return _with_change(text, start, _codes_end(text, key, start, end))

    def _object_spans(self, text: str, key: str, begin: int, known: int) -> tuple[list[tuple[int, int]], int]:
        """Return where the object at `begin` stands if it holds a secret, and where it ends.

        `known`: where the last object without a secret ended.
        """
        if begin < known:
            return [], known
        stop = bracket_end(text, begin)
        return ([(begin, stop)] if self._has_secret(text, key, begin, stop) else []), stop

    def _is_object(self, text: str, key: str, begin: int) -> bool:
        """Return whether an object that describes a session or a card begins at `begin`."""
        if not is_thing(key) or _OBJECT.match(text, begin) is None:
            return False
        return self._judge(f"{key}_speaker", True, False) == LABEL

    def _has_secret(self, text: str, key: str, begin: int, stop: int) -> bool:
        """Return whether a member of the object from `begin` to `stop` may be a secret; then another one may be too."""
        pos = begin
        while (member := _MEMBER.search(text, pos, stop)) is not None:
            pos = member.end()
            if _OBJECT.match(text, pos):
                continue
            name = member.group("name")
            start, end = value_span(text, pos, False, True)
            value = text[start:end]
            if name.lower() in ("id", "pk") and start == pos and value.isdigit() and len(value) < 7:
                continue
            inner = f"{key}_{name}"
            if end > start and not is_property(value, inner, self._judge(inner, True, False)):
                return True
            pos = max(pos, end)
        return False

    def _spans_below(self, text: str, key: str, separator: str, begin: int) -> list[tuple[int, int]] | None:
        """Return where the secrets among the items or members on the lines from `begin` stand; None for neither."""
        if not _NEXT_KEY.match(text, begin):
            return _item_spans(text, begin)
        key_start = begin - len(separator) - len(key)
        column = key_start - text.rfind("\n", 0, key_start) - 1
        spans: list[tuple[int, int]] = []
        line = text.rfind("\n", 0, begin) + 1
        for _ in range(_MOST_LINES):
            member = _NESTED.match(text, line)
            if member is None or len(member.group("blank")) <= column:
                break
            inner, value = f"{key}_{member.group('name')}", member.group("value")
            verdict = self._judge(inner, True, False)
            if (
                value
                and not is_masked(text, member.start("value"))
                and not is_harmless(value, inner, verdict if verdict != PLAIN else LABEL)
                and not says_something(value, self._judge)
            ):
                spans.append(member.span("value"))
            line = member.end()
        return spans

    def _encoded_pairs(self, text: str) -> str:
        out: list[str] = []
        done = pos = 0
        while (match := _ENCODED_KEY.search(text, pos)) is not None:
            start, pos = match.span(1)
            key = match.group(1)
            # "%3Ftoken%3Dx": the run begins inside the escape of the "?".
            escape = key[:2] if start and text[start - 1] == "%" else ""
            if self._judge(key[len(escape) :], True, escape.upper() in ("3F", "26")) in (PLAIN, LABEL):
                continue
            value = _ENCODED_VALUE.match(text, match.end())
            if value is not None and value.group() != REDACTED:
                out += (text[done : match.end()], REDACTED)
                done = pos = value.end()
        if not out:
            return text
        out.append(text[done:])
        return "".join(out)

    def _is_pair(self, text: str, start: int, key: str, separator: str) -> bool:
        """Return whether a name and its value stand in brackets, and not the names of two fields."""
        is_open = _PAIR_OPENING.search(text, max(0, start - 16), start) is not None
        if not is_open and _CALL_OPENING.search(text, max(0, start - 90), start) is None:
            return False
        name = _NAME.match(text, start + len(key) + len(separator))
        return name is None or self._judge(name.group(1), True, False) == PLAIN

    def _judge_in_text(self, text: str, start: int, key: str, separator: str, query: bool) -> int:
        before = text[max(0, start - 1) : start]
        if not separator:
            # "--password x": nothing but white space follows, so only an option counts.
            is_option = key.startswith("--") or (_LONG_OPTION.match(key) and before in ("", " ", "\t", '"', "'"))
            return self._judge(key, True, False) if is_option else PLAIN
        if (
            separator.rstrip().endswith(",")
            and not key.startswith("--")
            and not self._is_pair(text, start, key, separator)
        ):
            return PLAIN
        in_query = start == 0 if before == "" else before in "?&#;"
        in_query = in_query and (query or before != "")
        verdict = self._judge(key, _is_loose(text, start, key, separator), in_query)
        if verdict != PLAIN:
            if separator[0] == ":" and (
                _EXCEPTION_NAME.search(key)
                or (_SOURCE_FILE.search(key) and text[start + len(key) + 1 : start + len(key) + 2] in ":0123456789")
                or (before == ":" and _ARN.search(text, max(0, start - 120), start))
                or (before == "<" and _CONVERTER.match(text, start + len(key) + len(separator)))
            ):
                return PLAIN  # "TokenError: ..." is an exception, "<token:pk>" a URL pattern
            return verdict
        if key.lower() in _RANDOM_CODES:
            found = _CODE.match(text, start + len(key) + len(separator))
            if found is not None and is_mixed(found.group(1)):
                # {"code": "x"}, of OAuth: elsewhere a code says what went wrong, and a key names an item.
                return SENSITIVE
        if key in _ARGUMENTS and _is_of_secret(text, start):
            return LABEL
        if before in ('"', "`", "[") and key.lower() in _COLUMNS:
            table = _TABLE_BEFORE.search(text, max(0, start - 64), start)
            if table is not None and self._judge(f"{table.group(1)} {key}", True, False) != PLAIN:
                return LABEL
        if key.lower() in _SECOND_WORDS:
            previous = _WORD_BEFORE.search(text, max(0, start - 40), start)
            if previous is not None:
                return self._judge(f"{previous.group(1)} {key}", False, False)
        return PLAIN


def _is_loose(text: str, start: int, key: str, separator: str) -> bool:
    """Return whether a short name such as `pass` is one of a secret: not in a sentence or a count."""
    if separator == ":" and key[:1].isupper():
        # &{Host:x User:y Pass:z}, of Go
        return text[start - 1 : start] == "{" or _MEMBER_BEFORE.search(text, max(0, start - 120), start) is not None
    if "=" in separator or '"' in separator or "'" in separator:
        return True
    is_member = separator.strip() == ":" and _OBJECT_BEFORE.search(text, max(0, start - 110), start) is not None
    return is_member and not _SMALL_NUMBER.match(text, start + len(key) + 1)


def _is_random_literal(text: str, key: str, begin: int) -> bool:
    """Return whether a random text is compared with a column that has a general name: WHERE key = 'x'."""
    found = _CODE.match(text, begin) if key.lower() in _RANDOM_CODES else None
    if found is None:
        return False
    value = found.group(1)
    return is_mixed(value) or (len(value) >= _SHORTEST_HEX and "-" not in value and has_random_part(value))


def _redact_again(text: str, values: list[str]) -> str:
    """Redact values that stood under a name where they stand under none, as the arguments behind a statement do."""
    for value in dict.fromkeys(values[:_MOST_REPEATED]):
        if _REPEATED.match(value) and has_random_part(value):
            text = text.replace(value, REDACTED)
    return text


def _is_of_secret(text: str, start: int) -> bool:
    """Return whether the argument that begins at `start` is one of an object that is a secret by its name."""
    opening = text.rfind("(", max(0, start - 150), start)
    return opening > 0 and text.endswith(_OWNERS, 0, opening) and text.find(")", opening, start) < 0


def _is_within(spans: list[tuple[int, int]], pos: int) -> bool:
    """Return whether `pos` is in one of the spans, which are in order."""
    index = bisect_right(spans, (pos, len(spans) and spans[-1][1])) - 1
    return index >= 0 and pos < spans[index][1]


def _skipped_end(text: str, begin: int, separator: str, is_sql: bool) -> int:
    """Return the end of a mask, or of a part of a statement that is not a literal, at `begin`; -1 without one."""
    masked = mask_end(text, begin)
    if masked < 0 and is_sql and is_no_literal(text, begin, separator):
        return begin
    return masked


def _is_bare(key: str, separator: str) -> bool:
    """Return whether a blank or a divider stands between a key and what may be its value."""
    if not separator:
        return not key.startswith("-")
    return separator.strip(_AROUND_DIVIDERS) in _DIVIDERS and (separator[0] != "-" or key[-1] == "-")


def _codes_end(text: str, key: str, start: int, end: int) -> int:
    """Return where a list of codes, or a number in groups, ends whose first ends at `end`; else `end` itself."""
    is_list = key.endswith(("codes", "CODES"))
    more = (_MORE_CODES if is_list else _MORE_DIGITS).match(text, end)
    if more is not None or not is_list or end - start < _SHORTEST_CODE:
        return end if more is None else more.end()
    # Codes of letters alone have one length.
    while (code := _NEXT_CODE.match(text, end)) is not None and len(code.group(1)) == end - start:
        start, end = code.span(1)
    return end


def _with_change(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Return where a value stands, and the one that it was changed to."""
    changed = _CHANGED.match(text, end)
    if changed is None or text.startswith(REDACTED, changed.end()):
        return [(start, end)]
    return [(start, end), (changed.end(), run_end(text, changed.end()))]


def _item_spans(text: str, pos: int) -> list[tuple[int, int]] | None:
    """Return where the items of a list on the lines from `pos` stand; None when there is none."""
    spans = []
    item = first = _NEXT_ITEM.match(text, pos)
    while item is not None:
        if not _NEXT_KEY.match(item.group("item")):
            spans.append(item.span("item"))
        item = _NEXT_ITEM.match(text, item.end())
    return None if first is None else spans


def _literal_around(text: str, start: int, end: int) -> re.Match[str] | None:
    """Return the string of a line of source that the key between `start` and `end` is a part of, not all."""
    for literal in _SOURCE_LITERAL.finditer(text, text.rfind("\n", 0, start) + 1, line_end(text, start)):
        if literal.start(2) > start:
            return None
        if literal.end(2) > start:
            return None if _inside(literal) == (start, end) else literal
    return None


def _literal_spans(text: str, pos: int) -> list[tuple[int, int]]:
    """Return where the literals of the value at `pos` stand in a line of source; expressions hold names, no secrets."""
    end = line_end(text, pos)
    literal = _SOURCE_LITERAL.match(text, pos, end)
    if literal is not None:
        return [_inside(literal)] if _is_literal_secret(literal) else []
    if text[pos : pos + 1] in ("[", "(", "{"):
        end = bracket_end(text, pos, end)
        return [_inside(found) for found in _SOURCE_LITERAL.finditer(text, pos, end) if _is_literal_secret(found)]
    if text[pos : pos + 1] in ('"', "'"):
        # A string that does not end on its line.
        return [(pos + 1, end)]
    number = _SOURCE_NUMBER.match(text, pos, end)
    return [number.span()] if number is not None else []


def _inside(literal: re.Match[str]) -> tuple[int, int]:
    return literal.start(2) + 1, literal.end(2) - 1


def _is_literal_secret(literal: re.Match[str]) -> bool:
    content = literal.group(2)[1:-1]
    return bool(_INTERPOLATION.sub("", content) if "{" in content else content)
