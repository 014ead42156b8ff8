from typing import Any

ffi: Any

class _Lib:
    RIFT_AARCH64_MAPPED: int
    RIFT_AARCH64_NOT_CANONICAL: int
    RIFT_AARCH64_NOT_PRESENT: int
    RIFT_AARCH64_TABLE_OUTSIDE: int
    RIFT_AARCH64_NO_BLOCK: int
    RIFT_AARCH64_ADDRESS_SIZE: int
    RIFT_AARCH64_ACCESS_FLAG: int
    def rift_aarch64_tables_create(self, geometry: Any) -> Any: ...
    def rift_aarch64_tables_splits(self, tables: Any, linear: int, size: int) -> int: ...

lib: _Lib
