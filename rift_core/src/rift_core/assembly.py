"""From a validated configuration to an engine: choose, load, plan, make.

Everything up to :func:`plan_machine` needs no hypervisor; that is what ``rift check`` does. What
:func:`build_engine` makes is released again, all of it, when a later step fails.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from rift_core.backend import Binding, CpuFeatures, Limits, ProbeResult, VmSpec
from rift_core.binary import Binary, Segment
from rift_core.calls import CALL_STACK, FIRST_CALL
from rift_core.dispatch import Dispatcher
from rift_core.engine import Engine, GuestLimits
from rift_core.errors import ConfigError, PluginNotFoundError, PluginUnavailableError, RiftError, SymbolNotFoundError
from rift_core.guest_info import GuestInfo
from rift_core.guest_memory import GuestMemory
from rift_core.hooks import Hooks
from rift_core.host_memory import HostMemory
from rift_core.interrupts import HELD
from rift_core.isa import Area, Vectors
from rift_core.layout import SPARE_TABLES, MachinePlan, ThreadRequest, plan
from rift_core.memory import Gva, MemoryRegion, Permission
from rift_core.payload import build_payload
from rift_core.thread import Thread

if TYPE_CHECKING:
    from pathlib import Path

    from rift_core.catalog import Catalog, CatalogEntry
    from rift_core.config import MachineConfig, ThreadConfig
    from rift_core.isa import Isa
    from rift_core.plugin import Section

AUTO_BACKENDS = ("kvm", "hvf", "emulator")
"""The order in which ``backend = "auto"`` tries; ``RIFT_BACKENDS=a,b`` gives another."""

RAW_CODE_ADDRESS = 0x40_0000
"""Where ``open_machine(code=...)`` puts the code."""

_MACHINE_NAMES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}

SPARE_PAGES = 16
"""Physical pages for the guest's own use, where its runtime asks for them (``struct rift_info``)."""


def host_isa() -> str:
    """The ISA of this machine in Rift's words, or the platform's own word for another one."""
    return _MACHINE_NAMES.get(platform.machine().lower(), platform.machine().lower())


@dataclass(frozen=True, slots=True)
class ChosenBackend:
    """The backend, what its probe said, and in one sentence why it was taken.

    ``passed_over``: nobody has named it, and these sentences say why those before it in the order were not taken.
    """

    entry: CatalogEntry
    section: Section
    probe: ProbeResult
    why: str
    passed_over: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Assembly:
    """Everything that is decided before a hypervisor is touched."""

    config: MachineConfig
    catalog: Catalog
    binary: Binary
    backend: ChosenBackend
    binding: Binding
    hooks: Hooks
    isa: Isa
    plan: MachinePlan

    def entries(self) -> tuple[Gva, ...]:
        """Where each configured thread starts.

        :raises SymbolNotFoundError: with the nearest names.
        """
        return tuple(entry_address(self.binary, t.entry, t.name) for t in self.config.threads)


def raw_binary(code: bytes, isa: str) -> Binary:
    """Bare machine code as a one-segment image; it may also write to its own pages."""
    permissions = Permission.READ | Permission.WRITE | Permission.EXECUTE
    segment = Segment(Gva(RAW_CODE_ADDRESS), len(code), memoryview(code), permissions, "code")
    return Binary(None, "raw", isa, Gva(RAW_CODE_ADDRESS), (segment,))


def load_binary(config: MachineConfig, catalog: Catalog) -> Binary:
    """Have the configured loader, or each installed one in turn, read the file; a source is built first.

    :raises BinaryError: damaged.  :raises ConfigError: no path, or of another ISA than the configuration's.
    :raises PluginNotFoundError: no such loader.  :raises BuildError: the source does not compile.
    """
    if config.binary.path is None:
        where = f"{config.path}: " if config.path is not None else ""
        raise ConfigError(f"{where}binary.path is missing: name the payload, or give open_machine(code=...)")
    wanted = config.isa.name
    built = build_payload(config, wanted if wanted != "auto" else host_isa())
    binary = _read_binary(config, catalog, config.directory / config.binary.path if built is None else built.path)
    if wanted not in ("auto", binary.isa):
        raise ConfigError(f"isa.name is {wanted!r}, but {binary.title} is {binary.isa} code")
    return binary if built is None else replace(binary, built=built)


def _read_binary(config: MachineConfig, catalog: Catalog, path: Path) -> Binary:
    if config.loader.name != "auto":
        entries = [catalog.get("loader", config.loader.name)]
    else:
        entries = [e for e in catalog.of_kind("loader") if e.module is not None]
    for entry in entries:
        info = entry.info
        section = config.loader if config.loader.name == info.name else info.config()
        binary = Hooks.for_modules((entry.module,)).load_binary(path, section, config.isa.name)
        if binary is not None:
            return binary
    tried = ", ".join(e.info.name for e in entries) or "none is installed"
    raise RiftError(f"{path}: no loader knows this format (asked: {tried}); `rift plugins` lists what is installed")


