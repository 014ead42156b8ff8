"""One VM with the probe's long-mode guest in it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from rift_core.exits import Exit, ExitKind
from rift_core.memory import Gpa, MemoryRegion, Permission
from rift_kvm import KvmConfig
from rift_kvm import guest_x86_64 as g
from rift_kvm.guest_x86_64 import Guest
from rift_kvm.probe import probe
from rift_kvm.vm import KvmVm, host_binding

if TYPE_CHECKING:
    from collections.abc import Callable

    from rift_core.backend import Binding
    from rift_kvm.vcpu import KvmVCpu

HLT = b"\xf4"
SPIN = b"\xeb\xfe"
RW = Permission.READ | Permission.WRITE
NOWHERE = 0x1F_0000
"""Mapped in the guest's tables, with no memory behind: MMIO."""

SECONDS = 20.0
"""Nothing here takes a tenth of this."""


class KvmBench:
    """``vcpu`` belongs to the thread that first asks for it."""

    def __init__(self, *, ioctl: int = 0, binding: Binding | None = None, guests: bool = True) -> None:
        self.config = KvmConfig()
        self.result = probe(self.config)
        self.vm = KvmVm(
            self.config,
            binding or host_binding(),
            gpa_bits=self.result.limits.gpa_bits,
            capabilities=self.result.capabilities,
            exit_kinds=self.result.exit_kinds,
            ioctl=ioctl,
        )
        self.guest = Guest()
        self._vcpu: KvmVCpu | None = None
        if guests:
            try:
                self.vm.map_memory(MemoryRegion(Gpa(0), memoryview(self.guest.memory), RW, "guest"))
            except BaseException:
                self.vm.close()
                raise

    @property
    def vcpu(self) -> KvmVCpu:
        if self._vcpu is None:
            self._vcpu = self.vm.create_vcpu(0)
        return self._vcpu

    def start(self, code: bytes, **registers: int) -> KvmVCpu:
        """A vCPU in front of ``code`` and a HLT."""
        self.guest.store(g.CODE, code + HLT)
        self.vcpu.write_registers(self.guest.registers() | registers)
        return self.vcpu

    def run(self, code: bytes, **registers: int) -> Exit:
        """The first exit of ``code``."""
        return self.go_on(self.start(code, **registers))

    def go_on(self, vcpu: KvmVCpu, reply: int | None = None) -> Exit:
        """The next exit that is not INTERRUPTED."""
        exit = vcpu.run(reply)
        while exit.kind is ExitKind.INTERRUPTED:
            exit = vcpu.run()
        return exit

    def close(self) -> None:
        self.vm.close()


class Worker:
    """A thread with an outcome."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._outcome: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome = self._function()
        except BaseException as error:
            self._error = error

    def join(self) -> Any:
        self._thread.join(SECONDS)
        assert not self._thread.is_alive(), "the thread hangs"
        if self._error is not None:
            raise self._error
        return self._outcome
