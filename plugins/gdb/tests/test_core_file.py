"""Core files: what ``rift run --core`` leaves, and what real GDBs say of it."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from debuggers import gdb_for
from elftools.elf.elffile import ELFFile

from rift_core import open_machine
from rift_core.cli import status_of
from rift_core.errors import RiftError
from rift_core.host_memory import touched
from rift_gdb.elf_core import CoreError, CoreThread, write_core

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rift_core.machine import Machine

SECONDS = 60.0


@pytest.fixture
def machine(kind: tuple[str, str], built: Callable[..., Path]) -> Callable[..., Machine]:
    """``machine(path, entry, ...)``: one that leaves a core file at ``path``."""

    def make(path: Path, *entries: str, privilege: str = "supervisor", **sections: Any) -> Machine:
        backend, isa = kind
        return open_machine(
            {
                "binary": {"path": str(built(isa))},
                "backend": backend,
                "threads": [{"name": entry, "entry": entry, "privilege": privilege} for entry in entries],
                "extensions": [{"name": "core-file", "path": str(path)}],
                **sections,
            }
        )

    return make


def look(gdb: str, payload: Path, core: Path, commands: str) -> str:
    """What a GDB prints."""
    words = [word for line in commands.splitlines() for word in ("-ex", line)]
    answer = subprocess.run(
        [gdb, "-q", "-nx", "-batch", "-ex", "set width 0", *words, str(payload), str(core)],
        capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return answer.stdout + answer.stderr


@pytest.mark.parametrize("privilege", ["supervisor", "user"])
def test_a_fault(
    kind: tuple[str, str], machine: Callable[..., Machine], gdb: str, tmp_path: Path, privilege: str
) -> None:
    core = tmp_path / "core"
    with machine(core, "crash", privilege=privilege) as guest:
        payload = guest.binary.path
        assert payload is not None
        with pytest.raises(RiftError, match="not mapped"):
            guest.run()
        assert core.exists(), "it is written when it happens"
    assert core.stat().st_mode & 0o777 == 0o600
    text = look(
        gdb_for(kind[1], gdb),
        payload,
        core,
        "bt\ninfo threads\np counter\np/x $pc\np constant\ninfo registers\nx/i $pc\n",
    )
    assert "SIGSEGV, Segmentation fault" in text
    assert re.search(r"^#0 .*\bpoke \(where=\S*0xdead0000, value=\S*5\)", text, re.MULTILINE)
    assert re.search(r"^#1 .*\bcrash \(\)", text, re.MULTILINE)
    assert "$1 = 1" in text
    assert "$3 = 1234" in text
    assert "may not match" not in text


def test_the_end_of_all_threads(
    kind: tuple[str, str], machine: Callable[..., Machine], gdb: str, tmp_path: Path
) -> None:
    core = tmp_path / "core"
    with machine(core, "main", "stores") as guest:
        payload = guest.binary.path
        assert payload is not None
        assert guest.run().status == 6
        assert not core.exists()
    text = look(gdb_for(kind[1], gdb), payload, core, "info threads\np corner\np watched\n")
    assert text.count("LWP") >= 2
    assert "{x = 6, y = 4}" in text
    assert "$2 = 3" in text


def test_other_threads_are_in_it(
    kind: tuple[str, str], machine: Callable[..., Machine], gdb: str, tmp_path: Path
) -> None:
    core = tmp_path / "core"
    with machine(core, "crash", "spin") as guest:
        payload = guest.binary.path
        assert payload is not None
        crash, spin = guest.threads
        spin.start()
        crash.start()
        with pytest.raises(RiftError):
            crash.join(20)
        assert not spin.wait_ended(0.1), "it runs on"
        spin.kill()
        spin.join(20)
    text = look(gdb_for(kind[1], gdb), payload, core, "thread apply all bt\nthread 2\np $pc\n")
    assert "poke" in text
    assert re.search(r"^#\d .*\bspin \(\)", text, re.MULTILINE)


def test_the_option_of_rift_run(
    kind: tuple[str, str], built: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    backend, isa = kind
    core = tmp_path / "core"
    line = ["run", "--backend", backend, "--isa", isa, "--core", str(core), "--set", 'threads.main.entry="crash"']
    assert status_of([*line, str(built(isa))]) == 125
    assert core.read_bytes()[:4] == b"\x7fELF"
    assert "not mapped" in capfd.readouterr().err


def test_a_folder_that_is_not_there(machine: Callable[..., Machine], tmp_path: Path) -> None:
    with pytest.raises(RiftError, match="folder of the core file does not exist"):
        machine(tmp_path / "nowhere" / "core", "main")
    with pytest.raises(RiftError, match="is a folder: name the core file"):
        machine(tmp_path, "main")


def test_a_file_that_cannot_be_written(
    machine: Callable[..., Machine], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is told, and the guest ends as it would have."""
    with machine(tmp_path / "core", "main") as guest:
        (tmp_path / "core").mkdir()
        assert guest.run().status == 6
    assert "no core file" in capfd.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["core"]


