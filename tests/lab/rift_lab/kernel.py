"""The distribution's kernel, and an initramfs with the modules that a machine needs."""

from __future__ import annotations

import lzma
import re
import shutil
import struct
import subprocess
from pathlib import Path

from rift_lab import cache
from rift_lab.cache import LabError, say
from rift_lab.debian import Packages, need_programs, unpack
from rift_lab.initramfs import Initramfs

_RECIPE = "1"
"""Raised when this module makes something else of the same packages."""

_INIT = Path(__file__).parent / "guest" / "init"


def prepare(architecture: str, modules: tuple[str, ...]) -> Path:
    """A folder with ``kernel`` and ``initramfs``.

    :param modules: names; what they depend on comes along. One that is built into the kernel is passed over.
    """

    def make(folder: Path) -> None:
        packages = Packages(architecture)
        name = packages.newest_dependency(f"linux-image-{architecture}", r"linux-image-[0-9][^ ,]*")
        say(f"fetching {name} for {architecture}")
        kernel, busybox = packages.download([name, "busybox-static"], dependencies=False)
        files = folder / "files"
        unpack(kernel, files, lambda path: path.startswith(("boot/vmlinuz", "lib/modules", "usr/lib/modules")))
        unpack(busybox, files, lambda path: path.endswith("bin/busybox"))
        (image,) = (files / "boot").glob("vmlinuz*")
        (folder / "kernel").write_bytes(_unpacked(image.read_bytes()))
        (folder / "initramfs").write_bytes(_initramfs(files, modules))
        (folder / "package").write_text(kernel.name + "\n")
        shutil.rmtree(files)

    key = cache.digest(_RECIPE, architecture, *modules, _INIT.read_bytes())
    return cache.entry(f"kernel-{architecture}", key, make)


def _unpacked(image: bytes) -> bytes:
    """The ELF file inside an x86 bzImage (Linux: Documentation/arch/x86/boot.rst), which QEMU starts by PVH.

    That saves the emulated CPU the unpacking. The image itself where it is none, or packed otherwise than by xz.
    """
    if image[0x202:0x206] != b"HdrS":
        return image
    offset, size = struct.unpack_from("<II", image, 0x248)  # payload_offset, payload_length
    start = (image[0x1F1] + 1) * 512 + offset  # setup_sects
    payload = image[start : start + size]
    if payload[:6] != b"\xfd7zXZ\0":
        return image
    kernel = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload)
    return kernel if kernel[:4] == b"\x7fELF" else image


def _initramfs(files: Path, modules: tuple[str, ...]) -> bytes:
    archive = Initramfs()
    archive.add_folder("modules")
    (busybox,) = files.glob("**/bin/busybox")
    archive.add_file("bin/busybox", busybox.read_bytes(), 0o755)
    archive.add_file("init", _INIT.read_bytes(), 0o755)
    available = {_module_name(path): path for path in files.glob("**/lib/modules/*/kernel/**/*.ko*")}
    if not available:
        raise LabError("the kernel package has no modules")
    order: dict[str, bytes] = {}
    for module in modules:
        _add_module(module, available, order)
    for name, data in order.items():
        archive.add_file(f"modules/{name}", data)
    archive.add_file("modules/order", "".join(f"{name}\n" for name in order).encode())
    return archive.pack()


def _module_name(path: Path) -> str:
    return path.name.partition(".ko")[0].replace("-", "_")


def _add_module(name: str, available: dict[str, Path], order: dict[str, bytes]) -> None:
    """Put a module behind those that it depends on."""
    path = available.get(name)
    if path is None or name in order:
        return
    data = _module_data(path)
    depends = re.search(rb"\0depends=([^\0]*)\0", data)
    for other in depends[1].decode().split(",") if depends else ():
        _add_module(other.replace("-", "_"), available, order)
    order[name] = data


def _module_data(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        need_programs(("zstd", "zstd"))
        return subprocess.run(["zstd", "-dc"], input=data, stdout=subprocess.PIPE, check=True).stdout
    return data
