"""From a path to a :class:`~rift_core.binary.Binary`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from macholib.mach_o import CPU_TYPE_NAMES

from rift_core.binary import Binary, Segment
from rift_core.errors import BinaryError, RiftError
from rift_core.file_image import FileImage, read_image
from rift_core.loader_config import bias_of
from rift_core.memory import Gva, Permission
from rift_loader_macho._native import ffi, lib
from rift_loader_macho.fixups import Fixups
from rift_loader_macho.structure import ISAS, Load, MachoImage, Slice, Structure, read_structure, slices
from rift_loader_macho.symbols import read_symbols

if TYPE_CHECKING:
    from pathlib import Path

    from rift_loader_macho import MachoConfig

MAGICS = (
    b"\xcf\xfa\xed\xfe",  # MH_MAGIC_64, little-endian
    b"\xce\xfa\xed\xfe",  # MH_MAGIC
    b"\xfe\xed\xfa\xcf",  # the same, big-endian
    b"\xfe\xed\xfa\xce",
    b"\xca\xfe\xba\xbe",  # FAT_MAGIC
    b"\xca\xfe\xba\xbf",  # FAT_MAGIC_64
)
"""First four bytes of Mach-O files (<mach-o/loader.h>, <mach-o/fat.h>). What cannot be loaded is recognised as well,
for the sake of the message."""

_FAT_MAGIC = b"\xca\xfe\xba\xbe"
_JAVA_MAJOR = 45
"""Java's class files start like universal files, with their version, at least this, where those count images."""

_ARM64E = 2
_PAGE = 0x1000
_ARM64_PAGE = 0x4000
_MODULUS = 1 << 64
_KINDS = {lib.RIFT_MACHO_EXECUTE: "execute", lib.RIFT_MACHO_BUNDLE: "bundle", lib.RIFT_MACHO_PRELOAD: "preload"}


def _is_macho(path: Path, head: bytes) -> bool:
    if head[:4] == _FAT_MAGIC and len(head) > 10:
        # A constant's tag, 1 to 20, stands where a universal file has a zero byte of a 64-bit CPU type.
        return not (int.from_bytes(head[4:8], "big") >= _JAVA_MAJOR and 1 <= head[10] <= 20)
    if head.startswith(MAGICS):
        return True
    if any(magic.startswith(head) for magic in MAGICS):
        raise BinaryError(f"{path}: offset {len(head):#x}: the file ends within the magic number of Mach-O")
    return False


def _cpu_name(entry: Slice) -> str:
    if (entry.cpu, entry.subtype & 0xFFFFFF) == (lib.RIFT_MACHO_ARM64, _ARM64E):
        return "arm64e"
    return str(CPU_TYPE_NAMES.get(entry.cpu, f"CPU type {entry.cpu:#x}")).replace("ARM64", "arm64")


def choose_image(file: FileImage, isa: str) -> MachoImage:
    """The image of that ISA; "auto" takes the host's where there is one, else the first that can be loaded.

    A thin file's image is taken whatever it is: it is checked later.

    :raises BinaryError: there is none; the message lists what there is.
    """
    entries = slices(file)
    if not entries:
        return MachoImage.of(file, 0, file.size)
    names = tuple(_cpu_name(entry) for entry in entries)
    loadable: dict[str, Slice] = {}
    for entry, name in zip(entries, names, strict=True):
        if entry.cpu in ISAS and name != "arm64e":
            loadable.setdefault(ISAS[entry.cpu], entry)
    if isa == "auto":
        from rift_core.assembly import host_isa

        isa = host_isa() if host_isa() in loadable else next(iter(loadable), isa)
    if isa not in loadable:
        hint = "; arm64e is not supported, add an image for arm64" if "arm64e" in names else ""
        wanted = "x86_64 or arm64" if isa == "auto" else isa
        raise BinaryError(
            f"{file.path}: offset 0x8: the universal file holds {', '.join(names)}, and nothing for {wanted}{hint}"
        )
    return MachoImage.of(file, loadable[isa].offset, loadable[isa].size, names)


def _check_image(image: MachoImage, structure: Structure, isa: str) -> None:
    if image.others and isa != "auto" and structure.isa != isa:
        raise BinaryError(
            f"{image.path}: offset {image.origin + 4:#x}: cputype: the image is not of the CPU that the universal file "
            f"names: {structure.isa}, not {isa}"
        )


def _slide(path: Path, structure: Structure, base: int | None) -> int:
    """What is added to every address of the file, modulo 2**64."""
    summary = structure.summary
    lowest, highest = int(summary.lowest), int(summary.highest)
    if not structure.position_independent or (base is None and lowest >= _PAGE):
        return 0  # fixed, or linked at addresses of its own choice: they are valid as they stand
    alignment = max(int(summary.alignment), _ARM64_PAGE if summary.cpu == lib.RIFT_MACHO_ARM64 else _PAGE)
    return bias_of(path, lowest, highest, alignment, base)


def _segment(image: MachoImage, load: Load, slide: int) -> Segment:
    address = (load.address + slide) % _MODULUS
    permissions = Permission(load.protection)  # VM_PROT_READ, _WRITE and _EXECUTE are the same bits
    data = image.bytes_at(load.offset, load.file_size)
    if len(data) != load.file_size:
        raise BinaryError(f"{image.path}: offset {load.offset:#x}: the file changed while it was read")
    return Segment(
        address=Gva(address),
        memory_size=load.memory_size,
        data=data if permissions & Permission.WRITE else data.toreadonly(),
        permissions=permissions,
        name=load.name,
        mappable=image.file.can_show(address, image.origin + load.offset, load.file_size),
    )


def _format(image: MachoImage, structure: Structure) -> str:
    text = f"mach-o {_KINDS[structure.summary.type]}"
    if image.others:
        text += f" of a universal file ({', '.join(image.others)})"
    return text + (" with thread-local data" if structure.summary.has_thread_data else "")


def _load(path: Path, config: MachoConfig, isa: str) -> Binary | None:
    file = read_image(path, config.map_file, ffi, _is_macho)
    if file is None:
        return None
    image = choose_image(file, isa)
    structure = read_structure(image, config.max_memory)
    _check_image(image, structure, isa)
    slide = _slide(path, structure, config.base)
    loads = sorted((load for load in structure.loads if not load.is_hole), key=lambda load: load.address)
    ranges = []
    for load in loads:
        start = (load.address + slide) % _MODULUS
        ranges.append(range(start, start + load.memory_size))
    symbols = read_symbols(image, structure, slide, ranges)
    Fixups(image, structure, slide, symbols).apply()
    summary = structure.summary
    return Binary(
        path=path,
        format=_format(image, structure),
        isa=structure.isa,
        entry=Gva((summary.entry + slide) % _MODULUS) if summary.has_entry else None,
        segments=tuple(_segment(image, load, slide) for load in loads),
        symbols=symbols,
        owner=image,
        slide=slide,
        abi="apple" if structure.isa == "aarch64" else "",  # on x86-64 Apple's convention is everybody's
    )


def load(path: Path, config: MachoConfig, isa: str) -> Binary | None:
    """Read, check and rebase a Mach-O file; None if it is of another format.

    Holds the one broad catch: whatever macholib raises for a damaged file becomes a BinaryError.

    :param isa: which image of a universal file; "auto" for any.
    :raises BinaryError: the file cannot be read, is damaged, or is of a kind that cannot be loaded.
    """
    try:
        return _load(path, config, isa)
    except RiftError:
        raise
    except Exception as error:
        raise BinaryError(f"{path}: the file is damaged: {type(error).__name__}: {error}") from error
