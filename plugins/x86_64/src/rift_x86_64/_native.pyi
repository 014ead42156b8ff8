from typing import Any

ffi: Any

class _Lib:
    RIFT_X86_64_MAPPED: int
    RIFT_X86_64_NOT_CANONICAL: int
    RIFT_X86_64_NOT_PRESENT: int
    RIFT_X86_64_TABLE_OUTSIDE: int
    RIFT_X86_64_RESERVED_BITS: int
    def rift_x86_64_tables_create(self, largest_page: int) -> Any: ...
    def rift_x86_64_tables_destroy(self, tables: Any) -> None: ...
    def rift_x86_64_tables_set_regions(self, tables: Any, regions: Any, count: int, error: Any) -> int: ...
    def rift_x86_64_tables_add(self, tables: Any, address: int, size: int, error: Any) -> int: ...
    def rift_x86_64_tables_root(self, tables: Any) -> int: ...
    def rift_x86_64_tables_free(self, tables: Any) -> int: ...
    def rift_x86_64_tables_map(self, tables: Any, mappings: Any, count: int, where: Any, error: Any) -> int: ...
    def rift_x86_64_tables_unmap(self, tables: Any, linear: int, size: int, where: Any, error: Any) -> int: ...
    def rift_x86_64_tables_protect(
        self, tables: Any, linear: int, size: int, flags: int, where: Any, error: Any
    ) -> int: ...
    def rift_x86_64_tables_walk(self, tables: Any, linear: int, walk: Any) -> None: ...
    def rift_x86_64_tables_accessed(
        self,
        tables: Any,
        linear: int,
        size: int,
        clear: int,
        pages: Any,
        capacity: int,
        count: Any,
        next: Any,
        where: Any,
        error: Any,
    ) -> int: ...

lib: _Lib
