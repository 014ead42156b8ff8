"""Conformance of a backend: guest-physical memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from rift_core.errors import HypervisorError
from rift_core.exits import ExitKind
from rift_core.host_memory import HostMemory
from rift_core.memory import Gpa, MemoryRegion, Permission
from rift_core.testing.bench import CODE, DATA, EXTRA, RAM, RAM_SIZE, Bench
from rift_core.testing.guests import DEVICE
from rift_core.testing.requirements import requires

if TYPE_CHECKING:
    from rift_core.backend import VCpu

_RW = Permission.READ | Permission.WRITE
VALUE = 0x0123_4567_89AB_CDEF


def region(address: int, size: int, permissions: Permission = _RW) -> MemoryRegion:
    """A region with memory of its own."""
    return MemoryRegion(Gpa(address), HostMemory(size).view, permissions, "extra")


class MemoryTests:
    """Memory is shared, regions come and go, and a bad one changes nothing."""

    def test_guest_write_is_seen_by_host(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(b"".join(g.store(DATA + 0x40 * s, s, VALUE) for s in (1, 2, 4, 8)) + g.end())
        bench.finish(vcpu)
        for size in (1, 2, 4, 8):
            assert bench.number(DATA + 0x40 * size, 8) == VALUE & (1 << 8 * size) - 1

    def test_host_write_is_seen_by_guest(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.forever(g.copy(DATA, DEVICE)))
        for value in (1, VALUE, 0, (1 << 64) - 1):
            bench.put(DATA, value)
            assert bench.run(vcpu).value == value

    def test_store_across_pages(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.store(DATA + 0xFFD, 8, VALUE) + g.end())
        bench.finish(vcpu)
        assert bench.number(DATA + 0xFFD) == VALUE

    @pytest.mark.parametrize(
        ("address", "further", "pages"),  # `further`: pages from the address on
        [
            pytest.param(EXTRA + 0x10, 0, 1, id="misaligned-address"),
            pytest.param(RAM, 0, 1, id="same-start"),
            pytest.param(RAM + RAM_SIZE, -1, 2, id="overlaps-the-end"),
            pytest.param(RAM, -1, 2, id="overlaps-the-start"),
            pytest.param(RAM, 1, 1, id="inside"),
        ],
    )
    def test_bad_region_is_refused(self, bench: Bench, address: int, further: int, pages: int) -> None:
        vcpu = self._loop(bench)
        assert bench.run(vcpu).value == VALUE
        with pytest.raises(HypervisorError):
            bench.vm.map_memory(region(address + further * bench.page, pages * bench.page))
        assert bench.run(vcpu).value == VALUE
        bench.vm.map_memory(region(EXTRA, bench.page))

    def test_misaligned_size_is_refused(self, bench: Bench) -> None:
        whole = HostMemory(2 * bench.page)
        half = bench.page // 2
        for view in (whole.view[: 3 * half], whole.view[half : 3 * half], whole.view[:0]):
            with pytest.raises(HypervisorError):
                bench.vm.map_memory(MemoryRegion(Gpa(EXTRA), view, _RW, "bad"))
        bench.vm.map_memory(MemoryRegion(Gpa(EXTRA), whole.view, _RW, "good"))

    def test_out_of_reach_region_is_refused(self, bench: Bench) -> None:
        with pytest.raises(HypervisorError):
            bench.vm.map_memory(region(1 << bench.probe.limits.gpa_bits, bench.page))

    def test_unmapping_what_is_not_there_is_refused(self, bench: Bench) -> None:
        with pytest.raises(HypervisorError):
            bench.vm.unmap_memory(Gpa(EXTRA))
        with pytest.raises(HypervisorError):
            bench.vm.unmap_memory(Gpa(RAM + bench.page))

    def test_region_comes_and_goes_while_the_guest_runs(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.forever(g.copy(EXTRA, DEVICE)))
        exit = bench.run(vcpu)
        assert (exit.kind, exit.address, exit.is_write) == (ExitKind.MMIO, EXTRA, False)
        assert bench.run(vcpu, 5).value == 5
        for round_ in range(3):
            extra = region(EXTRA, bench.page)
            extra.host[:8] = (VALUE + round_).to_bytes(8, "little")
            bench.vm.map_memory(extra)
            exit = bench.run(vcpu)
            assert (exit.address, exit.value) == (DEVICE, VALUE + round_)
            bench.vm.unmap_memory(Gpa(EXTRA))
            exit = bench.run(vcpu)
            assert (exit.kind, exit.address, exit.is_write) == (ExitKind.MMIO, EXTRA, False)
            assert bench.run(vcpu, 0).address == DEVICE

    def test_many_regions(self, bench: Bench) -> None:
        g = bench.guests
        count = min(bench.probe.limits.max_slots - 1, 24)
        step = 2 * bench.page
        for n in range(count):
            bench.vm.map_memory(region(EXTRA + step * n, bench.page))  # a hole behind each
        code = b"".join(g.copy(EXTRA + step * n, DATA + 8 * n) for n in range(count))
        vcpu = bench.vcpu(code + g.end())
        bench.finish(vcpu)
        for n in range(count):
            bench.vm.unmap_memory(Gpa(EXTRA + step * n))

    def test_instructions_that_the_host_has_changed(self, bench: Bench) -> None:
        g = bench.guests
        vcpu = bench.vcpu(g.store(DEVICE, 4, 1) + g.end())
        for value in (1, 2, 3):
            code = g.store(DEVICE, 4, value) + g.end()
            bench.memory[CODE : CODE + len(code)] = code
            bench.vm.code_changed(Gpa(CODE), len(code))
            vcpu.write_registers({bench.isa.program_counter: CODE})
            assert bench.run(vcpu).value == value
            bench.finish(vcpu)
        bench.vm.code_changed(Gpa(EXTRA), 0x1000)  # there is nothing

    @requires("readonly_memory")
    def test_read_only_region(self, bench: Bench) -> None:
        g = bench.guests
        memory = HostMemory(bench.page)
        memory.view[:8] = VALUE.to_bytes(8, "little")
        bench.vm.map_memory(MemoryRegion(Gpa(EXTRA), memory.view.toreadonly(), Permission.READ, "rom"))
        vcpu = bench.vcpu(g.copy(EXTRA, DATA) + g.store(EXTRA + 8, 4, 7) + g.end())
        exit = bench.run(vcpu)
        assert (exit.kind, exit.address, exit.size, exit.value, exit.is_write) == (
            ExitKind.MMIO,
            EXTRA + 8,
            4,
            7,
            True,
        )
        bench.finish(vcpu)
        assert bench.number(DATA) == VALUE
        assert memory.view[8:12] == bytes(4)

    @staticmethod
    def _loop(bench: Bench) -> VCpu:
        bench.put(DATA, VALUE)
        return bench.vcpu(bench.guests.forever(bench.guests.copy(DATA, DEVICE)))