def choose_backend(config: MachineConfig, catalog: Catalog, isa: str) -> ChosenBackend:
    """The named backend, or the first of the automatic order that can run ``isa`` here.

    :raises PluginUnavailableError: it, or none of them, works here; with every reason and remedy.
    """
    name = config.backend.name
    if name != "auto":
        entry = catalog.get("backend", name)
        probe = _probe(entry, config.backend)
        problem = _unfit(catalog, probe, name, isa)
        if problem:
            raise PluginUnavailableError(problem)
        return ChosenBackend(entry, config.backend, probe.for_isa(isa), f"{name}: chosen by the configuration")
    listed = [n.strip() for n in os.environ.get("RIFT_BACKENDS", "").split(",") if n.strip()]
    order = listed or list(AUTO_BACKENDS)
    problems: list[str] = []
    for name in order:
        if not listed and not catalog.has("backend", name):
            continue
        try:
            entry = catalog.get("backend", name)
        except PluginNotFoundError as error:
            raise PluginNotFoundError(f"RIFT_BACKENDS={','.join(listed)}: {error}") from None
        section = entry.info.config()
        probe = _probe(entry, section)
        problem = _unfit(catalog, probe, name, isa)
        if not problem:
            passed = f"; {'; '.join(problems)}" if problems else ""
            return ChosenBackend(
                entry,
                section,
                probe.for_isa(isa),
                f"{name}: {probe.reason}{passed}",
                () if listed else tuple(problems),
            )
        problems.append(problem)
    raise PluginUnavailableError(
        f"no backend can run {isa} code here\n" + "\n".join(f"  {p}" for p in problems or ["none is installed"])
    )


def _probe(entry: CatalogEntry, section: Section) -> ProbeResult:
    return entry.probe(section) or ProbeResult(True, "has no probe", isas=(host_isa(),))


def _unfit(catalog: Catalog, probe: ProbeResult, name: str, isa: str) -> str:
    if not probe.available:
        return f"{name}: {probe.reason}" + (f" ({probe.remedy})" if probe.remedy else "")
    if probe.isas and isa not in probe.isas:
        return f"{name}: runs {', '.join(probe.isas) or 'nothing'} here, not {isa}"
    if not catalog.has("binding", f"{name}/{isa}"):
        bindings = [e.info.name for e in catalog.of_kind("binding") if e.info.name.startswith(f"{name}/")]
        return f"{name}: no binding {name}/{isa} is installed (there are: {', '.join(bindings) or 'none'})"
    return ""


def assemble(
    config: MachineConfig, catalog: Catalog, code: bytes | None = None, *, backend: ChosenBackend | None = None
) -> Assembly:
    """Decide everything; touch no hypervisor but for the backend's probe."""
    wanted = config.isa.name
    if code is not None:
        binary = raw_binary(code, wanted if wanted != "auto" else host_isa())
    else:
        binary = load_binary(config, catalog)
    return plan_machine(config, catalog, binary, backend or choose_backend(config, catalog, binary.isa))


@lru_cache(maxsize=64)
def _defaults(model: type[Section]) -> Section:
    return model()


def plan_machine(config: MachineConfig, catalog: Catalog, binary: Binary, backend: ChosenBackend) -> Assembly:
    """Select the plugins and lay the machine out."""
    if config.assumed_thread and binary.entry is None and binary.symbols.find("main") is None:
        config = replace(config, threads=())  # functions to be called, and nothing to start
    isa_entry = catalog.get("isa", binary.isa)
    binding_entry = catalog.get("binding", f"{backend.entry.info.name}/{binary.isa}")
    modules = [backend.entry.module, isa_entry.module, binding_entry.module]
    modules += [catalog.get("exit_handler", section.name).module for section in config.exit_handlers]
    modules += [catalog.get("extension", section.name).module for section in config.extensions]
    hooks = Hooks.for_modules(tuple(dict.fromkeys(modules)))
    binding = Binding(backend.entry.info.name, binary.isa)
    if backend.probe.available:  # else nothing is going to be made, and it may exist on another host only
        binding = hooks.binding(backend.entry.info.name, binary.isa)
    isa_section = config.isa if config.isa.name == binary.isa else _defaults(isa_entry.info.config)
    isa = hooks.isa(isa_section, backend.probe.features)
    threads = [ThreadRequest(t.name, t.stack, t.privilege) for t in config.threads]
    if not threads:
        threads = [ThreadRequest(FIRST_CALL, CALL_STACK, "supervisor")]
    layout = plan(
        binary,
        isa,
        backend.probe.limits,
        threads,
        ram_size=config.memory.size,
        spare_tables=config.memory.tables if config.memory.tables is not None else SPARE_TABLES,
        doorbell_address=config.memory.doorbell,
        user_image=any(t.privilege == "user" for t in config.threads),
    )
    return Assembly(config, catalog, binary, backend, binding, hooks, isa, layout)


