"""Attributes as the bytes of protobuf, redacted on the way and remembered by key and value."""

from __future__ import annotations

import operator
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from django_otel.base import guard
from django_otel.export.wire import FIRST_VARINTS, FLOAT, KEY, STRING, VALUE, write_field, write_pair, write_value
from django_otel.tracing.attributes import SharedAttributes

if TYPE_CHECKING:
    from django_otel.redaction.scrub import Scrubber

#: Longer texts are encoded each time: they are rarely repeated.
MAX_CACHED_LENGTH = 512
#: Bytes that an encoder remembers before it starts from empty tables (estimated, with the dict entries).
MAX_CACHE_BYTES = 4 * 2**20
#: Cost of a remembered value beside its own and its encoding's length, in bytes: two objects and a dict entry.
CACHE_ENTRY_BYTES = 190
#: Different values of one key that are remembered.
MAX_CACHED_VALUES = 1024
#: Attributes of a query that are kept as they were written; there may be some thousand such.
_MAX_BLOCK_BYTES = 2048
#: A float as an `AnyValue`: its tag and eight bytes.
_FLOAT_BYTES = 9
_FLOAT = struct.Struct("<d")


class AttributeWriter:
    """Encodes the attributes of spans, of events or of links; each kind has a tag of its own.

    Attributes come in few shapes (which keys, in which order). A shape has one
    table per key, from value to encoding, so that a span's attributes are found
    by as many look-ups, all of them in C, where a loop is slower.
    """

    def __init__(self, tag: bytes, level: int, scrubber: Scrubber | None) -> None:
        self._tag = tag
        self._level = level
        self._scrubber = scrubber
        self._is_pure = scrubber is None or scrubber.is_pure
        self._fresh_text = None if scrubber is None else scrubber.fresh_text
        self.lost = 0
        self._shapes: dict[tuple[object, ...], list[_Table]] = {}
        self._tables: dict[object, _Table] = {}
        self._bytes = 0

    def fields(self, attributes: Mapping[str, object]) -> list[bytes]:
        """The encoding of each attribute; of one that cannot be encoded nothing."""
        shape = tuple(attributes)
        lost = self.lost
        try:
            return list(map(operator.getitem, self._shapes.get(shape) or self._add_shape(shape), attributes.values()))
        except TypeError:
            # A value that cannot be looked up, such as a list; those before it are done again.
            self.lost = lost
            tables = self._shapes.get(shape) or self._add_shape(shape)
            return [table.encode(value) for table, value in zip(tables, attributes.values(), strict=True)]

    def block(self, attributes: SharedAttributes) -> bytes:
        """The encoding of all of them, left with them for the next span unless it is long or one is missing."""
        lost = self.lost
        block = b"".join(self.fields(attributes))
        if self._is_pure and self.lost == lost and len(block) <= _MAX_BLOCK_BYTES:
            attributes.encoded = (self, block)
        return block

    def _add_shape(self, shape: tuple[object, ...]) -> list[_Table]:
        tables = [self._tables[key] if key in self._tables else self._add_table(key) for key in shape]
        if any(table.exported_key is not table.key for table in tables):
            # Keys that hold a secret are not remembered. Of those that look alike without it the last one counts.
            last = {table.exported_key: table for table in tables}
            return [table if last[table.exported_key] is table else _LeftOut(self, table.key) for table in tables]
        self._count_in(len(shape) * 16 + CACHE_ENTRY_BYTES)
        self._shapes[shape] = tables
        return tables

    def _add_table(self, key: object) -> _Table:
        self._count_in(4 * CACHE_ENTRY_BYTES)
        table = _Table(self, key)
        if table.exported_key is key:
            self._tables[key] = table
        return table

    def clean_key(self, key: object) -> Any:
        """Return the key as it is exported, the same object unless a secret was in it."""
        return key if self._scrubber is None or not isinstance(key, str) else self._scrubber.key(key)

    def _count_in(self, size_bytes: int) -> None:
        self._bytes += size_bytes
        if self._bytes > MAX_CACHE_BYTES // 4:
            self._bytes = size_bytes
            self._shapes.clear()
            for table in self._tables.values():
                # The span that is being encoded goes on with them.
                table.forget()
            self._tables.clear()

    def make_text(self, table: _Table, text: str) -> bytes:
        """Encode a text that is not in its key's table, and put it there if it may be.

        In one go, since every request has such a one: its path.
        """
        scrubbed = text
        if self._fresh_text is not None:
            if not table.is_text_only:
                return self.make(table, text)
            scrubbed = self._fresh_text(text)
        # Of ASCII as many bytes as characters; 900: so that every length below is in the table of varints.
        length = len(scrubbed)
        if length > 900 or not table.head or not scrubbed.isascii():
            return self.make(table, text)
        value = FIRST_VARINTS[length]
        length += 1 + len(value)
        content = FIRST_VARINTS[length]
        length += len(table.head) + len(content)
        field = b"".join((self._tag, FIRST_VARINTS[length], table.head, content, STRING, value, scrubbed.encode()))
        if scrubbed is text:
            self._keep(table, table, text, field)
        return field

    def make(self, table: _Table, value: object) -> bytes:
        """Encode any value that is not in its key's tables, and put it there if it may be."""
        field, is_kept = self.encode(table.key, table.exported_key, value)
        if is_kept and self._is_pure:
            kind = type(value)
            known = table if kind is str else table.integers if kind is int else table.flags if kind is bool else None
            if known is not None:
                self._keep(table, known, value, field)
        return field

    def _keep(self, table: _Table, known: dict[Any, bytes], value: object, field: bytes) -> None:
        if len(field) > MAX_CACHED_LENGTH:
            return
        if len(known) >= MAX_CACHED_VALUES:
            # A key with ever new values, such as a path. Those that came first may still be the usual ones, and
            # keeping each new one for nothing costs more than encoding it; now and then the table begins empty.
            table.refused += 1
            if table.refused < 16 * MAX_CACHED_VALUES:
                return
            self._bytes -= table.size_bytes
            table.forget()
        size_bytes = 2 * len(field) + CACHE_ENTRY_BYTES
        table.size_bytes += size_bytes
        self._count_in(size_bytes)
        known[value] = field

    def encode(self, key: Any, exported_key: object, value: object) -> tuple[bytes, bool]:
        """The field, or nothing; and whether the scrubber left the value as it was."""
        try:
            scrubbed = value if self._scrubber is None else self._scrubber.value(key, value)
            pair = write_pair(exported_key, write_value(scrubbed, self._level))
            return write_field(self._tag, pair), scrubbed is value
        except Exception as error:
            # As the stock encoder has it: this attribute alone is missing.
            self.lost += 1
            guard.report("encoding an attribute", error)
            return b"", False

    def head(self, key: object) -> tuple[bytes, bool]:
        """Return the bytes before the value's length in a pair, or b"", and whether the key leaves texts unredacted."""
        if type(key) is not str:
            return b"", False
        if len(key) > 100:
            return b"", False
        try:
            head = write_field(KEY, self.clean_key(key).encode()) + VALUE
            return head, self._scrubber is not None and self._scrubber.is_text_only(key)
        except UnicodeEncodeError:
            # Counted for each attribute under it.
            return b"", False

    def float_head(self, head: bytes) -> bytes:
        """Return the bytes of a field before a float; `head` is that of its pair."""
        content = FIRST_VARINTS[_FLOAT_BYTES] + FLOAT
        length = len(head) + len(content) + _FLOAT_BYTES - 1
        return b"".join((self._tag, FIRST_VARINTS[length], head, content)) if head else b""


