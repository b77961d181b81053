"""SQL without literals: what stays, what goes, and that nothing else ever leaves."""

import sqlite3
import threading

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg import sql as psycopg_sql
from psycopg2 import sql as psycopg2_sql

from django_otel.redaction import statements
from django_otel.redaction.statements import OPERATIONS, OTHER, UNREADABLE, parameterise
from tests import sizes
from tests.redaction.growth import MOST_PER_DOUBLING, growth_per_doubling

SECRET = "s3cr3t"
VENDORS = ("postgresql", "mysql", "sqlite", "oracle", "microsoft", "somewhere")


# --- Texts. ---


@sizes.each(
    ("vendor", "sql", "text"),
    [
        # Strings of every dialect.
        ("postgresql", "SELECT 'a', 'it''s', ''", "SELECT ?, ?, ?"),
        ("postgresql", r"SELECT E'it\'s \\', e'x' FROM t", "SELECT ?, ? FROM t"),
        ("postgresql", "SELECT $$a'b$$, $t$ $$ '' $t$, $é$x$é$ FROM t", "SELECT ?, ?, ? FROM t"),
        ("postgresql", r"SELECT U&'d\0061t', N'x', X'1F', B'01', b'1' FROM t", "SELECT ?, ?, ?, ?, ? FROM t"),
        ("postgresql", "SELECT date'2020-01-01', date '2020-01-01'", "SELECT date ?, date ?"),
        ("postgresql", "SELECT 'a'\n'b' FROM t", "SELECT ? ? FROM t"),
        ("mysql", "SELECT 'a', \"b\", \"c\"\"d\", N'e', _utf8'f', x'1F' FROM `t`", "SELECT ?, ?, ?, ?, _utf8 ?, ? FROM `t`"),  # noqa: E501
        ("oracle", "SELECT q'[it's]', Q'{a}b}', nq'!x'y!', N'z' FROM \"T\"", 'SELECT ?, ?, ?, ? FROM "T"'),
        ("microsoft", "SELECT N'x', \"y\", $12.50, 0xFF FROM [dbo].[a]]b]", "SELECT ?, ?, ?, ? FROM [dbo].[a]]b]"),
        ("sqlite", "SELECT 'a', x'1f' FROM [t] WHERE `b` = 'c'", "SELECT ?, ? FROM [t] WHERE `b` = ?"),
        # Numbers, whose sign is part of them where no difference is meant.
        ("postgresql", "SELECT 1, 1.5, .5, 1e5, 1E-5, 0xFF, 1_000", "SELECT ?, ?, ?, ?, ?, ?, ?"),
        ("postgresql", "SELECT -1, +1, (-1), a-1, a -1, f(x)-1, 1-1", "SELECT ?, ?, (?), a-?, a -?, f(x)-?, ?-?"),
        ("postgresql", "SELECT a1, t2.b3 FROM t2 LIMIT -1", "SELECT a1, t2.b3 FROM t2 LIMIT ?"),
        # Keyword literals tell nothing about anybody.
        ("postgresql", "SELECT NULL, TRUE, CURRENT_DATE", "SELECT NULL, TRUE, CURRENT_DATE"),
        # Comments.
        ("postgresql", "SELECT /* a /* b */ c */ 1 -- d\n FROM t --e", "SELECT ? FROM t"),
        ("postgresql", "SELECT a--b\r, c FROM t", "SELECT a , c FROM t"),
        ("mysql", "SELECT a # b\n, c -- d\n, e--1 /* f */ FROM t", "SELECT a , c , e-? FROM t"),
        ("sqlite", "SELECT a /* b */ FROM t -- c", "SELECT a FROM t"),
        ("microsoft", "SELECT a /* b /* c */ d */ FROM t", "SELECT a FROM t"),
        # Placeholders stay as they are written.
        ("postgresql", "SELECT %s, %(a b)s, $1, ?, :x, %b FROM t", "SELECT %s, %(a b)s, $1, ?, :x, %b FROM t"),
        ("sqlite", "SELECT ?, ?1, :x, @y, $z, %s FROM t", "SELECT ?, ?1, :x, @y, $z, %s FROM t"),
        ("oracle", "SELECT :arg0, :1 FROM t", "SELECT :arg0, :1 FROM t"),
        ("postgresql", "SELECT a[1:2], x::text, a % salary FROM t", "SELECT a[?:?], x::text, a % salary FROM t"),
        # Lists and rows become one.
        ("postgresql", "SELECT a FROM t WHERE b IN (%s, %s,%s)", "SELECT a FROM t WHERE b IN (%s)"),
        ("postgresql", "SELECT a FROM t WHERE b in ('x', -2, NULL)", "SELECT a FROM t WHERE b in (?)"),
        ("postgresql", "SELECT a FROM t WHERE (b, c) IN ((1, 2), (3, 4))", "SELECT a FROM t WHERE (b, c) IN ((?, ?))"),
        ("postgresql", "SELECT ARRAY[1, 2, 3], b IN (%s::uuid, %s::uuid)", "SELECT ARRAY[?], b IN (%s::uuid)"),
        ("postgresql", "SELECT a FROM t WHERE b IN (1, c, 2)", "SELECT a FROM t WHERE b IN (?, c, ?)"),
        ("postgresql", "SELECT a FROM t WHERE b IN (SELECT 1, 2)", "SELECT a FROM t WHERE b IN (SELECT ?, ?)"),
        ("postgresql", "INSERT INTO t VALUES (1, f(2)), (%s, g(h)), (%s, 3)", "INSERT INTO t VALUES (?, f(?))"),
        # Names stay, white space folds.
        ("postgresql", 'SELECT\n\t"a ""b""" ,  U&"c"\x00FROM  "s"."t" ', 'SELECT "a ""b""" , U&"c" FROM "s"."t"'),
        ("postgresql", "SELECT a ? 'b', c->>'d', e @> '{}' FROM t", "SELECT a ? ?, c->>?, e @> ? FROM t"),
        ("postgresql", "SELECT straße FROM größe WHERE ñ = 'ñ'", "SELECT straße FROM größe WHERE ñ = ?"),
    ],
)  # fmt: skip
def test_literals_go_and_the_rest_stays(vendor, sql, text):
    """Each dialect in its own words."""
    assert parameterise(sql, vendor).text == text


