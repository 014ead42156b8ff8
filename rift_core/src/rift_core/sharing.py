"""Host buffers that the guest sees without a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rift_core.errors import MappingError, StateError, UnsupportedError
from rift_core.host_memory import buffer_address
from rift_core.memory import Gpa, MemoryRegion, Permission

if TYPE_CHECKING:
    from rift_core.engine import Engine


class Share:
    """A host buffer in guest-physical memory. ``withdraw`` takes it back; leaving a ``with`` block does too."""

    def __init__(self, engine: Engine, region: MemoryRegion) -> None:
        self._engine = engine
        self._region: MemoryRegion | None = region
        self.guest_address = region.guest_address
        self.size = region.size

    def withdraw(self) -> None:
        """The guest cannot reach the buffer any more when this returns. Twice is harmless.

        :raises HypervisorError: the hypervisor refused; the guest still sees it, and this may be tried again.
        """
        region = self._region
        if region is not None and not self._engine.closing and not self._engine.forked:
            self._engine.remove_region(region.guest_address)
        self._region = None

    def __enter__(self) -> Share:
        if self._region is None:
            raise StateError("the share was withdrawn")
        return self

    def __exit__(self, *exception: object) -> None:
        self.withdraw()


def share(engine: Engine, buffer: Any, at: int, *, writable: bool) -> Share:
    """Put ``buffer`` at guest-physical ``at``.

    Only whole pages are shared: rounding outwards would show the guest the buffer's neighbours.
    :raises MappingError: not contiguous, not whole pages, or the place is taken; the message says the remedy.
    :raises UnsupportedError: a read-only share on a backend without ``readonly_memory``.
    """
    page = engine.page
    try:
        view = memoryview(buffer).cast("B")
    except TypeError as error:
        raise MappingError(f"cannot share this object: {error}; it must be a contiguous buffer") from None
    if writable and view.readonly:
        raise MappingError("the buffer is read-only: share it with writable=False, or pass a writable one")
    address = buffer_address(view)
    if view.nbytes == 0 or view.nbytes % page or address % page:
        raise MappingError(
            f"the buffer (address {address:#x}, {view.nbytes:#x} bytes) is not made of whole {page:#x}-byte pages, and "
            "sharing the pages around it would show the guest what else is on them; take the buffer from "
            "rift_core.aligned_buffer(size)"
        )
    if at % page:
        raise MappingError(f"guest-physical {at:#x} is not a multiple of the page size {page:#x}")
    if at < 0 or at + view.nbytes > 1 << engine.host_limits.gpa_bits:
        raise MappingError(
            f"guest-physical {at:#x} is beyond this hypervisor's {engine.host_limits.gpa_bits} address bits"
        )
    if at < engine.doorbell + page and engine.doorbell < at + view.nbytes:
        raise MappingError(f"guest-physical {engine.doorbell:#x} is the doorbell page")
    if not writable and "readonly_memory" not in engine.vm.capabilities:
        raise UnsupportedError("this backend lacks the capability readonly_memory: share with writable=True, or a copy")
    permissions = Permission.READ | Permission.EXECUTE
    if writable:
        permissions |= Permission.WRITE
    region = MemoryRegion(Gpa(at), view, permissions, "share")
    engine.add_region(region)
    return Share(engine, region)
