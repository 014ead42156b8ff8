"""Conformance of a backend: native exit handlers, by their C interface (``rift_abi.h``).

The handlers are ctypes callbacks: C functions for the backend, without a compiler.
"""

from __future__ import annotations

import ctypes
import errno
from typing import TYPE_CHECKING, Any

import pytest

from rift_core.errors import HypervisorError
from rift_core.exits import ExitHandler, ExitKind, NativeHandler
from rift_core.testing.bench import DATA, EXTRA, Bench
from rift_core.testing.guests import DEVICE, DONE

if TYPE_CHECKING:
    from collections.abc import Callable

PASS, RESUME, STOP = 0, 1, 2
VALUE = 0x7766_5544_3322_1100


class RawExit(ctypes.Structure):
    """``struct rift_exit``."""

    _fields_ = (
        ("kind", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("address", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
        ("is_write", ctypes.c_uint32),
        ("raw_reason", ctypes.c_uint32),
        ("info", ctypes.c_uint64 * 6),
    )


class RawHost(ctypes.Structure):
    """``struct rift_host``."""


_HOST = ctypes.POINTER(RawHost)
RawHost._fields_ = (
    ("version", ctypes.c_uint32),
    ("bytes", ctypes.c_uint32),
    ("thread_index", ctypes.c_uint32),
    ("reserved", ctypes.c_uint32),
    ("memory", ctypes.CFUNCTYPE(ctypes.c_void_p, _HOST, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int)),
    ("register_id", ctypes.CFUNCTYPE(ctypes.c_int, _HOST, ctypes.c_char_p)),
    ("read_register", ctypes.CFUNCTYPE(ctypes.c_int, _HOST, ctypes.c_int, ctypes.POINTER(ctypes.c_uint64))),
    ("write_register", ctypes.CFUNCTYPE(ctypes.c_int, _HOST, ctypes.c_int, ctypes.c_uint64)),
    (
        "wait",
        ctypes.CFUNCTYPE(ctypes.c_int, _HOST, ctypes.POINTER(ctypes.c_uint32), ctypes.c_uint32, ctypes.c_uint64),
    ),
)
_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, _HOST, ctypes.POINTER(RawExit))


class Native:
    """A handler whose C half is a Python function. ``calls`` has what it was asked."""

    def __init__(
        self, answer: Callable[[Any, Any], int], where: range | None, *, name: str = "native", fallback: bool = False
    ) -> None:
        self.calls: list[tuple[int, int, int, int, bool]] = []
        self.failures: list[BaseException] = []

        def serve(context: int, host: Any, exit: Any) -> int:
            e = exit.contents
            self.calls.append((e.kind, e.address, e.size, e.value, bool(e.is_write)))
            try:
                return answer(host, e)
            except BaseException as error:  # nothing may be raised into C
                self.failures.append(error)
                return -errno.EIO

        self._function = _FUNCTION(serve)
        address = ctypes.cast(self._function, ctypes.c_void_p).value or 0
        self.handler = ExitHandler(
            name,
            frozenset({ExitKind.MMIO}),
            where,
            lambda vcpu, exit: None,
            NativeHandler(address, 0x1234, self),
            fallback,
        )


class NativeHandlerTests:
    """RESUME, PASS, STOP and errors; what a handler may use of its host."""

    def test_resume_after_a_write(self, bench: Bench) -> None:
        native = Native(lambda host, e: RESUME, range(DEVICE, DEVICE + 8))
        bench.vm.install(native.handler)
        g = bench.guests
        vcpu = bench.vcpu(g.store(DEVICE, 4, 0x55) + g.store(DEVICE + 8, 4, 1) + g.end())
        before = vcpu.exit_count
        assert bench.run(vcpu).address == DEVICE + 8
        assert native.calls == [(ExitKind.MMIO, DEVICE, 4, 0x55, True)]
        assert vcpu.exit_count == before + 2
        assert vcpu.stopped is None

    def test_resume_answers_a_read(self, bench: Bench) -> None:
        def answer(host: Any, e: Any) -> int:
            e.value = VALUE
            return RESUME

        native = Native(answer, range(DEVICE, DEVICE + 8))
        bench.vm.install(native.handler)
        g = bench.guests
        vcpu = bench.vcpu(
            g.load(DEVICE, 8) + g.store_result(DATA) + g.load(DEVICE, 2) + g.store_result(DATA + 8) + g.end()
        )
        bench.finish(vcpu)
        assert (bench.number(DATA), bench.number(DATA + 8)) == (VALUE, VALUE & 0xFFFF)
        assert [call[2:] for call in native.calls] == [(8, 0, False), (2, 0, False)]

    def test_pass_reaches_python(self, bench: Bench) -> None:
        native = Native(lambda host, e: PASS, range(DEVICE, DEVICE + 8))
        bench.vm.install(native.handler)
        g = bench.guests
        vcpu = bench.vcpu(g.load(DEVICE, 8) + g.store_result(DATA) + g.end())
        exit = bench.run(vcpu)
        assert (exit.kind, exit.address, exit.is_write) == (ExitKind.MMIO, DEVICE, False)
        assert len(native.calls) == 1
        bench.finish(vcpu, VALUE)
        assert bench.number(DATA) == VALUE

    def test_stop_ends_the_run(self, bench: Bench) -> None:
        def answer(host: Any, e: Any) -> int:
            e.value = 42
            return STOP

        bench.vm.install(Native(answer, range(DEVICE, DEVICE + 8)).handler)
        vcpu = bench.vcpu(bench.guests.store(DEVICE, 4, 1) + bench.guests.end())
        bench.run(vcpu)
        assert vcpu.stopped == 42
        bench.finish(vcpu)
        assert vcpu.stopped is None

    def test_error_ends_the_run(self, bench: Bench) -> None:
        bench.vm.install(Native(lambda host, e: -errno.EDOM, range(DEVICE, DEVICE + 8)).handler)
        vcpu = bench.vcpu(bench.guests.store(DEVICE, 4, 1) + bench.guests.end())
        with pytest.raises(HypervisorError) as caught:
            bench.run(vcpu)
        assert caught.value.code == errno.EDOM

    def test_only_its_own_range_is_asked(self, bench: Bench) -> None:
        native = Native(lambda host, e: RESUME, range(DEVICE, DEVICE + 8))
        bench.vm.install(native.handler)
        vcpu = bench.vcpu(bench.guests.store(DEVICE + 8, 4, 1) + bench.guests.end())
        assert bench.run(vcpu).address == DEVICE + 8
        assert native.calls == []

    def test_owner_before_fallback(self, bench: Bench) -> None:
        order: list[str] = []

        def note(name: str, verdict: int) -> Callable[[Any, Any], int]:
            def answer(host: Any, e: Any) -> int:
                if e.address == DONE:
                    return PASS
                order.append(name)
                return verdict

            return answer

        fallback = Native(note("fallback", RESUME), None, name="fallback", fallback=True)
        owner = Native(note("owner", PASS), range(DEVICE, DEVICE + 8), name="owner")
        bench.vm.install(fallback.handler)
        bench.vm.install(owner.handler)
        g = bench.guests
        vcpu = bench.vcpu(g.store(DEVICE, 4, 1) + g.store(DEVICE + 8, 4, 1) + g.end())
        bench.finish(vcpu)
        assert order == ["owner", "fallback", "fallback"]

    def test_overlap_is_refused(self, bench: Bench) -> None:
        bench.vm.install(Native(lambda host, e: RESUME, range(DEVICE, DEVICE + 8)).handler)
        other = Native(lambda host, e: RESUME, range(DEVICE + 4, DEVICE + 12), name="other")
        with pytest.raises(HypervisorError):
            bench.vm.install(other.handler)

    def test_handler_without_native_half_is_python_only(self, bench: Bench) -> None:
        handler = ExitHandler("python", frozenset({ExitKind.MMIO}), range(DEVICE, DEVICE + 8), lambda v, e: None)
        bench.vm.install(handler)
        vcpu = bench.vcpu(bench.guests.store(DEVICE, 4, 1) + bench.guests.end())
        assert bench.run(vcpu).address == DEVICE

    def test_host_memory(self, bench: Bench) -> None:
        found: list[Any] = []

        def answer(host: Any, e: Any) -> int:
            h = host.contents
            inside = h.memory(host, DATA, 0x1000, 1)
            found.append(bool(inside))
            found.append(ctypes.c_uint64.from_address(inside).value)
            ctypes.c_uint64.from_address(inside + 8).value = VALUE
            found.append(h.memory(host, EXTRA, 1, 0))
            found.append(h.memory(host, DATA, 1 << 40, 0))
            found.append(h.memory(host, (1 << 64) - 8, 16, 0))
            return RESUME

        native = Native(answer, range(DEVICE, DEVICE + 8))
        bench.vm.install(native.handler)
        bench.put(DATA, 77)
        vcpu = bench.vcpu(bench.guests.store(DEVICE, 4, 1) + bench.guests.end())
        bench.finish(vcpu)
        assert native.failures == []
        assert found == [True, 77, None, None, None]
        assert bench.number(DATA + 8) == VALUE

    def test_host_registers(self, bench: Bench) -> None:
        g = bench.guests
        found: list[int] = []

        def answer(host: Any, e: Any) -> int:
            h = host.contents
            number = h.register_id(host, g.result.encode())
            value = ctypes.c_uint64()
            found.append(h.read_register(host, number, ctypes.byref(value)))
            found.append(value.value)
            found.append(h.write_register(host, number, VALUE))
            found.append(h.register_id(host, b"nothing"))
            found.append(h.read_register(host, -1, ctypes.byref(value)) < 0)
            found.append(h.write_register(host, 1 << 20, 0) < 0)
            return RESUME

        native = Native(answer, range(DEVICE, DEVICE + 8))
        bench.vm.install(native.handler)
        vcpu = bench.vcpu(g.store_result(DEVICE) + g.store_result(DATA) + g.end())
        vcpu.write_registers({g.result: 0x99})
        bench.finish(vcpu)
        assert native.failures == []
        assert found == [0, 0x99, 0, -1, True, True]
        assert bench.number(DATA) == VALUE

    def test_host_tells_itself(self, bench: Bench) -> None:
        seen: list[tuple[int, int]] = []

        def answer(host: Any, e: Any) -> int:
            seen.append((host.contents.version, host.contents.thread_index))
            assert host.contents.bytes >= ctypes.sizeof(RawHost)
            return RESUME

        native = Native(answer, range(DEVICE, DEVICE + 8))
        bench.vm.install(native.handler)
        vcpu = bench.vcpu(bench.guests.store(DEVICE, 4, 1) + bench.guests.end(), index=3)
        bench.finish(vcpu)
        assert native.failures == []
        assert seen == [(1, 3)]

    def test_waiting_ends_with_a_kick(self, bench: Bench) -> None:
        results: list[int] = []
        word = ctypes.c_uint32(7)
        kicks: list[Callable[[], None]] = []

        def answer(host: Any, e: Any) -> int:
            h = host.contents
            results.append(h.wait(host, ctypes.byref(word), 6, 0))  # differs already
            results.append(h.wait(host, ctypes.byref(word), 7, 1))  # the deadline is long over
            kicks[0]()
            results.append(h.wait(host, ctypes.byref(word), 7, 0))
            return RESUME

        native = Native(answer, range(DEVICE, DEVICE + 8))
        bench.vm.install(native.handler)
        vcpu = bench.vcpu(bench.guests.store(DEVICE, 4, 1) + bench.guests.end())
        kicks.append(vcpu.kick)
        assert vcpu.run().kind is ExitKind.INTERRUPTED
        assert native.failures == []
        assert results == [0, -errno.ETIMEDOUT, -errno.EINTR]
        bench.finish(vcpu)
