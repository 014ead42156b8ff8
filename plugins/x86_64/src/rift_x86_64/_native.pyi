from typing import Any

ffi: Any

class _Lib:
    RIFT_X86_64_MAPPED: int
    RIFT_X86_64_NOT_CANONICAL: int
    RIFT_X86_64_NOT_PRESENT: int
    RIFT_X86_64_TABLE_OUTSIDE: int
    RIFT_X86_64_RESERVED_BITS: int
    def rift_x86_64_tables_create(self, largest_page: int) -> Any: ...

lib: _Lib