@sizes.each(
    ("vendor", "sql", "text"),
    [
        ("postgresql", "SELECT a, 'x", "SELECT a, ?"),
        ("postgresql", "SELECT a, E'x\\'", "SELECT a, ?"),
        ("postgresql", "SELECT a, $t$ x $tt$", "SELECT a, ?"),
        ("postgresql", "SELECT a /* x /* y */", "SELECT a ?"),
        ("postgresql", 'SELECT a, "x', "SELECT a, ?"),
        ("mysql", 'SELECT a, "x', "SELECT a, ?"),
        ("mysql", "SELECT a /* x", "SELECT a ?"),
        ("oracle", "SELECT q'[x]", "SELECT ?"),
        ("oracle", "SELECT q'", "SELECT ?"),
        ("microsoft", "SELECT [x", "SELECT ?"),
        ("sqlite", "SELECT [x", "SELECT ?"),
        # A server's mode decides whether the quote after a backslash ends the string.
        ("postgresql", r"SELECT 'a\', b, 'c'", "SELECT ?"),
        ("mysql", r"SELECT 'a\'b', c", "SELECT ?"),
        ("mysql", r'SELECT "a\"b", c', "SELECT ?"),
        # What MySQL executes of a comment, and its dollar quotes.
        ("mysql", "SELECT 1 /*!50000 + 'x */ y' */", "SELECT ? ?"),
        ("mysql", "CREATE FUNCTION f() LANGUAGE JAVASCRIPT AS $$ x $$", "CREATE FUNCTION f() LANGUAGE JAVASCRIPT AS ?"),
        # An unknown dialect: from the first thing on that dialects read differently.
        ("somewhere", "SELECT a FROM t WHERE b = 'x' AND c", "SELECT a FROM t WHERE b = ?"),
        ("somewhere", "SELECT a #x\n", "SELECT a ?"),
        ("somewhere", "SELECT a --x", "SELECT a ?"),
        ("somewhere", "SELECT $$x$$, b", "SELECT ?"),
        ("somewhere", "SELECT /* a /* b */ c */ 1", "SELECT ?"),
    ],
)  # fmt: skip
def test_what_is_not_certain_takes_the_rest_with_it(vendor, sql, text):
    """A literal without an end may be followed by anything."""
    assert parameterise(sql, vendor).text == text