def check(config: MachineConfig, catalog: Catalog) -> Assembly:
    """Assemble as far as that needs no hypervisor; where no backend works, with limits that all backends keep.

    :raises RiftError: whatever would keep the machine from being made.
    """
    binary = load_binary(config, catalog)
    try:
        backend = choose_backend(config, catalog, binary.isa)
    except PluginUnavailableError as error:
        bound = [e for e in catalog.of_kind("backend") if catalog.has("binding", f"{e.info.name}/{binary.isa}")]
        named = [e for e in bound if e.info.name == config.backend.name]
        if not bound:
            raise
        entry = (named or bound)[0]
        section = config.backend if named else entry.info.config()
        backend = ChosenBackend(entry, section, _ASSUMED, str(error))
    assembly = plan_machine(config, catalog, binary, backend)
    assembly.entries()
    return assembly


_ASSUMED = ProbeResult(
    False,
    "assumed",
    limits=Limits(max_slots=509, gpa_bits=36),
    features=CpuFeatures(page_sizes=(0x1000, 0x4000, 0x20_0000, 0x200_0000)),  # AArch64: either granule
)


def entry_address(binary: Binary, entry: str | int | None, thread: str) -> Gva:
    """Where a thread starts: an address, a symbol, or (None) ``main``, else the file's entry point.

    :raises SymbolNotFoundError: with the nearest names.
    """
    if isinstance(entry, int):
        return Gva(entry)
    if entry is None:
        main = binary.symbols.find("main")
        if main is not None:
            return main.address
        if binary.entry is None:
            raise SymbolNotFoundError(
                f"thread {thread}: the image has neither a symbol main nor an entry point; set entry"
            )
        return binary.entry
    return find_symbol(binary, entry, f"entry of thread {thread}: ")


def find_symbol(binary: Binary, name: str, wanted_for: str = "") -> Gva:
    """Address of a symbol; ``wanted_for`` begins the message where it is missing.

    :raises SymbolNotFoundError: with the nearest names.
    """
    symbol = binary.symbols.find(name)
    if symbol is None:
        similar = binary.symbols.similar(name)
        hint = f"; did you mean {', '.join(similar)}?" if similar else ""
        raise SymbolNotFoundError(f"{wanted_for}{binary.title} has no symbol {name!r}{hint}")
    return symbol.address


def build_engine(assembly: Assembly) -> Engine:
    """Make VM and memory, fill them, make the threads. Nothing runs yet.

    :raises HypervisorError: the hypervisor refused; everything made so far is released.
    """
    with HELD:  # short, and easier than to clean up after an interrupt anywhere in it
        return _build_engine(assembly)


def _build_engine(assembly: Assembly) -> Engine:
    config, layout, isa = assembly.config, assembly.plan, assembly.isa
    features = assembly.backend.probe.features
    limits = assembly.backend.probe.limits
    memory = _make_memory(layout)
    vm = assembly.hooks.create_vm(
        assembly.backend.section, VmSpec(assembly.binary.isa, assembly.binding, features, limits.max_vcpus)
    )
    try:  # first of all: some backends go on behind it, with what makes a vCPU
        for region in memory.regions:
            vm.map_memory(region)
    except BaseException:
        vm.close()
        raise
    guest_limits = GuestLimits(config.limits.wall_time, config.limits.exits_per_second, config.limits.console_bytes)
    engine = Engine(assembly.hooks, layout, isa, vm, limits, guest_limits, memory)
    try:
        _fill_memory(memory, layout)
        tables = layout.tables
        engine.space = assembly.hooks.configure_mmu(
            isa,
            layout.mappings,
            MemoryRegion(
                tables.physical, engine.memory.view(tables.physical, tables.size), tables.permissions, "tables"
            ),
            engine.memory,
        )
        engine.root = engine.space.root
        system_areas = {
            key.partition("/")[2]: Area(key, a.virtual, a.physical, engine.memory.view(a.physical, a.size))
            for key, a in layout.areas.items()
            if key.startswith("system/")
        }
        engine.system = isa.install_system(system_areas, Gva(layout.doorbell))
        engine.vectors = _vectors(engine, "auto", "default")
        for thread in config.threads:
            engine.threads.append(_make_thread(engine, thread))
        _fill_guest_info(engine, len(config.threads))
        for mapping in layout.mappings:  # the memory may be fresh, the CPU's copies of its instructions older
            if Permission.EXECUTE in mapping.permissions:
                vm.code_changed(mapping.physical, mapping.size)
    except BaseException:
        engine.release()
        raise
    return engine


