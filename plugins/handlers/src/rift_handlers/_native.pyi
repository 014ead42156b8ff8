"""The compiled module: see native/handlers.h for what ``lib`` offers."""

from typing import Any

ffi: Any
lib: Any