@pytest.mark.parametrize("vendor", ["sqlite", "oracle"])
def test_a_backslash_is_an_ordinary_character_where_it_is_certain(vendor):
    """Django writes ESCAPE '\\' into every `contains` for these two."""
    assert parameterise(r"SELECT a FROM t WHERE b LIKE %s ESCAPE '\' AND c = 'd'", vendor).text == (
        "SELECT a FROM t WHERE b LIKE %s ESCAPE ? AND c = ?"
    )


# --- SQLite's double quotes. ---


@sizes.each(
    "sql",
    [
        'SELECT "t"."a" AS "b", COUNT(*) AS "c" FROM "t" INNER JOIN "u" ON ("t"."x" = "u"."y") WHERE "t"."z" = %s',
        'SELECT "t"."a" FROM "t" "alias", "u" WHERE "t" . "a" > %s ORDER BY "t"."a" ASC',
        'INSERT INTO "t" ("a", "b") VALUES (%s, %s) RETURNING "t"."id"',
        'INSERT OR IGNORE INTO "t" ("a") VALUES (%s) ON CONFLICT("a", "b") DO UPDATE SET "c" = EXCLUDED."c", "d" = %s',
        'UPDATE "t" SET "a" = %s, "b" = ("t"."b" + %s) WHERE "t"."id" = %s',
        'DELETE FROM "t" WHERE "t"."id" IN (SELECT U0."id" FROM "u" U0)',
        'CREATE TABLE "t" ("id" integer NOT NULL PRIMARY KEY, "b" text REFERENCES "u" ("id"), UNIQUE ("id", "b"))',
        'CREATE UNIQUE INDEX "i" ON "t" ("a", "b")',
        'CREATE TABLE IF NOT EXISTS "t" ("a" integer)',
        'ALTER TABLE "t" RENAME TO "u"',
        'WITH RECURSIVE "tree" AS (SELECT * FROM "t") SELECT * FROM "tree"',
        'SELECT * FROM "t" JOIN "u" USING ("a", "b")',
    ],
)
def test_sqlite_double_quotes_are_names_where_only_a_name_can_stand(sql):
    """So the texts of Django's own SQL stay readable."""
    assert parameterise(sql, "sqlite").text == sql


@sizes.each(
    "sql",
    [
        'SELECT "s3cr3t"',
        'SELECT a, "s3cr3t" FROM t',
        'SELECT * FROM t WHERE a = "s3cr3t"',
        'SELECT * FROM t WHERE "s3cr3t" = a',
        'SELECT * FROM t WHERE a IN ("s3cr3t", "s3cr3t")',
        'SELECT * FROM t WHERE a LIKE "s3cr3t" ESCAPE "s3cr3t"',
        'SELECT * FROM t WHERE a BETWEEN "s3cr3t" AND "s3cr3t"',
        'SELECT * FROM t WHERE a IS DISTINCT FROM "s3cr3t"',
        'SELECT * FROM t JOIN u ON ("s3cr3t" = a)',
        'SELECT * FROM t JOIN u ON "s3cr3t" = a, v',
        'SELECT * FROM t, f(a, "s3cr3t") ORDER BY "s3cr3t", "s3cr3t"',
        'SELECT f("s3cr3t"), key, g("s3cr3t"), key("s3cr3t") FROM t',
        'SELECT CASE a WHEN "s3cr3t" THEN "s3cr3t" ELSE "s3cr3t" END',
        'SELECT a || "s3cr3t" || "s3cr3t"',
        'INSERT INTO t VALUES ("s3cr3t", "s3cr3t"), ("s3cr3t", 1)',
        'INSERT INTO t (a) VALUES ("s3cr3t")',
        'INSERT INTO t SELECT "s3cr3t"',
        'INSERT INTO t (a) VALUES (1) RETURNING "s3cr3t", "s3cr3t"',
        'UPDATE t SET a = "s3cr3t"',
        'UPDATE t SET a = f("s3cr3t"), b = "s3cr3t" WHERE c = 1 RETURNING d, "s3cr3t"',
        'DELETE FROM t RETURNING a, "s3cr3t"',
        'SELECT a FROM t UNION SELECT "s3cr3t"',
        'SELECT a FROM t GROUP BY b, "s3cr3t" HAVING "s3cr3t" LIMIT 1, "s3cr3t"',
        'CREATE TABLE t (a text DEFAULT "s3cr3t", b text CHECK (b IN ("s3cr3t")), c AS ("s3cr3t"))',
        'CREATE TABLE t AS SELECT "s3cr3t"',
        'CREATE INDEX i ON t (a) WHERE b = "s3cr3t"',
        'CREATE VIEW v AS SELECT a FROM t JOIN u ON ("s3cr3t" = a)',
        'CREATE TRIGGER g AFTER UPDATE ON t WHEN "s3cr3t" = 1 BEGIN UPDATE t SET a = "s3cr3t"; END',
        'PRAGMA key = "s3cr3t"',
        'ATTACH "s3cr3t" AS x',
    ],
)
def test_sqlite_double_quotes_are_strings_where_a_value_can_stand(sql):
    """SQLite takes "x" for a string when no column has that name, and the columns are not known here."""
    assert SECRET not in parameterise(sql, "sqlite").text


