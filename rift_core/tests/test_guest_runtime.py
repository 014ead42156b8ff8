"""The guest runtime as far as it can be judged without a guest: its text formatting, layouts and machine code."""

from __future__ import annotations

import ctypes
import platform
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rift_core import doorbell
from rift_core.build import build
from rift_core.build_target import RUNTIME
from rift_core.channel import Channel
from rift_core.errors import AddressError, BinaryError
from rift_core.guest_info import GuestInfo
from rift_core.memory import Permission
from rift_core.testing.tools import require_tool, skip_here

X86_64 = Path(__file__).parents[2] / "plugins/x86_64/src/rift_x86_64/guest"


@pytest.fixture(autouse=True, scope="module")
def needs_gcc() -> None:
    require_tool("gcc")


@pytest.fixture(scope="module")
def formatter(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The runtime's formatting as a library of the host."""
    library = tmp_path_factory.mktemp("format") / "format.so"
    subprocess.run(
        ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-shared", "-fPIC",
         "-fsanitize=undefined", "-fsanitize-undefined-trap-on-error",
         str(RUNTIME / "rift_format.c"), "-o", str(library)],
        check=True,
    )  # fmt: skip
    return ctypes.CDLL(str(library))


def formatted(library: ctypes.CDLL, pattern: str, *arguments: Any, room: int = 400) -> str:
    """What rift_snprintf writes; checks its result and that it stays in its room."""
    buffer = ctypes.create_string_buffer(b"\xee" * (room + 8), room + 8)
    count = library.rift_snprintf(buffer, ctypes.c_size_t(room), pattern.encode(), *arguments)
    assert buffer.raw[room:] == b"\xee" * 8
    text = buffer.raw[:room].split(b"\0")[0].decode("latin-1")
    assert len(text) == (min(count, room - 1) if room else 0)
    return text


FLAGS = st.lists(st.sampled_from("-0+ #"), max_size=3, unique=True).map("".join)
WIDTH = st.one_of(st.just(""), st.integers(1, 40).map(str))
PRECISION = st.one_of(st.just(""), st.integers(0, 40).map(lambda n: f".{n}"))

LENGTHS = {
    "hh": (ctypes.c_int8, ctypes.c_uint8),
    "h": (ctypes.c_int16, ctypes.c_uint16),
    "": (ctypes.c_int32, ctypes.c_uint32),
    "l": (ctypes.c_int64, ctypes.c_uint64),
    "ll": (ctypes.c_int64, ctypes.c_uint64),
    "z": (ctypes.c_int64, ctypes.c_uint64),
}


@given(flags=FLAGS, width=WIDTH, length=st.sampled_from(sorted(LENGTHS)), value=st.integers(-(1 << 63), (1 << 63) - 1))
def test_decimal_numbers_are_formatted_as_by_python(
    formatter: ctypes.CDLL, flags: str, width: str, length: str, value: int
) -> None:
    signed, unsigned = (kind(value).value for kind in LENGTHS[length])
    flags = flags.replace("#", "")
    assert formatted(formatter, f"<%{flags}{width}{length}d>", ctypes.c_int64(signed)) == f"<%{flags}{width}d>" % signed
    flags = flags.replace("+", "").replace(" ", "")  # Python gives unsigned numbers a sign as well
    assert (
        formatted(formatter, f"<%{flags}{width}{length}u>", ctypes.c_uint64(unsigned))
        == f"<%{flags}{width}d>" % unsigned
    )


@given(
    flags=st.lists(st.sampled_from("-0"), max_size=2, unique=True).map("".join),
    width=WIDTH,
    length=st.sampled_from(sorted(LENGTHS)),
    kind=st.sampled_from("xX"),
    value=st.integers(0, (1 << 64) - 1),
)
def test_hexadecimal_numbers_are_formatted_as_by_python(
    formatter: ctypes.CDLL, flags: str, width: str, length: str, kind: str, value: int
) -> None:
    value = LENGTHS[length][1](value).value
    pattern = f"%{flags}{width}{kind}"
    assert formatted(formatter, f"%{flags}{width}{length}{kind}", ctypes.c_uint64(value)) == pattern % value


@given(left=st.sampled_from(["", "-"]), width=WIDTH, precision=PRECISION, text=st.text("abc%xyz", max_size=60))
def test_text_is_formatted_as_by_python(
    formatter: ctypes.CDLL, left: str, width: str, precision: str, text: str
) -> None:
    pattern = f"[%{left}{width}{precision}s]"
    assert formatted(formatter, pattern, text.encode()) == pattern % text


