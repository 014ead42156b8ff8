"""The compiled module: see native/gdb.h for what ``lib`` offers."""

from typing import Any

ffi: Any
lib: Any
