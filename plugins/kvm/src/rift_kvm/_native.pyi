"""The compiled module: see native/kvm.h for what ``lib`` offers."""

from typing import Any

ffi: Any
lib: Any