def install_handlers(engine: Engine, assembly: Assembly, machine: object) -> None:
    """Ask every configured exit handler plugin for its handlers, in Python and native.

    :raises ConfigError: two of them claim the same exits.
    """
    handlers = []
    for section in assembly.config.exit_handlers:
        module = assembly.catalog.get("exit_handler", section.name).module
        handlers += assembly.hooks.exit_handlers(module, section, machine)
    names = [handler.name for handler in handlers]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two exit handlers are called {name!r}; drop one of the [[exit_handlers]] tables")
    engine.dispatcher = Dispatcher(handlers)
    for handler in handlers:
        if handler.native is not None:
            engine.vm.install(handler)


def _make_memory(layout: MachinePlan) -> GuestMemory:
    memory = GuestMemory()
    for region in layout.regions:
        if region.segment is None:
            host = HostMemory(region.size, region.name).view
        else:
            host = region.segment.data[region.offset : region.offset + region.size]
        memory.add(MemoryRegion(region.physical, host, region.permissions, region.name))
    return memory


def _fill_memory(memory: GuestMemory, layout: MachinePlan) -> None:
    ram = memory.find(layout.ram.physical)
    if ram is not None:
        for placement in layout.placements:
            at = placement.physical - ram.guest_address
            ram.host[at : at + placement.size] = placement.segment.data[
                placement.offset : placement.offset + placement.size
            ].cast("B")


def _vectors(engine: Engine, wanted: str, thread: str) -> Vectors | None:
    """The payload's own vectors: by name, or the first of the ISA's default names that the image has."""
    binary = engine.plan.binary
    if wanted == "built-in":
        return None
    names = engine.isa.default_vectors if wanted == "auto" else (wanted,)
    for name in names:
        symbol = binary.symbols.find(name)
        if symbol is not None:
            segment = next(
                (s for s in binary.segments if s.address <= symbol.address < s.address + s.memory_size), None
            )
            size = segment.address + segment.memory_size - symbol.address if segment is not None else symbol.size
            # What stands there at most: 256 gates of 16 bytes, and a table of as many behind.
            return Vectors(name, symbol.address, engine.view(symbol.address, max(1, min(size, 0x2000))))
    if wanted != "auto":
        find_symbol(binary, wanted, f"vectors of thread {thread}: ")
    return None


def _make_thread(engine: Engine, config: ThreadConfig) -> Thread:
    wanted = config.vectors
    if wanted == "auto" and config.privilege == "user":
        wanted = "built-in"  # the payload's own handlers would run in supervisor mode on data that user mode can write
    return Thread(
        engine,
        config.name,
        entry_address(engine.plan.binary, config.entry, config.name),
        config.privilege,
        tuple(config.arguments),
        engine.new_context(config.name, config.privilege, config.stack, planned=True),
        _vectors(engine, wanted, config.name),
    )


def _fill_guest_info(engine: Engine, threads: int) -> None:
    """Tell the guest's runtime where things are, if it has asked by defining ``rift_info``."""
    symbol = engine.symbols.find(GuestInfo.SYMBOL)
    if symbol is None:
        return
    built_for = GuestInfo.unpack(engine.read_virtual(symbol.address, GuestInfo.LAYOUT.size)).doorbell
    if built_for != engine.doorbell:
        raise ConfigError(
            f"the payload was built for a doorbell page at {built_for:#x}, but memory.doorbell is "
            f"{engine.doorbell:#x}: build it with -DRIFT_DOORBELL={engine.doorbell:#x}, or set "
            f"memory.doorbell = {built_for:#x}"
        )
    spare = engine.place_area("spare", SPARE_PAGES * engine.page, Permission.READ | Permission.WRITE)
    info = GuestInfo(
        doorbell=engine.doorbell,
        page_size=engine.isa.page_sizes[0],
        tables_gva=engine.plan.tables.virtual,
        tables_gpa=engine.plan.tables.physical,
        tables_size=engine.plan.tables.size,
        spare_gva=spare.virtual,
        spare_gpa=spare.physical,
        spare_size=spare.size,
        threads=threads,
    )
    content = info.pack(symbol.size or None)
    engine.write_virtual(symbol.address, content)
    engine.written_at_start.append((symbol.address, content))
