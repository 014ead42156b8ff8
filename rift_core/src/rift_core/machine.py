"""The machine: what one configuration assembles, and the handle its user holds."""

from __future__ import annotations

import ctypes
import time
import weakref
from collections.abc import Mapping as MappingABC
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from rift_core.assembly import Assembly, assemble, build_engine, find_symbol, install_handlers
from rift_core.calls import CallPool
from rift_core.catalog import Catalog
from rift_core.config import MachineConfig, code_config, extension_section, load_config
from rift_core.errors import AddressError, ConfigError, MappingError, PluginNotFoundError, StateError
from rift_core.exits import Stop
from rift_core.handler_machine import HandlerMachine
from rift_core.lifetimes import REAPER
from rift_core.memory import Caching, Gpa, Gva, Mapping, MemoryRegion, Permission
from rift_core.sharing import Share, share
from rift_core.timeouts import waitable

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from os import PathLike

    from rift_core.backend import Vm
    from rift_core.binary import Binary
    from rift_core.dispatch import Dispatcher
    from rift_core.engine import Engine, GuestLimits
    from rift_core.guest_memory import GuestMemory
    from rift_core.isa import Isa, Privilege
    from rift_core.memory import Walk
    from rift_core.thread import Thread

_LETTERS = {"r": Permission.READ, "w": Permission.WRITE, "x": Permission.EXECUTE, "u": Permission.USER}
_TURN_SECONDS = 0.02  # how long one of several threads is waited for before the next one is looked at
_DEBUG_TABLE = "debug"  # the role of debuggers among extensions


@dataclass(frozen=True, slots=True)
class MachineSymbol:
    """A symbol of the image, and its bytes in the running machine."""

    name: str
    address: Gva
    size: int
    _machine: Machine = field(repr=False)

    def view(self, size: int | None = None) -> memoryview:
        """The guest's own bytes; ``size`` where the file does not say."""
        size = self.size if size is None else size
        if size <= 0:
            raise AddressError(f"the file does not say how large {self.name} is: give view(size)")
        return self._machine.view(self.address, size)


def to_permission(permissions: str | Permission) -> Permission:
    """``"rwx"`` and ``"rwu"`` and the like, ``-`` ignored, to flags.

    :raises MappingError: another letter.
    """
    if isinstance(permissions, Permission):
        return permissions
    flags = Permission.NONE
    for letter in permissions:
        if letter != "-":
            if letter not in _LETTERS:
                raise MappingError(f"permissions {permissions!r}: {letter!r} is none of r, w, x, u")
            flags |= _LETTERS[letter]
    return flags


