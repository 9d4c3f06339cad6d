"""Regular expressions, by the library that nginx itself asks (libpcre2-8), with a limit on the work.

Python's own mean something else by `[[:alnum:]]` and `\\h`, and may search for ever. Runs as: anyone. Trusts: nginx's configuration.
Reads: the library. Writes: nothing.
"""

from __future__ import annotations

import ctypes
import functools

LIBRARY = "libpcre2-8.so.0"
LIMIT = 100_000                    # steps of one search, some milliseconds; nginx's own is 10 million
_CASELESS, _NO_MATCH = 0x8, -1
_UNSET = ctypes.c_size_t(-1).value


class Unknown(Exception):
    """It cannot be told whether an expression matches; the text says why, and `mend` what helps."""

    def __init__(self, why: str, mend: str = "write that expression in a simpler way") -> None:
        super().__init__(why)
        self.mend = mend


def search(pattern: str, text: str, ignoring_case: bool = False) -> tuple[str, ...] | None:
    """What matched and its groups ("" where one did not take part), None where it does not match. Raises Unknown."""
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
        library.pcre2_set_match_limit_8(context, LIMIT)
        count = library.pcre2_match_8(code, subject, len(subject), 0, 0, data, context)
        if count == _NO_MATCH:
            return None
        if count < 0:
            raise Unknown(f"the regular expression {pattern[:80]} takes too long")
        ends = library.pcre2_get_ovector_pointer_8(data)
        spans = [(ends[2 * at], ends[2 * at + 1]) for at in range(library.pcre2_get_ovector_count_8(data))]
        return tuple("" if begin == _UNSET else subject[begin:end].decode("utf-8", "surrogateescape") for begin, end in spans)
    finally:
        library.pcre2_match_context_free_8(context)
        library.pcre2_match_data_free_8(data)
        library.pcre2_code_free_8(code)


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