def test_sqlite_itself_takes_some_double_quotes_for_strings():
    """The reason for the rule above, from the horse's mouth (unless this build has the misfeature off)."""
    database = sqlite3.connect(":memory:")
    try:
        assert database.execute('SELECT "s3cr3t"').fetchone() == (SECRET,)
    except sqlite3.OperationalError:
        pytest.skip("this SQLite was built without double-quoted strings")
    finally:
        database.close()


# --- Operation and table. ---


@sizes.each(
    ("sql", "summary"),
    [
        ('SELECT 1 FROM "a"', "SELECT a"),
        ("select 1 from a, b", "SELECT a"),
        ("(SELECT 1 FROM a) UNION (SELECT 2 FROM b)", "SELECT a"),
        ("/* x */ -- y\n SELECT 1", "SELECT"),
        ("SELECT * FROM (SELECT * FROM b) AS c", "SELECT b"),
        ('SELECT EXTRACT(YEAR FROM "x"."y") FROM "t"', "SELECT t"),
        ("SELECT a IS DISTINCT FROM b", "SELECT"),
        ("SELECT a IS DISTINCT FROM b FROM t FOR UPDATE", "SELECT t"),
        ("SELECT * FROM ONLY s.t", "SELECT s.t"),
        ('SELECT * FROM "s" . "t"', "SELECT s.t"),
        ("INSERT INTO t (a) SELECT b FROM u", "INSERT t"),
        ("UPDATE t SET a = 1", "UPDATE t"),
        ("DELETE FROM t", "DELETE t"),
        ("MERGE INTO t USING u ON a = b", "MERGE t"),
        ("WITH x AS (SELECT 1 FROM y) SELECT * FROM x", "SELECT y"),
        ("WITH x AS (SELECT 1 FROM y), z AS (DELETE FROM w) UPDATE t SET a = 1", "UPDATE t"),
        ("CREATE TABLE IF NOT EXISTS t (a int)", "CREATE t"),
        ("CREATE INDEX CONCURRENTLY i ON t (a)", "CREATE t"),
        ("ALTER TABLE ONLY t ADD a int", "ALTER t"),
        ("DROP TABLE IF EXISTS t CASCADE", "DROP t"),
        ("TRUNCATE t, u", "TRUNCATE t"),
        ("LOCK TABLE t IN SHARE MODE", "LOCK t"),
        ("CALL s.refresh(1)", "CALL s.refresh"),
        ("SAVEPOINT s1_x2", "SAVEPOINT"),
        ('RELEASE SAVEPOINT "s1_x2"', "RELEASE"),
        ("ROLLBACK TO SAVEPOINT s1_x2", "ROLLBACK"),
        ("EXPLAIN ANALYZE SELECT 1 FROM t", "EXPLAIN t"),
        ("SET search_path TO x", "SET"),
        ("SELEKT 1 FROM t", "OTHER t"),
        ("hunter2", "OTHER"),
        ("", "OTHER"),
        ("   ", "OTHER"),
        ("-- only a comment", "OTHER"),
        ("'x'", "OTHER"),
    ],
)
def test_operation_and_first_table_are_found(sql, summary):
    """They become the span's name; the operation becomes a label too."""
    found = parameterise(sql, "postgresql")
    assert found.summary == summary
    assert found.summary == " ".join(filter(None, (found.operation, found.table)))


def test_the_operation_comes_from_a_fixed_set():
    """A label must not take a word out of the project's SQL."""
    found = {parameterise(f"word{number} FROM t", "postgresql").operation for number in range(50)}
    assert found == {OTHER}
    assert len(OPERATIONS) < 70


