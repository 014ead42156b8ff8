"""From a path to a :class:`~rift_core.binary.Binary`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_core.binary import Binary, Segment
from rift_core.errors import BinaryError, RiftError
from rift_core.file_image import FileImage, read_image
from rift_core.loader_config import bias_of
from rift_core.memory import Gva, Permission
from rift_loader_elf._native import ffi, lib
from rift_loader_elf.relocation import relocate
from rift_loader_elf.structure import Load, Structure, read_structure
from rift_loader_elf.symbols import read_symbols

if TYPE_CHECKING:
    from pathlib import Path

    from rift_loader_elf import ElfConfig

ALIGNMENT_LIMIT = 1 << 30
"""Largest ``p_align`` of a position-independent file, the size of the largest page."""

MAGIC = b"\x7fELF"
"""First four bytes of every ELF file (System V gABI, "ELF Identification")."""

_PAGE = 0x1000
_MODULUS = 1 << 64
_FLAGS = ((4, Permission.READ), (2, Permission.WRITE), (1, Permission.EXECUTE))  # PF_R, PF_W, PF_X


def _is_elf(path: Path, head: bytes) -> bool:
    if head.startswith(MAGIC):
        return True
    if MAGIC.startswith(head):
        raise BinaryError(f"{path}: offset {len(head):#x}: the file ends within the identification of ELF")
    return False


def _bias(path: Path, structure: Structure, base: int | None) -> int:
    """What is added to every address of the file, modulo 2**64."""
    lowest, highest = structure.loads[0].address, structure.loads[-1].address + structure.loads[-1].memory_size
    if not structure.position_independent or (base is None and lowest >= _PAGE):
        return 0  # fixed, or linked at addresses of its own choice: they are valid as they stand
    alignment = max(structure.alignment, _PAGE)
    if alignment > ALIGNMENT_LIMIT:
        at = next(load.header for load in structure.loads if load.alignment == alignment) + 48
        raise BinaryError(
            f"{path}: offset {at:#x}: p_align: {alignment:#x} is more than {ALIGNMENT_LIMIT:#x}, the largest page"
        )
    return bias_of(path, lowest, highest, alignment, base)


def _check_self_contained(path: Path, structure: Structure) -> None:
    """Without a dynamic linker nothing can come from other files."""
    remedy = "link with -static-pie or -static"
    if structure.needed:
        libraries = ", ".join(structure.needed)
        raise BinaryError(f"{path}: the file needs the shared library {libraries}, which a guest has not; {remedy}")
    if structure.interpreter is not None and structure.tags is None:
        raise BinaryError(f"{path}: the file asks for the interpreter {structure.interpreter}; {remedy}")


def _permissions(flags: int) -> Permission:
    permissions = Permission.NONE
    for flag, permission in _FLAGS:
        if flags & flag:
            permissions |= permission
    return permissions


def _name(load: Load, permissions: Permission) -> str:
    if permissions & Permission.EXECUTE:
        return "text+data" if permissions & Permission.WRITE else "text"
    if permissions & Permission.WRITE:
        return "data" if load.file_size else "bss"
    return "rodata"


def _segment(image: FileImage, load: Load, bias: int, data: memoryview, *, from_file: bool) -> Segment:
    address = (load.address + bias) % _MODULUS
    permissions = _permissions(load.flags)
    return Segment(
        address=Gva(address),
        memory_size=load.memory_size,
        data=data if permissions & Permission.WRITE else data.toreadonly(),
        permissions=permissions,
        name=_name(load, permissions),
        mappable=from_file and image.can_show(address, load.offset, len(data)),
    )


def _format(structure: Structure) -> str:
    kind = "exec"
    if structure.position_independent:
        kind = "static-pie" if structure.interpreter is None else "pie"
    return f"elf64 {kind}" + (" with thread-local data" if structure.has_tls else "")


def _load(path: Path, config: ElfConfig) -> Binary | None:
    image = read_image(path, config.map_file, ffi, _is_elf)
    if image is None:
        return None
    structure = read_structure(image, config.max_memory)
    _check_self_contained(path, structure)
    bias = _bias(path, structure, config.base)
    buffers = [image.view[load.offset : load.offset + load.file_size] for load in structure.loads]
    for load, buffer in zip(structure.loads, buffers, strict=True):
        if len(buffer) != load.file_size:
            raise BinaryError(f"{path}: offset {load.offset:#x}: the file changed while it was read")
    relocated = relocate(image, structure, bias, buffers)
    segments = tuple(
        _segment(image, load, bias, data, from_file=data is buffer)
        for load, data, buffer in zip(structure.loads, relocated, buffers, strict=True)
    )
    ranges = [range(segment.address, segment.address + segment.memory_size) for segment in segments]
    return Binary(
        path=path,
        format=_format(structure),
        isa="x86_64" if structure.machine == lib.RIFT_ELF_X86_64 else "aarch64",
        entry=Gva((structure.entry + bias) % _MODULUS) if structure.entry else None,
        segments=segments,
        symbols=read_symbols(image, structure.machine, bias, ranges),
        owner=image,
        slide=bias % _MODULUS,
    )


def load(path: Path, config: ElfConfig) -> Binary | None:
    """Read, check and relocate an ELF file; None if it is of another format.

    Holds the one broad catch: whatever pyelftools raises for a damaged file becomes a BinaryError.

    :raises BinaryError: the file cannot be read, is damaged, or is of a kind that cannot be loaded.
    """
    try:
        return _load(path, config)
    except RiftError:
        raise
    except Exception as error:
        raise BinaryError(f"{path}: the file is damaged: {type(error).__name__}: {error}") from error