@given(value=st.integers(-(1 << 63), (1 << 63) - 1), precision=st.integers(0, 30), width=st.integers(0, 40))
def test_precision_is_a_least_number_of_digits(formatter: ctypes.CDLL, value: int, precision: int, width: int) -> None:
    digits = "" if value == 0 and precision == 0 else str(abs(value)).rjust(precision, "0")
    expected = (("-" if value < 0 else "") + digits).rjust(width)
    assert formatted(formatter, f"%{width}.{precision}lld", ctypes.c_int64(value)) == expected
    assert formatted(formatter, "%*.*lld", width, precision, ctypes.c_int64(value)) == expected


@given(room=st.integers(0, 30), text=st.text("abc", max_size=40))
def test_a_short_buffer_is_not_overrun(formatter: ctypes.CDLL, room: int, text: str) -> None:
    assert formatted(formatter, "%s", text.encode(), room=room) == text[: max(room - 1, 0)]


@pytest.mark.parametrize(
    ("pattern", "arguments", "expected"),
    [
        ("plain", (), "plain"),
        ("", (), ""),
        ("100%%", (), "100%"),
        ("%c%c", (ord("o"), ord("k")), "ok"),
        ("[%3c|%-3c]", (ord("a"), ord("b")), "[  a|b  ]"),
        ("%p", (ctypes.c_void_p(0x7000_0000),), "0x70000000"),
        ("%p", (None,), "0x0"),
        ("%s", (None,), "(null)"),
        ("%#x %#X %#o %#x", (255, 255, 8, 0), "0xff 0XFF 010 0"),
        ("%o", (0o777,), "777"),
        ("%-8d|", (-5,), "-5      |"),
        ("%08x", (0xBEEF,), "0000beef"),
        ("%+d % d", (5, 5), "+5  5"),
        ("%d", (-(1 << 31),), "-2147483648"),
        ("%lld", (ctypes.c_int64(-(1 << 63)),), "-9223372036854775808"),
        ("%llu", (ctypes.c_uint64((1 << 64) - 1),), "18446744073709551615"),
        ("%zu %td %jx", (ctypes.c_size_t(1), ctypes.c_int64(-2), ctypes.c_uint64(3)), "1 -2 3"),
        ("%q %5 %", (), "%q %5 %"),
        ("%*d|", (-4, 7), "7   |"),
        ("%.3s", (b"abcdef",), "abc"),
    ],
)
def test_single_conversions(formatter: ctypes.CDLL, pattern: str, arguments: tuple[Any, ...], expected: str) -> None:
    assert formatted(formatter, pattern, *arguments) == expected


def test_long_output_arrives_whole(formatter: ctypes.CDLL) -> None:
    pieces: list[bytes] = []
    sink_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    sink = sink_type(lambda context, text, count: pieces.append(ctypes.string_at(text, count)))
    # An empty argument list: x86-64's va_list is passed as a pointer to 24 bytes, never read here.
    formatter.rift_format.restype = ctypes.c_size_t
    assert formatter.rift_format(sink, None, b"x" * 1000, ctypes.create_string_buffer(64)) == 1000
    assert b"".join(pieces) == b"x" * 1000
    assert len(pieces) > 1
    assert all(pieces)


def constants(names: list[str], tmp_path: Path) -> dict[str, int]:
    """Values of constant expressions over rift_guest.h, read from the data of an object file."""
    rows = "\n".join(f"(unsigned long long)({name})," for name in names)
    source = tmp_path / "constants.c"
    source.write_text(
        f"#include <rift_guest.h>\nint main(void) {{ return 0; }}\nunsigned long long values[] = {{\n{rows}\n}};\n"
    )
    program = build(source, tmp_path / "constants", "x86_64", folder=X86_64).path
    from elftools.elf.elffile import ELFFile

    with program.open("rb") as file:
        elf = ELFFile(file)
        symbol = elf.get_section_by_name(".symtab").get_symbol_by_name("values")[0]
        section = elf.get_section(symbol["st_shndx"])
        data = section.data()[symbol["st_value"] - section["sh_addr"] :][: symbol["st_size"]]
    return dict(zip(names, struct.unpack(f"<{len(names)}Q", data), strict=True))


