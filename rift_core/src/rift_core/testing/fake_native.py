"""Native exit handlers on the fake backend: called through cffi's ABI mode, by the rules of ``rift_dispatch.c``.

Imported only when a machine has a native handler and cffi is there.
"""

from __future__ import annotations

import ctypes
import errno
import time
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import cffi  # type: ignore[import-untyped,unused-ignore]

from rift_core.errors import HypervisorError, RiftError

if TYPE_CHECKING:
    from rift_core.exits import Exit, ExitHandler
    from rift_core.testing.fake_memory import PhysicalMemory
    from rift_core.testing.fake_vcpu import FakeVCpu

_PASS, _RESUME, _STOP = 0, 1, 2
_LAST = (1 << 64) - 1
_POLL_SECONDS = 0.001  # how often a waiting handler looks at its word


@dataclass(frozen=True, slots=True)
class NativeAnswer:
    """``value`` is the reply to a read, or the status of a stop."""

    stopped: bool
    value: int


@cache
def _ffi() -> Any:
    """The declarations of ``rift_abi.h``: the header is the cdef."""
    text = (files("rift_core") / "include" / "rift_abi.h").read_text(encoding="utf-8")
    ffi = cffi.FFI()
    ffi.cdef("\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return ffi


@cache
def _abi_version() -> int:
    text = (files("rift_core") / "include" / "rift_abi.h").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("#define RIFT_ABI_VERSION"))
    return int(line.split()[2])


@dataclass(frozen=True, slots=True)
class _Range:
    first: int
    last: int
    function: Any
    context: Any


class NativeTable:
    """The native handlers of one VM, by exit kind."""

    def __init__(self) -> None:
        self._owners: dict[int, list[_Range]] = {}
        self._fallbacks: dict[int, list[_Range]] = {}
        self._keep: list[object] = []

    def add(self, handler: ExitHandler) -> None:
        """Register ``handler.native`` for its kinds and range.

        :raises HypervisorError: EINVAL (empty range), EEXIST (two that are not fallbacks overlap).
        """
        native = handler.native
        if native is None:
            return
        ffi = _ffi()
        where = handler.where if handler.where is not None else range(0, _LAST + 1)
        if where.step != 1 or where.start < 0 or where.start >= where.stop or not native.address:
            raise HypervisorError("install", errno.EINVAL, hint=f"handler {handler.name!r}, {where}")
        one = _Range(
            where.start,
            where.stop - 1,
            ffi.cast("rift_exit_fn *", native.address),
            ffi.cast("void *", native.context),
        )
        for kind in handler.kinds:
            for other in () if handler.fallback else self._owners.get(kind, ()):
                if one.first <= other.last and other.first <= one.last:
                    hint = f"handler {handler.name!r}, {kind.name} {where}"
                    raise HypervisorError("install", errno.EEXIST, hint=hint)
        for kind in handler.kinds:
            (self._fallbacks if handler.fallback else self._owners).setdefault(kind, []).append(one)
        self._keep.append(native.owner)

    def serve(self, vcpu: FakeVCpu, memory: PhysicalMemory, exit: Exit) -> NativeAnswer | None:
        """Ask the owner of the address, then the fallbacks. None: nobody took it.

        :raises HypervisorError: a handler returned -errno.
        """
        candidates = [
            one
            for table in (self._owners, self._fallbacks)
            for one in table.get(exit.kind, ())
            if one.first <= exit.address <= one.last
        ]
        if not candidates:
            return None
        ffi = _ffi()
        host = _Host(vcpu, memory)
        raw = ffi.new("struct rift_exit *")
        raw.kind, raw.size, raw.address, raw.value = exit.kind, exit.size, exit.address, exit.value
        raw.is_write, raw.raw_reason = exit.is_write, exit.raw_reason
        for at, word in enumerate(exit.info):
            raw.info[at] = word
        for one in candidates:
            verdict = one.function(one.context, host.struct, raw)
            if verdict in (_RESUME, _STOP):
                return NativeAnswer(verdict == _STOP, int(raw.value))
            if verdict < 0:
                raise HypervisorError("exit handler", -verdict)
        return None


class _Host:
    """A ``struct rift_host`` for one call. The callbacks and every view that they handed out live as long."""

    def __init__(self, vcpu: FakeVCpu, memory: PhysicalMemory) -> None:
        ffi = self._ffi = _ffi()
        self._vcpu = vcpu
        self._memory = memory
        self._names = tuple(vcpu.widths)
        self._views: list[Any] = []
        self._callbacks = (
            ffi.callback("void *(const struct rift_host *, uint64_t, uint64_t, int)", self._memory_at),
            ffi.callback("int(const struct rift_host *, const char *)", self._register_id, error=-1),
            ffi.callback("int(const struct rift_host *, int, uint64_t *)", self._read, error=-errno.EIO),
            ffi.callback("int(const struct rift_host *, int, uint64_t)", self._write, error=-errno.EIO),
            ffi.callback(
                "int(const struct rift_host *, const uint32_t *, uint32_t, uint64_t)", self._wait, error=-errno.EIO
            ),
        )
        struct = self.struct = ffi.new("struct rift_host *")
        struct.version = _abi_version()
        struct.bytes = ffi.sizeof("struct rift_host")
        struct.thread_index = vcpu.index
        struct.memory, struct.register_id, struct.read_register, struct.write_register, struct.wait = self._callbacks

    def _memory_at(self, host: Any, address: int, size: int, writable: int) -> Any:
        view = self._memory.view(address, size, bool(writable))
        if view is None:
            return self._ffi.NULL
        pointer = self._ffi.from_buffer(view)
        self._views.append(pointer)
        return self._ffi.cast("void *", pointer)

    def _register_id(self, host: Any, name: Any) -> int:
        text = self._ffi.string(name).decode("ascii", "replace")
        return self._names.index(text) if text in self._names else -1

    def _name(self, number: int) -> str | None:
        if not 0 <= number < len(self._names) or self._vcpu.widths[self._names[number]] > 64:
            return None
        return self._names[number]

    def _read(self, host: Any, number: int, value: Any) -> int:
        name = self._name(number)
        if name is None:
            return -errno.EINVAL
        value[0] = self._vcpu.peek([name])[name]
        return 0

    def _write(self, host: Any, number: int, value: int) -> int:
        name = self._name(number)
        if name is None:
            return -errno.EINVAL
        try:
            self._vcpu.poke({name: value})
        except RiftError:
            return -errno.EINVAL
        return 0

    def _wait(self, host: Any, word: Any, expected: int, deadline: int) -> int:
        at = ctypes.c_uint32.from_address(int(self._ffi.cast("uintptr_t", word)))
        while at.value == expected:
            if self._vcpu.kicked.wait(_POLL_SECONDS):
                return -errno.EINTR
            if deadline and time.monotonic_ns() >= deadline:
                return -errno.ETIMEDOUT
        return 0