def test_its_form(kind: tuple[str, str], machine: Callable[..., Machine], tmp_path: Path) -> None:
    core = tmp_path / "core"
    with machine(core, "main") as guest:
        guest.run()
        debug = guest.isa.debug
        assert debug is not None
        counter = guest.symbol("counter").address
        assert guest.symbol("counter").view().cast("i")[0] == 13
    data = core.read_bytes()
    kind_of_file, machine_number = struct.unpack_from("<HH", data, 16)
    assert (kind_of_file, machine_number) == (4, debug.core_machine)
    count = struct.unpack_from("<H", data, 56)[0]
    headers = [struct.unpack_from("<IIQQQQQQ", data, 64 + 56 * at) for at in range(count)]
    assert [header[0] for header in headers] == [4] + [1] * (count - 1)
    for _, flags, offset, virtual, _, in_file, in_memory, _ in headers[1:]:
        assert in_file == in_memory
        assert offset % 0x1000 == virtual % 0x1000 == 0
        assert offset + in_file <= len(data)
        if virtual <= counter < virtual + in_memory:
            at = offset + counter - virtual
            assert data[at : at + 4] == (13).to_bytes(4, "little")
            assert flags == 6
            break
    else:
        raise AssertionError("the variable is in no segment")
    assert core.stat().st_blocks * 512 < len(data), "pages of zeros are holes"


def test_nothing_to_write(kind: tuple[str, str], machine: Callable[..., Machine], tmp_path: Path) -> None:
    with machine(tmp_path / "core", "main") as guest, (tmp_path / "other").open("wb") as file:
        with pytest.raises(CoreError, match="no thread"):
            write_core(file, guest.engine, [], [])
        write_core(file, guest.engine, [CoreThread(1, {})], [])
    assert (tmp_path / "other").stat().st_size > 0


def test_memory_that_was_never_touched_takes_none(
    kind: tuple[str, str], machine: Callable[..., Machine], tmp_path: Path
) -> None:
    """Neither in the file nor in this process: reading it would make its pages."""
    core, place, size = tmp_path / "core", 0x4_0000_0000, 0x1000_0000
    with machine(core, "main", memory={"size": size + 0x100_0000}) as guest:
        guest.map(place, size, "rw", largest_page=guest.isa.page_sizes[1])
        guest.write_virtual(place + size // 2, b"here")
        region = next(region for region in guest.memory.regions if region.size > size)
        assert guest.run().status == 6
    in_memory = sum(len(part) for part in touched(region.host))
    assert in_memory < size // 8
    assert core.stat().st_size > size
    assert core.stat().st_blocks * 512 < size // 8
    with core.open("rb") as file:
        elf = ELFFile(file)
        segment = next(s for s in elf.iter_segments() if s["p_vaddr"] == place)
        file.seek(segment["p_offset"] + size // 2)
        assert file.read(4) == b"here"