def test_the_header_and_the_python_modules_have_the_same_numbers(tmp_path: Path) -> None:
    members = ["doorbell", "page_size", "tables_gva", "tables_gpa", "tables_size", "spare_gva", "spare_gpa"]
    members += ["spare_size", "counter_hz", "thread_count"]
    pairs = {
        "RIFT_DOORBELL": doorbell.DEFAULT_ADDRESS,
        "RIFT_DOORBELL_SIZE": doorbell.SIZE,
        "RIFT_DOORBELL_EXIT": doorbell.EXIT,
        "RIFT_DOORBELL_CONSOLE": doorbell.CONSOLE,
        "RIFT_DOORBELL_USER_FIRST": doorbell.USER_FIRST,
        "RIFT_DOORBELL_USER_LAST": doorbell.USER_LAST,
        "RIFT_DOORBELL_RETURN": doorbell.RETURN,
        "RIFT_DOORBELL_FAULT": doorbell.FAULT,
        "RIFT_DOORBELL_USER_CALL": doorbell.USER_CALL,
        "RIFT_READ": Permission.READ,
        "RIFT_WRITE": Permission.WRITE,
        "RIFT_EXECUTE": Permission.EXECUTE,
        "RIFT_USER": Permission.USER,
        "RIFT_INFO_MAGIC": GuestInfo.MAGIC,
        "RIFT_INFO_VERSION": GuestInfo.VERSION,
        "sizeof(struct rift_info)": GuestInfo.LAYOUT.size,
        "offsetof(struct rift_channel, written)": 64,
        "offsetof(struct rift_channel, read)": 128,
        "offsetof(struct rift_channel, bytes)": 192,
        "sizeof(struct rift_frame)": 22 * 8,
        "offsetof(struct rift_frame, vector)": 15 * 8,
    }
    # The n-th value that Python packs stands at the n-th member of C.
    info = GuestInfo(*range(1, len(members) + 1)).pack()
    for value, member in enumerate(members, 1):
        width = "I" if member == "thread_count" else "Q"
        offset = next(
            at
            for at in range(16, len(info), 4)
            if struct.unpack_from("<" + width, info, at)[0] == value and at % struct.calcsize(width) == 0
        )
        pairs[f"offsetof(struct rift_info, {member})"] = offset
    assert constants(list(pairs), tmp_path) == {name: int(value) for name, value in pairs.items()}


def test_guest_info_survives_packing_and_says_what_is_wrong() -> None:
    info = GuestInfo(doorbell=0x7000_0000, tables_gva=1 << 46, spare_size=0x4000, threads=3)
    assert GuestInfo.unpack(info.pack()) == info
    assert len(info.pack(24)) == 24
    with pytest.raises(BinaryError, match="has 10 bytes"):
        GuestInfo.unpack(bytes(10))
    with pytest.raises(BinaryError, match="not struct rift_info"):
        GuestInfo.unpack(bytes(96))


def tool_for_x86_64(name: str) -> str:
    """Path of a GNU tool: the host's own, or on another CPU the cross tool, which need not be there."""
    if platform.machine() == "x86_64":
        return require_tool(name)
    return shutil.which(f"x86_64-linux-gnu-{name}") or skip_here("the GNU tools for x86-64 need not be on another CPU")


