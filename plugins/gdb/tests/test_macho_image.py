"""What LLDB is told of Mach-O payloads: read from bytes that the guest may have written to."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rift_core.binary import Binary, Segment
from rift_core.memory import Gva, Permission
from rift_gdb.macho_image import read_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Debugged

    Debug = Callable[..., Debugged]

LINKED, SLIDE = 0x1_0000_0000, 0x7000
X86_64, EXECUTE = 0x0100_0007, 2
UUID = bytes(range(16))


def segment(name: bytes, address: int, offset: int, size: int = 0x1000) -> bytes:
    return struct.pack("<II16sQQQQiiII", 0x19, 72, name, address, size, offset, size, 5, 5, 0, 0)


TEXT = segment(b"__TEXT", LINKED, 0)


def header(commands: bytes, count: int, magic: int = 0xFEEDFACF, size: int | None = None) -> bytes:
    length = len(commands) if size is None else size
    return struct.pack("<IIIIIIII", magic, X86_64, 0x8000_0003, EXECUTE, count, length, 1, 0) + commands


def binary(data: bytes, slide: int = SLIDE) -> Binary:
    shown = Segment(Gva(LINKED + SLIDE), 0x1000, memoryview(data), Permission.READ)
    other = Segment(Gva(0x1000), 0x1000, memoryview(b"data"), Permission.READ)
    return Binary(Path("file"), "mach-o execute", "x86_64", None, (other, shown), slide=slide)


def test_a_header_is_read() -> None:
    commands = TEXT + segment(b"a name of 16 let", LINKED + 0x1000, 0x1000) + struct.pack("<II16s", 0x1B, 24, UUID)
    image = read_image(binary(header(commands, 3)))
    assert image is not None
    assert image.cpu == (X86_64, 3)
    told = image.describe(Path("/nowhere/file"))
    assert told["load_address"] == LINKED + SLIDE
    assert told["pathname"] == "/nowhere/file"
    assert told["mod_date"] == 0
    assert told["uuid"] == "00010203-0405-0607-0809-0A0B0C0D0E0F"
    assert told["mach_header"]["cpusubtype"] == 0x8000_0003
    rows = [(each["name"], each["vmaddr"], each["fileoff"]) for each in told["segments"]]
    assert rows == [("__TEXT", LINKED, 0), ("a name of 16 let", LINKED + 0x1000, 0x1000)]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        header(TEXT, 1)[:31],
        header(TEXT, 1, magic=0xFEEDFACE),
        header(TEXT, 0),
        header(b"", 1 << 31),
        header(TEXT, 1, size=71),
        header(TEXT, 1)[:-1],
        header(struct.pack("<II", 0x19, 0) + TEXT, 2),
        header(struct.pack("<II", 0x19, 8) + struct.pack("<II", 0x19, 0xFFFF_FFFF), 2),
        header(segment(b"__TEXT", LINKED + 0x1000, 0), 1),
        header(segment(b"__DATA", LINKED, 0x1000), 1),
    ],
)
def test_what_is_no_header_is_left_alone(data: bytes) -> None:
    assert read_image(binary(data)) is None


def test_another_slide_is_another_image() -> None:
    assert read_image(binary(header(TEXT, 1), slide=0)) is None


def test_the_answer_fits_into_a_packet() -> None:
    image = read_image(binary(header(TEXT + segment(b"\xff" * 16, -1 % (1 << 64), 0) * 5000, 5001)))
    assert image is not None
    assert len(json.dumps(image.describe(Path("p" * 4096))).replace("}", "}]")) < 0x1_0000


def test_elf_payloads_have_no_operating_system(debug: Debug) -> None:
    debugged = debug("main")
    client = debugged.begin()
    for packet in ("qHostInfo", "qProcessInfo"):
        answer = client.ask(packet).decode()
        triple = bytes.fromhex(answer.partition("triple:")[2].partition(";")[0]).decode()
        assert triple == f"{debugged.isa}-unknown-none"
        assert "os_version" not in answer
    assert client.ask("jGetLoadedDynamicLibrariesInfos:") == b""


def test_macho_payloads_run_on_apples(debug: Debug) -> None:
    debugged = debug("main", format="macho")
    client = debugged.begin()
    number = {"x86_64": 0x0100_0007, "aarch64": 0x0100_000C}[debugged.isa]
    assert b"cputype:%d;" % number in client.ask("qHostInfo")
    assert b"cputype:%x;" % number in client.ask("qProcessInfo")
    assert client.ask("jGetLoadedDynamicLibrariesInfos:") == b"OK"
    (image,) = json.loads(client.ask('jGetLoadedDynamicLibrariesInfos:{"fetch_all_solibs":true}'))["images"]
    path = debugged.machine.binary.path
    assert path is not None
    assert image["pathname"] == str(path)
    text = next(each for each in image["segments"] if each["name"] == "__TEXT")
    assert text["vmaddr"] <= debugged.at("main") < text["vmaddr"] + text["vmsize"]