class _Table(dict[object, bytes]):
    """From the texts under one key to their fields; missing ones are made.

    Numbers have tables of their own, by type, since 1, True and 1.0 are equal
    and have the same hash. Floats have none: 0.0 and -0.0 are equal, too.
    """

    __slots__ = (
        "_writer", "exported_key", "flags", "float_head", "head", "integers", "is_text_only", "key", "refused",
        "size_bytes",
    )  # fmt: skip

    def __init__(self, writer: AttributeWriter, key: object) -> None:
        self._writer = writer
        self.key = key
        #: The key without the secret that is in it; the same object when there is none.
        self.exported_key = writer.clean_key(key)
        self.head, self.is_text_only = writer.head(key)
        #: Bytes before the eight bytes of a float; the key decides nothing about one where it leaves texts alone.
        self.float_head = writer.float_head(self.head) if self.is_text_only else b""
        self.integers: dict[int, bytes] = {}
        self.flags: dict[bool, bytes] = {}
        self.size_bytes = 0
        #: Values that came when the table was full.
        self.refused = 0

    def __missing__(self, value: Any) -> bytes:
        kind = type(value)
        found = None
        if kind is str:
            return self._writer.make_text(self, value)
        if kind is int:
            found = self.integers.get(value)
        elif kind is bool:
            found = self.flags.get(value)
        elif kind is float and self.float_head:
            return self.float_head + _FLOAT.pack(value)
        return self._writer.make(self, value) if found is None else found

    def encode(self, value: object) -> bytes:
        """Encode a value without a look into the table."""
        return self._writer.encode(self.key, self.exported_key, value)[0]

    def forget(self) -> None:
        self.clear()
        self.integers.clear()
        self.flags.clear()
        self.size_bytes = self.refused = 0


class _LeftOut(_Table):
    """Stands for an attribute whose key is another one's after redaction."""

    __slots__ = ()

    def __missing__(self, value: object) -> bytes:
        return b""

    def encode(self, value: object) -> bytes:
        return b""