@pytest.fixture(scope="module", params=["gcc", "clang"])
def payload(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A payload that uses all of the runtime, compiled without a warning."""
    require_tool(request.param)
    tool_for_x86_64("objdump")
    if request.param == "gcc":
        tool_for_x86_64("gcc")
    folder = tmp_path_factory.mktemp(request.param)
    source = folder / "all.c"
    source.write_text(
        """
        #include <rift_guest.h>
        RIFT_CHANNEL(log_channel, 4096);
        static struct rift_mutex mutex;
        static struct rift_barrier barrier = RIFT_BARRIER(1);
        struct rift_walk walk;
        int main(void) {
            char text[64];
            rift_set_exception_handler(NULL);
            rift_snprintf(text, sizeof text, "%d", 5);
            rift_puts(text), rift_putchar('!');
            rift_printf("%s", text);
            rift_mutex_lock(&mutex), rift_mutex_unlock(&mutex), rift_mutex_try_lock(&mutex);
            rift_barrier_wait(&barrier);
            rift_channel_write(&log_channel.channel, text, 5), rift_channel_read(&log_channel.channel, text, 5);
            rift_doorbell_write(RIFT_DOORBELL_USER_FIRST, rift_doorbell_read(RIFT_DOORBELL_USER_FIRST));
            rift_map_page(0x300000, rift_spare_page(), RIFT_READ | RIFT_WRITE), rift_unmap_page(0x300000);
            rift_flush_tlb(0), rift_flush_tlb_all();
            memmove(text, text + 1, 8);
            if (memcmp(text, text + 1, 8) || rift_walk(0, &walk) || rift_cause(6, 0))
                rift_exit(1);
            return (int)rift_user_call(RIFT_CALL_HANDLERS, 1, 2, 3, 4, 5, 6);
        }
        """
    )
    options = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
    return build(source, folder / "all", "x86_64", compiler=request.param, options=options, folder=X86_64).path


def disassembly(path: Path) -> list[tuple[int, str]]:
    command = [tool_for_x86_64("objdump"), "-d", "-w", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = re.findall(r"^ *([0-9a-f]+):\t[0-9a-f ]+\t(.*)$", text, re.M)
    return [(int(address, 16), instruction) for address, instruction in rows]


def test_the_runtime_uses_general_registers_only(payload: Path) -> None:
    code = disassembly(payload)
    assert len(code) > 1000
    assert [i for _, i in code if re.search(r"%[xyz]mm|%st\b|%mm\d", i)] == []


def test_the_vectors_are_256_entries_of_16_bytes(payload: Path) -> None:
    from elftools.elf.elffile import ELFFile

    with payload.open("rb") as file:
        elf = ELFFile(file)
        table = elf.get_section_by_name(".symtab")
        vectors = table.get_symbol_by_name("rift_vectors")[0]
        common = table.get_symbol_by_name("common")[0]["st_value"]
    assert vectors["st_size"] == 256 * 16
    assert vectors["st_value"] % 16 == 0
    code = dict(disassembly(payload))
    for vector in range(256):
        at = vectors["st_value"] + 16 * vector
        pushes_code = vector in (8, 10, 11, 12, 13, 14, 17, 21, 29, 30)
        if not pushes_code:
            assert re.fullmatch(r"push +\$0x0", code[at])
            at += 2
        assert re.fullmatch(rf"push +\$0x{vector:x}", code[at])
        at += 2 if vector < 128 else 5
        assert code[at].startswith(f"jmp    {common:x} ")


def test_the_report_of_a_fault_changes_no_register(payload: Path) -> None:
    code = disassembly(payload)
    (store,) = [index for index, (_, text) in enumerate(code) if "0x70000808" in text]
    assert code[store][1].startswith("movabs %eax,")
    assert re.fullmatch(r"add +\$0x10,%rsp", code[store + 1][1])
    assert "iretq" in code[store + 2][1]
    assert "iretq" in code[store - 1][1]


def channel_bytes(size: int, room: int) -> bytearray:
    data = bytearray(192 + room)
    data[:8] = size.to_bytes(8, "little")
    return data


@given(st.lists(st.tuples(st.binary(max_size=40), st.integers(0, 40)), max_size=30), st.integers(0, (1 << 64) - 1))
def test_a_channel_is_a_stream(steps: list[tuple[bytes, int]], start: int) -> None:
    data = channel_bytes(32, 32)
    data[64:72] = data[128:136] = start.to_bytes(8, "little")
    channel = Channel(memoryview(data))
    sent = received = b""
    for out, take in steps:
        sent += out[: channel.write(out)]
        received += channel.read(take)
        assert len(sent) - len(received) == len(channel) <= 32
    assert received + channel.read() == sent
    assert channel.read() == b""


@pytest.mark.parametrize("size", [0, 3, 64, 1 << 63])
def test_a_damaged_channel_is_refused(size: int) -> None:
    with pytest.raises(AddressError, match="no channel stands here"):
        Channel(memoryview(channel_bytes(size, 32)))


def test_forged_counters_are_an_error() -> None:
    data = channel_bytes(32, 32)
    channel = Channel(memoryview(data))
    data[64:72] = (33).to_bytes(8, "little")
    with pytest.raises(AddressError, match="damaged"):
        channel.read()
    with pytest.raises(AddressError, match="damaged"):
        channel.write(b"x")


def test_a_channel_needs_room() -> None:
    with pytest.raises(AddressError, match="no room"):
        Channel(memoryview(bytearray(192)))