def test_savepoints_have_one_text():
    """Django gives them a new name each time."""
    texts = {parameterise(f'SAVEPOINT "s140_x{number}"', "sqlite").text for number in range(5)}
    texts |= {parameterise(f"SAVEPOINT `s140_x{number}`", "mysql").text for number in range(5)}
    assert texts == {"SAVEPOINT ?"}


# --- Length. ---


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_cut_never_shows_a_part_of_a_literal(vendor):
    """Cut anywhere, the text holds nothing but what stands outside of strings."""
    sql = f"SELECT a, '{SECRET}', {SECRET!r}, 'it''s {SECRET}' FROM t WHERE b = '{SECRET}' AND c = 123456789"
    for length in range(1, len(sql)):
        text = parameterise(sql, vendor, length).text
        assert text.endswith(" ...")
        assert not any(SECRET[:size] in text for size in (2, len(SECRET)))
        assert not any(digit in text for digit in "123456789")


def test_a_cut_list_or_row_reads_like_any_other():
    """However many rows stand before the cut."""
    inserts = {
        parameterise("INSERT INTO t (a, b) VALUES " + ", ".join(["(%s, 'x')"] * count), "postgresql").text
        for count in (2000, 3000, 4001)
    }
    assert inserts == {"INSERT INTO t (a, b) VALUES (%s, ?) ..."}
    selects = {
        parameterise("SELECT a FROM t WHERE b IN (" + ", ".join(["%s"] * count), "postgresql").text
        for count in (2000, 3000)
    }
    assert selects == {"SELECT a FROM t WHERE b IN (%s ..."}


def test_what_is_remembered_is_bounded():
    """A thousand statements, none of them longer than is read."""
    statements._remembered.cache_clear()
    for number in range(1200):
        parameterise(f"SELECT a{number} FROM t" + " " * 10_000, "postgresql")
    assert statements._remembered.cache_info().currsize == statements.REMEMBERED
    long = parameterise("SELECT '" + "x" * 1_000_000, "postgresql")
    assert len(long.text) < 100
    hits = statements._remembered.cache_info().hits
    # The same beginning is the same statement, so a key is never longer than what is read.
    assert parameterise("SELECT '" + "x" * 900_000 + "y", "postgresql") is long
    assert statements._remembered.cache_info().hits == hits + 1


