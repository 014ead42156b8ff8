"""What LLDB asks beyond GDB's packets: LLDB documentation, "GDB Remote Protocol Extensions"."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rift_core.memory import Permission
from rift_gdb.connection import to_hex
from rift_gdb.errors import INVALID, PacketError
from rift_gdb.macho_image import read_image
from rift_gdb.packets.arguments import number
from rift_gdb.packets.registry import packet

if TYPE_CHECKING:
    from rift_core.memory import Walk
    from rift_gdb.memory import View
    from rift_gdb.session import Session

_TOP = 1 << 64
_LARGEST_ALLOCATION = 1 << 24
_MOST_PAGES = 4096  # of one region: LLDB asks for the rest
_PROCESS = 1
"""The process id that is told: a real one would make LLDB look for that process's program on its own machine."""

_MACOS = "11.0.0"
"""The version that is told with Mach-O payloads: from 10.12 on, LLDB asks the server where they stand. For older
ones it reads structures of macOS's loader, which are not in the guest."""


@packet("QThreadSuffixSupported")
def thread_suffix(session: Session, arguments: bytes) -> bytes:
    """Register packets may name their thread."""
    return b"OK"


@packet("QListThreadsInStopReply")
def list_threads(session: Session, arguments: bytes) -> bytes:
    """Stop replies are to list all threads."""
    session.lists_threads = True
    return b"OK"


def _system(session: Session, number: str) -> list[str]:
    """What the guest runs on, in words: no operating system, but for Mach-O files, which LLDB drops without Apple's.

    :param number: how the packet writes numbers: that is not the same for all.
    """
    image = read_image(session.target.engine.plan.binary)
    if image is None:
        return [f"triple:{to_hex(session.target.debug.triple.encode()).decode()}"]
    cpu, subtype = image.cpu
    return [f"cputype:{cpu:{number}}", f"cpusubtype:{subtype:{number}}", "ostype:macosx", "vendor:apple"]


def _host(session: Session) -> str:
    debug = session.target.debug
    words = [
        *_system(session, "d"),
        "ptrsize:8",
        "endian:little",
        f"vm-page-size:{session.target.engine.page}",
        f"watchpoint_exceptions_received:{'after' if debug.watch_is_late else 'before'}",
    ]
    if read_image(session.target.engine.plan.binary) is not None:
        words.append(f"os_version:{_MACOS}")
    ranges = session.target.engine.isa.virtual_ranges
    bits = ranges[0].stop.bit_length() - 1
    if len(ranges) > 1 and bits < 64:
        words += [f"low_mem_addressing_bits:{bits}", f"high_mem_addressing_bits:{bits}"]
    return ";".join(words) + ";"


@packet("qHostInfo")
def host_info(session: Session, arguments: bytes) -> bytes:
    """The machine: one with an operating system that LLDB knows for Mach-O payloads only."""
    return _host(session).encode()


@packet("qProcessInfo")
def process_info(session: Session, arguments: bytes) -> bytes:
    """The process, which is none."""
    words = [f"pid:{_PROCESS:x}", *_system(session, "x"), "ptrsize:8", "endian:little"]
    return (";".join(words) + ";").encode()


@packet("jGetLoadedDynamicLibrariesInfos")
def loaded_images(session: Session, arguments: bytes) -> bytes:
    """Where a Mach-O payload stands. Asked without arguments: whether that can be told."""
    binary = session.target.engine.plan.binary
    image = read_image(binary)
    path = session.server.payloads.own or binary.path
    if image is None or path is None:
        return b""
    if not arguments.removeprefix(b":"):
        return b"OK"
    return json.dumps({"images": [image.describe(path)]}).encode()


@packet("qWatchpointSupportInfo")
def watchpoint_support(session: Session, arguments: bytes) -> bytes:
    """How many watchpoints there can be: those of the CPU, else any number, by stepping."""
    return b"num:%d;" % session.target.watchpoint_count()


@packet("jThreadsInfo")
def threads_info(session: Session, arguments: bytes) -> bytes:
    """All threads in one answer."""
    rows = []
    for thread in session.target.threads:
        stop = session.server.last_stop_of(thread)
        row: dict[str, object] = {"tid": thread.number, "name": thread.context.name}
        if stop is not None:
            row["signal"] = stop.signal
            if stop.text:
                row["reason"] = "exception"
                row["description"] = stop.text
        if thread.held:
            image = session.target.image(thread)
            found = {}
            for role in ("pc", "sp", "fp"):
                row_of = image.layout.of_role(role)
                part = image.part(row_of)
                if part is not None:
                    found[str(row_of.number)] = part.hex()
            row["registers"] = found
        rows.append(row)
    session.show_images()
    return json.dumps(rows).encode()


@packet("qMemoryRegionInfo")
def region_info(session: Session, arguments: bytes) -> bytes:
    """What is mapped around an address; LLDB walks through all of the address space with it."""
    if not arguments:
        return b"OK"
    address = number(arguments.removeprefix(b":"))
    view = session.view()
    if view.physical:
        return _physical_region(session, address)
    start, size, walk = region_around(session, view, address)
    words = [f"start:{start:x}", f"size:{size:x}"]
    if walk is not None:
        letters = "r"
        letters += "w" if walk.permissions & Permission.WRITE else ""
        letters += "x" if walk.permissions & Permission.EXECUTE else ""
        words.append(f"permissions:{letters}")
        name = session.target.map.name_of(start)
        if name:
            words.append(f"name:{to_hex(name.encode()).decode()}")
    return (";".join(words) + ";").encode()


def _physical_region(session: Session, address: int) -> bytes:
    memory = session.target.engine.memory
    region = memory.find(address)
    if region is not None:
        return f"start:{region.guest_address:x};size:{region.size:x};permissions:rwx;".encode()
    following = min((r.guest_address for r in memory.regions if r.guest_address > address), default=_TOP)
    return f"start:{address:x};size:{following - address:x};".encode()


def region_around(session: Session, view: View, address: int) -> tuple[int, int, Walk | None]:
    """Where the run of pages that ``address`` lies in begins, its size, and a walk of it; None: not mapped."""
    walk = view.walk(address)
    if walk.physical is None:
        following = session.target.map.next_mapped(address)
        return address, following - address, None
    start = address - address % walk.page_size
    size = walk.page_size
    name = session.target.map.name_of(start)
    for _ in range(_MOST_PAGES):
        beyond = start + size
        if beyond >= _TOP:
            break
        following_walk = view.walk(beyond)
        if following_walk.physical is None or following_walk.permissions != walk.permissions:
            break
        if session.target.map.name_of(beyond) != name:
            break
        size += following_walk.page_size
    return start, size, walk


@packet("_M")
def allocate(session: Session, arguments: bytes) -> bytes:
    """New pages for LLDB's own code and data."""
    size_text, _, letters = arguments.partition(b",")
    size = number(size_text)
    if not 0 < size <= _LARGEST_ALLOCATION:
        raise PacketError(f"at most {_LARGEST_ALLOCATION} bytes can be allocated", INVALID)
    flags = Permission.READ
    flags |= Permission.WRITE if b"w" in letters else Permission.NONE
    flags |= Permission.EXECUTE if b"x" in letters else Permission.NONE
    if session.target.place(session.thread()).privilege == "user":
        flags |= Permission.USER
    address = session.target.allocations.take(size, flags)
    session.connection.forget_pages()
    return b"%x" % address


@packet("_m")
def release(session: Session, arguments: bytes) -> bytes:
    """The pages are not needed any more."""
    session.target.allocations.release(number(arguments))
    return b"OK"