class Machine:
    """One virtual machine inside this process. Made by :func:`open_machine`; a context manager.

    ``memory[gpa : gpa + n]`` is guest-physical memory as a memoryview. ``console_stream`` replaces the
    stream of the console handler when it was given to :func:`open_machine`.
    """

    def __init__(self, assembly: Assembly, console: TextIO | BinaryIO | None = None) -> None:
        self._assembly = assembly
        self._engine = engine = build_engine(assembly)
        try:
            engine.console_stream = console
            install_handlers(engine, assembly, HandlerMachine(engine))
            self._threads = {thread.name: thread for thread in engine.threads}
            self._calls = CallPool(engine)
            self._call_privilege: Privilege = engine.threads[0].privilege if engine.threads else "supervisor"
            self._symbols: dict[str, Gva] = {}
            REAPER.start()
            self._finalizer = weakref.finalize(self, REAPER.put, engine)
            self._finalizer.atexit = False
            self._extensions: dict[str, object] = {}
            for section in assembly.config.extensions:
                module = assembly.catalog.get("extension", section.name).module
                self._extensions[section.name] = engine.hooks.machine_opened(module, self, section)
        except BaseException:
            engine.release()
            raise

    # -- what it is ------------------------------------------------------------------------------

    @property
    def config(self) -> MachineConfig:
        """The validated configuration."""
        return self._assembly.config

    @property
    def binary(self) -> Binary:
        """The loaded image."""
        return self._assembly.binary

    @property
    def backend(self) -> str:
        """Name of the backend that was chosen."""
        return self._assembly.backend.entry.info.name

    @property
    def backend_reason(self) -> str:
        """Why, in one sentence."""
        return self._assembly.backend.why

    @property
    def notices(self) -> list[str]:
        """What the user should know of the backend, a line each: why no hardware runs the guest; what that means."""
        backend = self._assembly.backend
        if not backend.probe.emulated:
            return []
        name = backend.entry.info.name
        lines = []
        if backend.passed_over:
            reasons = "; ".join(problem.splitlines()[0] for problem in backend.passed_over)
            lines.append(f"runs on the software CPU of backend {name} ({reasons})")
        if any(thread.privilege == "user" for thread in self._assembly.config.threads):
            lines.append(f"backend {name} is no security boundary: run hostile code on a hypervisor")
        return lines

    @property
    def capabilities(self) -> frozenset[str]:
        """What the backend can do here."""
        return self._engine.vm.capabilities

    @property
    def isa(self) -> Isa:
        """The ISA object."""
        return self._engine.isa

    @property
    def memory(self) -> GuestMemory:
        """Guest-physical memory."""
        self._engine.check_open()
        self._engine.pristine = False
        return self._engine.memory

    @property
    def doorbell(self) -> Gpa:
        """Guest-physical address of the doorbell page."""
        return self._engine.doorbell

    @property
    def limits(self) -> GuestLimits:
        """The ``[limits]``."""
        return self._engine.limits

    @property
    def dispatcher(self) -> Dispatcher:
        """Who answers exits; ``observe`` adds tracers."""
        return self._engine.dispatcher

    @property
    def vm(self) -> Vm:
        """The backend's object, for extensions."""
        return self._engine.vm

    @property
    def engine(self) -> Engine:
        """The internals, for extensions."""
        return self._engine

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._engine.closing

    # -- running ---------------------------------------------------------------------------------

    @property
    def threads(self) -> tuple[Thread, ...]:
        """The configured threads."""
        return tuple(self._threads.values())

    def thread(self, name: str = "main") -> Thread:
        """A configured thread.

        :raises ConfigError: no ``[[threads]]`` table has that name.
        """
        try:
            return self._threads[name]
        except KeyError:
            known = ", ".join(self._threads) or "none"
            raise ConfigError(f"no thread {name!r} is configured (configured: {known})") from None

    def run(self, *arguments: Any, timeout: float | None = None) -> Stop:
        """Start all threads, wait for all; how the first one ended. Only the first one gets ``arguments``.

        :raises GuestError: the fault of the first thread that had one.  :raises TimeoutError: ``timeout`` seconds
            are over; all threads have been killed then.
        """
        threads, timeout = self.threads, waitable(timeout)
        if not threads:
            raise ConfigError(
                f"there is no thread to run: no [[threads]] are configured, or {self.binary.title} has neither a "
                "symbol main nor an entry point"
            )
        try:
            for position, thread in enumerate(threads):
                thread.start(*(arguments if position == 0 else ()))
            self._join_all(timeout)
        except BaseException:
            self.kill()
            for thread in threads:
                thread.wait_ended(1.0)
            raise
        return threads[0].join()

    def _join_all(self, timeout: float | None) -> None:
        """Wait for all threads; a fault of any of them is raised when it happens, though others go on."""
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        running = list(self.threads)
        while running:
            for thread in list(running):
                left = max(deadline - time.monotonic(), 0)
                last = len(running) == 1
                if thread.wait_ended((None if timeout is None else left) if last else min(left, _TURN_SECONDS)):
                    running.remove(thread)
                    thread.join(0)
                elif left == 0:
                    names = ", ".join(t.name for t in running)
                    raise TimeoutError(
                        f"{'threads' if len(running) > 1 else 'thread'} {names} still run after {timeout} s"
                    )

    def call(
        self,
        function: str | int,
        *arguments: Any,
        timeout: float | None = None,
        restype: Any = ctypes.c_int,
        privilege: Privilege | None = None,
    ) -> Any:
        """Call a guest function on this thread and return its result. Several Python threads may call at once.

        :param function: a symbol or an address.
        :param arguments: ints (64 bits), floats (double), or ``ctypes`` numbers.
        :param timeout: seconds after which the call is abandoned.
        :param restype: a ``ctypes`` number type, or None; as in ctypes, ``c_int`` unless you say otherwise.
        :param privilege: that of the first configured thread unless given.
        :raises GuestError: the function faulted, or the guest ended instead of returning.
        :raises TimeoutError: it did not return in time.  :raises ReentrancyError: from inside a call's handler.
        """
        engine = self._engine
        if engine.closing or engine.forked:
            engine.check_open()
        if type(function) is str:
            entry = self._symbols.get(function)
            if entry is None:
                entry = self._symbols[function] = find_symbol(self.binary, function)
            return self._calls.call(entry, function, arguments, timeout, restype, privilege or self._call_privilege)
        address = Gva(int(function))
        return self._calls.call(
            address, f"{address:#x}", arguments, timeout, restype, privilege or self._call_privilege
        )

    def kill(self) -> None:
        """End every guest thread and call in progress; the machine stays usable."""
        self._engine.check_process()
        self._engine.end_all(Stop(0, "killed"))

    def pause(self, timeout: float | None = None) -> AbstractContextManager[None]:
        """A ``with`` block during which no vCPU is in the guest; registers of running threads can be read in it.

        :raises TimeoutError: an exit handler did not return in ``timeout`` seconds.
        """
        return self._engine.pause(timeout)

    def atomic(self) -> AbstractContextManager[None]:
        """A ``with`` block in which the host may read and write guest words as one atomic step.

        For backends whose vCPUs run one at a time: no vCPU is in the guest during the block. On a hypervisor it
        does nothing, and costs as much: there the host's own atomic instructions serve, or the guest's protocol.
        Keep it short, and wait for no guest in it.
        """
        self._engine.check_open()
        return self._engine.vm.atomic()

    # -- extensions ------------------------------------------------------------------------------

    def extension(self, name: str) -> Any:
        """What a configured extension offers; None if nothing.

        :raises ConfigError: it takes no part in this machine.
        """
        try:
            return self._extensions[name]
        except KeyError:
            known = ", ".join(self._extensions) or "none"
            raise ConfigError(f"no extension {name!r} takes part in this machine (there are: {known})") from None

    def extend(self, name: str, **settings: Any) -> Any:
        """Have one more extension take part; what it offers. ``settings`` are the keys of its table.

        :raises PluginNotFoundError: it is not installed.  :raises ConfigError: its settings.
        :raises StateError: it takes part already.
        """
        engine = self._engine
        engine.check_open()
        catalog = self._assembly.catalog
        entry = catalog.get("extension", name)
        if name in self._extensions:
            raise StateError(f"extension {name!r} takes part in this machine already")
        section = extension_section(name, settings, catalog)
        engine.hooks = engine.hooks.extended(entry.module)
        self._extensions[name] = None
        try:
            self._extensions[name] = engine.hooks.machine_opened(entry.module, self, section)
        except BaseException:
            del self._extensions[name]
            raise
        return self._extensions[name]

    def debug(self, **settings: Any) -> Any:
        """Let debuggers attach: adds the extension that ``[debug]`` stands for; what it offers.

        ``settings`` are the keys of that table. Without any, a debugger that is configured already is meant.
        :raises PluginNotFoundError: none is installed.  :raises ConfigError: its settings.
        """
        owners = self._assembly.catalog.of_table(_DEBUG_TABLE)
        names = [entry.info.name for entry in owners]
        opened = [name for name in names if name in self._extensions]
        if opened and not settings:
            return self._extensions[opened[0]]
        if not names:
            raise PluginNotFoundError("no debugger is installed: pip install riftvm-gdb")
        name = settings.pop("name", names[0] if len(names) == 1 else None)
        if name is None:
            raise ConfigError(f"several debuggers are installed: give name, one of {', '.join(names)}")
        return self.extend(name, **settings)

    # -- memory ----------------------------------------------------------------------------------

    def view(self, address: int, size: int) -> memoryview:
        """Guest-virtual bytes, without a copy.

        :raises AddressError: not mapped, or not contiguous.
        """
        self._engine.check_open()
        return self._engine.view(address, size)

    def read_virtual(self, address: int, size: int) -> bytes:
        """A copy of guest-virtual bytes.

        :raises AddressError: not mapped.
        """
        self._engine.check_open()
        return self._engine.read_virtual(address, size)

    def write_virtual(self, address: int, data: bytes) -> None:
        """Write guest-virtual bytes, whatever the page permissions say.

        :raises AddressError: not mapped.
        """
        self._engine.check_open()
        self._engine.write_virtual(address, data)

    def symbol(self, name: str) -> MachineSymbol:
        """A symbol of the image.

        :raises SymbolNotFoundError: with the nearest names.
        """
        self._engine.check_open()
        find_symbol(self.binary, name)
        symbol = self.binary.symbols.find(name)
        if symbol is None:
            raise AddressError(name)
        return MachineSymbol(symbol.name, symbol.address, symbol.size, self)

    def map(
        self,
        address: int,
        size: int,
        permissions: str | Permission = "rw",
        *,
        physical: int | None = None,
        caching: Caching = Caching.WRITE_BACK,
        largest_page: int = 0,
        name: str = "",
    ) -> Gpa:
        """Map guest-virtual pages of the running machine; returns where they are, guest-physical.

        :param physical: what to map; None: new zeroed memory.
        :param largest_page: bytes of the largest page to use; 0: as large as fits.
        :raises MappingError: misaligned, overlapping, out of reach.
        """
        engine = self._engine
        engine.check_open()
        flags = to_permission(permissions) | Permission.READ
        if size <= 0 or size % engine.page or address % engine.page:
            raise MappingError(
                f"address {address:#x} and size {size:#x} must be multiples of the page size {engine.page:#x}"
            )
        with engine.edits:
            taken = physical is None
            if physical is None:
                alignment = 0x20_0000 if size >= 0x20_0000 else engine.page
                physical = engine.take_physical(size, alignment, address, name or "map")
            try:
                engine.map_pages(Mapping(Gva(address), Gpa(physical), size, flags, name, caching, largest_page))
            except BaseException:
                if taken:
                    engine.heap.release(physical, size)
                raise
        return Gpa(physical)

    def unmap(self, address: int, size: int) -> None:
        """Remove guest-virtual pages of the running machine; every vCPU sees it. The memory behind stays in RAM.

        :raises MappingError: part of the range is not mapped.
        """
        self._engine.check_open()
        self._engine.edit_pages(address, size, None)

    def protect(self, address: int, size: int, permissions: str | Permission) -> None:
        """Change the permissions of mapped pages; every vCPU sees it.

        :raises MappingError: part of the range is not mapped.
        """
        self._engine.check_open()
        self._engine.edit_pages(address, size, to_permission(permissions) | Permission.READ)

    def translate(self, address: int) -> Walk:
        """What the page tables say of a guest-virtual address."""
        self._engine.check_open()
        return self._engine.translate(address)

    def accessed_dirty(self, address: int, size: int, *, clear: bool = False) -> list[tuple[Gva, int, bool, bool]]:
        """``(page, page_size, accessed, dirty)`` of mapped pages; ``clear`` resets both, and flushes."""
        engine = self._engine
        engine.check_open()
        with engine.edits:
            pages = engine.space.accessed_dirty(Gva(address), size, clear=clear)
            if clear:
                engine.vm.flush_translations()
        return pages

    def share(
        self,
        buffer: Any,
        at: int,
        writable: bool = False,
        *,
        virtual: int | None = None,
    ) -> Share:
        """Let the guest see a host buffer at guest-physical ``at``, without a copy; see :class:`Share`.

        ``virtual`` also maps it there. Whole pages only: ``rift_core.aligned_buffer(n)`` gives such a buffer.
        :raises MappingError: not whole pages, or the place is taken.
        """
        engine = self._engine
        engine.check_open()
        result = share(engine, buffer, at, writable=writable)
        if virtual is not None:
            try:
                flags = Permission.READ | (Permission.WRITE if writable else Permission.NONE)
                if self._call_privilege == "user":
                    flags |= Permission.USER
                engine.map_pages(Mapping(Gva(virtual), Gpa(at), result.size, flags, "share"))
            except BaseException:
                result.withdraw()
                raise
        return result

    def load_code(self, code: bytes, at: int | None = None, *, user: bool | None = None) -> Gva:
        """Add machine code to the running machine, or change what stands at ``at``; returns its address.

        Code at an address that is not mapped gets new read-execute pages; None lets Rift choose the place.
        ``user``: executable in user mode; default: if the first thread is a user thread.
        :raises MappingError: part of the range is mapped, part not, or it is mapped without execution.
        """
        engine = self._engine
        engine.check_open()
        if not code:
            raise MappingError("there is no code to load: give at least one byte")
        flags = Permission.READ | Permission.EXECUTE
        if user if user is not None else self._call_privilege == "user":
            flags |= Permission.USER
        page = engine.page
        with engine.edits:
            if at is None:
                area = engine.place_area("code", len(code), flags)
                area.host[: len(code)] = code
                return area.virtual
            first, end = at // page * page, -(-(at + len(code)) // page) * page
            walks = [engine.translate(address) for address in range(first, end, page)]
            mapped = [walk for walk in walks if walk.physical is not None]
            if not mapped:
                self.map(first, end - first, flags, name="code")
            elif len(mapped) != len(walks):
                raise MappingError(
                    f"{at:#x}-{at + len(code):#x} is mapped in part: load it elsewhere, or unmap that first"
                )
            elif not all(walk.permissions & Permission.EXECUTE for walk in walks):
                raise MappingError(
                    f"{at:#x}-{at + len(code):#x} is mapped, but not executable: use write_virtual, or protect it"
                )
            engine.write_code(at, code)
        return Gva(at)

    def add_memory(self, buffer: memoryview, at: int, permissions: str | Permission = "rwx") -> None:
        """Add a region of guest-physical memory for good; for extensions. :meth:`share` can be taken back."""
        self._engine.check_open()
        self._engine.add_region(MemoryRegion(Gpa(at), buffer, to_permission(permissions), "added"))

    # -- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """End all guests and release everything. Views of guest memory stay valid and keep their bytes.

        :raises StateError: called from inside one of the machine's own exit handlers.
        """
        if self._engine.forked:
            return
        self._engine.close()
        self._finalizer.detach()

    def __enter__(self) -> Machine:
        self._engine.check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._engine.closing else "open"
        return f"<Machine {self.binary.title} on {self.backend}, {state}>"


def open_machine(
    source: str | PathLike[str] | MappingABC[str, Any] | MachineConfig | None = None,
    *,
    code: bytes | None = None,
    isa: str = "auto",
    backend: str | None = None,
    console: TextIO | BinaryIO | None = None,
    catalog: Catalog | None = None,
    **sections: Any,
) -> Machine:
    """Validate a configuration and make its machine: VM and memory are there, nothing runs yet.

    :param source: a TOML file, the same as nested dictionaries, or a configuration loaded before.
    :param code: bare machine code instead; ``sections`` then are further tables of the configuration.
    :param isa: of the code; the host's own by default.
    :param backend: overrides the configuration's.
    :param console: a stream for the guest's console instead of standard output.
    :raises ConfigError: each problem with its key and line.  :raises PluginError: a plugin is missing or
        cannot work here.  :raises BinaryError: the image.  :raises MappingError: it does not fit.
    """
    catalog = catalog if catalog is not None else Catalog.installed()
    if (source is None) == (code is None):
        raise ConfigError("give open_machine either a configuration (path or dictionary) or code=b'...'")
    if isinstance(source, MachineConfig):
        config = source
    elif source is not None:
        overrides = {"backend.name": backend} if backend is not None else {}
        if isa != "auto":
            overrides["isa.name"] = isa
        config = load_config(
            source if isinstance(source, MappingABC) else Path(source), overrides=overrides, catalog=catalog
        )
    else:
        config = code_config(isa=isa, backend=backend or "auto", catalog=catalog, **sections)
    return Machine(assemble(config, catalog, code), console)


__all__ = ["HandlerMachine", "Machine", "MachineSymbol", "open_machine", "to_permission"]
