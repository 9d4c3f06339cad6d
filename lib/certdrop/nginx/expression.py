"""Regular expressions, by the library that nginx itself asks (libpcre2-8), with a limit on the work.

Python's own mean something else by `[[:alnum:]]` and `\\h`, and may search for ever. Runs as: anyone. Trusts: nginx's configuration.
Reads: the library. Writes: nothing.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from typing import NamedTuple

LIBRARY = "libpcre2-8.so.0"
LIMIT = 1_000_000                  # steps of one search, some milliseconds; nginx's own is 10 million at each place where a match can begin
_CASELESS, _NO_MATCH = 0x8, -1
_NAME_COUNT, _NAME_SIZE, _NAME_TABLE = 17, 18, 19          # PCRE2_INFO_...
_UNSET = ctypes.c_size_t(-1).value


class Unknown(Exception):
    """It cannot be told whether an expression matches; the text says why, and `mend` what helps."""

    def __init__(self, why: str, mend: str = "write that expression in a simpler way") -> None:
        super().__init__(why)
        self.mend = mend


class Found(NamedTuple):
    """What matched and its groups ("" where one did not take part), and those that have a name."""

    groups: tuple[str, ...]
    names: dict[str, str]


@functools.lru_cache(maxsize=4096)
def match(pattern: str, text: str, ignoring_case: bool = False) -> Found | None:
    """What matched; None where it does not match. Raises Unknown."""
    library = _library()
    raw, subject = (part.encode("utf-8", "surrogateescape") for part in (pattern, text))
    error, offset = ctypes.c_int(), ctypes.c_size_t()
    code = library.pcre2_compile_8(raw, len(raw), _CASELESS if ignoring_case else 0, ctypes.byref(error), ctypes.byref(offset), None)
    if not code:
        raise Unknown(f"the regular expression {pattern[:80]} is not one")
    data = context = None
    try:
        data, context = library.pcre2_match_data_create_from_pattern_8(code, None), library.pcre2_match_context_create_8(None)
        if not data or not context:
            raise Unknown("there is no memory")
        library.pcre2_set_match_limit_8(context, max(1000, LIMIT // (len(subject) + 1)))           # which counts anew at each place to begin at
        count = library.pcre2_match_8(code, subject, len(subject), 0, 0, data, context)
        if count == _NO_MATCH:
            return None
        if count < 0:
            raise Unknown(f"the regular expression {pattern[:80]} takes too long")
        ends = library.pcre2_get_ovector_pointer_8(data)
        spans = [(ends[2 * at], ends[2 * at + 1]) for at in range(library.pcre2_get_ovector_count_8(data))]
        groups = tuple("" if begin == _UNSET else subject[begin:end].decode("utf-8", "surrogateescape") for begin, end in spans)
        return Found(groups, {name: groups[number] for name, number in _names(library, code)})
    finally:
        library.pcre2_match_context_free_8(context)
        library.pcre2_match_data_free_8(data)
        library.pcre2_code_free_8(code)


def search(pattern: str, text: str, ignoring_case: bool = False) -> tuple[str, ...] | None:
    """What matched and its groups, None where it does not match. Raises Unknown."""
    found = match(pattern, text, ignoring_case)
    return found.groups if found else None


def _names(library: ctypes.CDLL, code: int) -> Iterator[tuple[str, int]]:
    """The groups that have a name (pcre2_pattern_info: two bytes for the number, then the name)."""
    count, size, table = ctypes.c_uint32(), ctypes.c_uint32(), ctypes.c_void_p()
    for what, into in ((_NAME_COUNT, count), (_NAME_SIZE, size), (_NAME_TABLE, table)):
        library.pcre2_pattern_info_8(code, what, ctypes.byref(into))
    entries = ctypes.string_at(table, count.value * size.value) if count.value and table else b""
    for at in range(0, len(entries), size.value or 1):
        entry = entries[at:at + size.value]
        yield entry[2:].partition(b"\0")[0].decode("ascii", "replace"), entry[0] << 8 | entry[1]


@functools.lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise Unknown(f"{LIBRARY} cannot be loaded", "apt install libpcre2-8-0") from None
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32
    for name, result, arguments in (
            ("compile", pointer, [ctypes.c_char_p, size, number, pointer, pointer, pointer]),
            ("match_data_create_from_pattern", pointer, [pointer, pointer]),
            ("match_context_create", pointer, [pointer]),
            ("pattern_info", ctypes.c_int, [pointer, number, pointer]),
            ("set_match_limit", ctypes.c_int, [pointer, number]),
            ("match", ctypes.c_int, [pointer, ctypes.c_char_p, size, size, number, pointer, pointer]),
            ("get_ovector_pointer", ctypes.POINTER(size), [pointer]),
            ("get_ovector_count", number, [pointer]),
            ("match_context_free", None, [pointer]),
            ("match_data_free", None, [pointer]),
            ("code_free", None, [pointer])):
        function = getattr(library, f"pcre2_{name}_8")
        function.restype, function.argtypes = result, arguments
    return library