def test_threads_may_ask_at_once():
    """Each gets the right answer."""
    wrong = []

    def ask(offset):
        for number in range(2000):
            table = f"t{(number * 7 + offset) % 1500}"
            if parameterise(f"SELECT 1 FROM {table}", "sqlite").table != table:
                wrong.append(table)

    threads = [threading.Thread(target=ask, args=(offset,)) for offset in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- What cursor.execute takes besides str. ---


@pytest.mark.parametrize("sql", [psycopg_sql, psycopg2_sql], ids=["psycopg", "psycopg2"])
def test_composed_sql_is_read_without_a_connection(sql):
    """Names and placeholders as they are, literals as `?`."""
    composed = sql.SQL("SELECT {} FROM {} WHERE a = {} AND b IN ({}) AND c = {}").format(
        sql.Identifier("s", 'we"ird'),
        sql.Identifier("t"),
        sql.Literal(f"it's {SECRET}"),
        sql.SQL(", ").join([sql.Placeholder()] * 3),
        sql.Placeholder("named"),
    )
    assert parameterise(composed, "postgresql").text == (
        'SELECT "s"."we""ird" FROM "t" WHERE a = ? AND b IN (%s) AND c = %(named)s'
    )
    assert parameterise(sql.SQL("SELECT 'x'"), "postgresql").text == "SELECT ?"


def test_bytes_and_text_subclasses_are_read():
    """MySQL's driver and Django's SafeString."""
    from django.utils.safestring import mark_safe

    assert parameterise(b"SELECT 'x' FROM t", "mysql").summary == "SELECT t"
    assert parameterise(b"SELECT \xff'x\xe9' FROM t", "mysql").text == "SELECT \ufffd ? FROM t"
    found = parameterise(mark_safe("SELECT 'x' FROM safe"), "mysql")
    assert (found.text, type(found.text)) == ("SELECT ? FROM safe", str)


def test_what_is_no_sql_is_not_told():
    """The driver will say what is wrong with it."""

    class Odd:
        def as_string(self, context):
            raise RuntimeError

    for sql in (None, 5, object(), Odd(), [Odd()]):
        assert parameterise(sql, "postgresql") == UNREADABLE


# --- Fuzz. ---

_NASTY = st.text(st.sampled_from("'\"\\$`[](){};-#/* \n\r\t%?:@.,xXnNbBeEqQuU&0_1é\u00a0\ud800\x00!"), max_size=30)


def _dollar_quoted(body, tag):
    return f"${tag}${body}${tag}$"


def _literal_forms(vendor):
    """How each dialect writes a string with any content, escaped as a careful author would."""

    def doubled(prefix="", quote="'"):
        return lambda body: prefix + quote + body.replace(quote, quote * 2) + quote

    def backslashed(prefix="", quote="'"):
        return lambda body: prefix + quote + body.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote

    comments = [lambda body: "/*" + body.replace("*/", "").replace("/*", "").strip("*/") + " */ 1"]
    comments.append(lambda body: "-- " + body.replace("\n", "").replace("\r", "") + "\n 1")
    forms = {
        "postgresql": [
            doubled(),
            doubled("N"),
            doubled("U&"),
            backslashed("E"),
            backslashed("e"),
            lambda body: _dollar_quoted(body.replace("$", ""), ""),
            lambda body: _dollar_quoted(body.replace("$t$", ""), "t") if not body.endswith("$t") else "1",
            *comments,
            lambda body: "/* a /* " + body.replace("*/", "").replace("/*", "").strip("*/") + " */ b */ 1",
        ],
        "mysql": [doubled(), doubled(quote='"'), backslashed(), backslashed(quote='"'), doubled("_utf8"), *comments],
        "sqlite": [doubled(), doubled(quote='"'), *comments],
        "oracle": [
            doubled(),
            doubled("N"),
            lambda body: "q'[" + body.replace("]'", "") + "]'" if not body.endswith("]") else "1",
            lambda body: "nq'!" + body.replace("!'", "") + "!'" if not body.endswith("!") else "1",
            *comments,
        ],
        "microsoft": [doubled(), doubled("N"), doubled(quote='"'), *comments],
        "somewhere": [doubled(), backslashed(), doubled(quote='"'), *comments],
    }
    return forms[vendor]


_FRAMES = (
    "SELECT {} FROM t WHERE a = {} AND b IN ({}, {})",
    "INSERT INTO t (a, b) VALUES ({}, {}), ({}, {})",
    "UPDATE t SET a = {}, b = f({}, -{}) WHERE c LIKE {}",
    "SELECT CASE WHEN a = {} THEN {} ELSE {} END, 1-{} FROM t",
)


@st.composite
def _statements_with_secrets(draw):
    vendor = draw(st.sampled_from(VENDORS))
    literals = []
    for _ in range(4):
        form = draw(st.sampled_from(_literal_forms(vendor)))
        before, after = draw(_NASTY), draw(_NASTY)
        literals.append(form(before + SECRET + after))
    return vendor, draw(st.sampled_from(_FRAMES)).format(*literals)


@settings(max_examples=sizes.examples(1500), deadline=None)
@given(_statements_with_secrets(), st.integers(1, 300))
@pytest.mark.heavy
def test_a_secret_in_a_literal_never_leaves(drawn, length):
    """Whatever stands around it in the literal, in every form of every dialect, whole and cut."""
    vendor, sql = drawn
    for found in (parameterise(sql, vendor), parameterise(sql, vendor, length)):
        assert SECRET not in found.text
        assert SECRET not in found.summary
    assert parameterise(sql, vendor).operation in OPERATIONS


@settings(max_examples=sizes.examples(1500), deadline=None)
@given(st.sampled_from(VENDORS), st.one_of(st.text(), _NASTY, st.binary()))
@example("postgresql", "\ud800 FROM \udfff")
@example("sqlite", 'x "')
def test_any_text_is_read_without_an_error_and_can_be_encoded(vendor, sql):
    """Lone surrogates, control characters, halves of everything."""
    found = parameterise(sql, vendor)
    found.text.encode()
    found.summary.encode()
    assert found.operation in OPERATIONS | {OTHER}
    assert "\x00" not in found.text + found.summary


def test_a_name_with_control_characters_is_told_without_them():
    """A quoted name may hold anything."""
    assert parameterise('SELECT 1 FROM "a\x00\nb"', "postgresql").text == 'SELECT ? FROM "a  b"'
    assert parameterise('SELECT 1 FROM "a\x00\nb"', "postgresql").table == "a b"


@settings(max_examples=sizes.examples(500), deadline=None)
@given(_statements_with_secrets())
def test_a_text_without_literals_is_not_changed_again(drawn):
    """What comes out is a statement like any other, with placeholders where the literals were."""
    vendor, sql = drawn
    once = parameterise(sql, vendor).text
    assert parameterise(once, vendor).text == once


@settings(max_examples=sizes.examples(300), deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_sqlite_and_we_agree_on_where_a_string_ends(before, after):
    """The engine itself is the judge: what it takes for one string is one `?`."""
    body = (before + SECRET + after).replace("\x00", "").encode("utf-8", "ignore").decode()
    sql = f"SELECT '{body.replace(chr(39), chr(39) * 2)}'"
    database = sqlite3.connect(":memory:")
    try:
        assert database.execute(sql).fetchone() == (body,)
    finally:
        database.close()
    assert parameterise(sql, "sqlite").text == "SELECT ?"


@pytest.mark.heavy
@pytest.mark.parametrize(
    "piece",
    sizes.few(["'", '"', "''", "\\'", "E'", "$a$", "$a", "/*", "*/", "(", "a.", "q'[", "[", "`", "--", "#", "%(", "1e+",
     "- ", "VALUES (", "VALUES (() ", "VALUES (?), ", "IN (?, ", "IN ((?), ", "?, ", "N'x", "é$", "\\", "1'"], 4),
)  # fmt: skip
def test_reading_is_linear_in_the_length(piece):
    """Also of a text made to be slow."""
    for vendor in VENDORS:
        growth = growth_per_doubling(
            lambda sql, vendor=vendor: statements._remembered.__wrapped__(sql, vendor, False),
            lambda length: "SELECT a FROM t WHERE b IN (?, ?" + piece * (length // len(piece)),
            4_000,
        )
        assert growth < MOST_PER_DOUBLING, vendor


def test_a_megabyte_is_cut_before_it_is_read(monkeypatch):
    """It costs no more than the part that is read."""
    read = []
    original = statements._Reader.read

    def count(reader):
        read.append(len(reader.sql))
        original(reader)

    monkeypatch.setattr(statements._Reader, "read", count)
    assert parameterise("SELECT 'unseen', " + "'x', " * 200_000, "postgresql").text.endswith(" ...")
    assert read == [statements.MAX_LENGTH]


@sizes.each("vendor", ["postgresql", "mysql", "sqlite", "oracle", "microsoft", "unknown"])
@sizes.each(
    ("sql", "expected"),
    [
        ("CREATE USER bob IDENTIFIED BY tiger", "CREATE USER bob IDENTIFIED BY ?"),
        ("alter user bob identified by tiger account unlock", "alter user bob identified by ? account unlock"),
        ("GRANT ALL ON t TO bob IDENTIFIED BY PASSWORD tiger", "GRANT ALL ON t TO bob IDENTIFIED BY PASSWORD ?"),
        ("PRAGMA key(tiger)", "PRAGMA key(?)"),
        ("PRAGMA key = tiger", "PRAGMA key = ?"),
        ("PRAGMA main.rekey=tiger", "PRAGMA main.rekey=?"),
        ("SET app.jwt = tiger", "SET app.jwt = ?"),
        ("SET LOCAL app.jwt TO tiger, lion", "SET LOCAL app.jwt TO ?"),
        ("ALTER ROLE bob SET app.jwt = tiger", "ALTER ROLE bob SET app.jwt = ?"),
        ("SET PASSWORD FOR bob = tiger", "SET PASSWORD FOR bob = ?"),
        ("CREATE USER bob IDENTIFIED BY %s", "CREATE USER bob IDENTIFIED BY %s"),
        ("SET app.jwt = %s", "SET app.jwt = %s"),
        ("SET search_path = public", "SET search_path = public"),
        ("PRAGMA foreign_keys = ON", "PRAGMA foreign_keys = ON"),
        ("UPDATE t SET t.password = s.password", "UPDATE t SET t.password = s.password"),
    ],
)
def test_a_secret_that_is_a_bare_word_does_not_stay(sql, expected, vendor):
    assert statements.parameterise(sql, vendor).text == expected


def test_oracle_quotes_passwords_as_names():
    text = statements.parameterise('ALTER USER bob IDENTIFIED BY "tiger"', "oracle").text
    assert text == "ALTER USER bob IDENTIFIED BY ?"
