"""The compiled module: see native/hvf.h for what ``lib`` offers."""

from typing import Any

ffi: Any
lib: Any
