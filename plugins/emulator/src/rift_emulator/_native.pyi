"""The compiled module: see native/emulator.h for what ``lib`` offers."""

from typing import Any

ffi: Any
lib: Any
