"""Core where what only Linux has is missing, as on macOS: simulated, by taking it away before core is imported."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

MISSING = """
import ctypes, multiprocessing, os, pathlib, sys, tempfile
import click, pluggy, pydantic, rich.console, zoneinfo  # not ours: what they do elsewhere is not asked here

for name in ("memfd_create", "preadv", "pwritev", "eventfd", "pipe2", "sched_getaffinity", "posix_fallocate"):
    if hasattr(os, name):
        delattr(os, name)
for module in ("prctl", "select.epoll"):
    sys.modules.pop(module, None)


def without_proc(real):
    return lambda path, *more, **options: (
        _missing(path) if str(path).startswith("/proc") else real(path, *more, **options)
    )


def _missing(path):
    raise FileNotFoundError(2, "No such file or directory", str(path))


os.stat, os.listdir, os.readlink, os.open = map(without_proc, (os.stat, os.listdir, os.readlink, os.open))
os.path.isdir = lambda path, real=os.path.isdir: not str(path).startswith("/proc") and real(path)
os.path.exists = lambda path, real=os.path.exists: not str(path).startswith("/proc") and real(path)
sys.platform = "darwin"
import platform
platform.system = lambda: "Darwin"
platform.machine = lambda: "arm64"
"""


def run(code: str) -> str:
    """Standard output of a process in which that is so."""
    program = MISSING + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_memory_is_anonymous_and_zero_and_private_in_a_forked_child() -> None:
    output = run(
        """
        import gc
        from rift_core.host_memory import HostMemory, aligned_buffer
        memory = HostMemory(0x8000, "ram")
        assert memory.address % 0x1000 == 0 and bytes(memory.view) == bytes(0x8000)
        memory.view[:4] = b"host"
        child = os.fork()
        if child == 0:
            empty = bytes(memory.view[:4]) == bytes(4)
            memory.view[:4] = b"evil"
            os._exit(0 if empty else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        print(bytes(memory.view[:4]).decode())
        view = memory.view
        del memory
        gc.collect()
        print(bytes(view[:4]).decode(), len(aligned_buffer(1)) > 0)
        """
    )
    assert output == "host\nhost True\n"


def test_too_much_memory_is_an_error() -> None:
    output = run(
        """
        from rift_core.errors import MappingError
        from rift_core.host_memory import HostMemory
        try:
            HostMemory(1 << 60, "ram")
        except MappingError as error:
            print(error)
        """
    )
    assert output.startswith("cannot get 0x1000000000000000 bytes of host memory for ram: ")


def test_files_are_read_and_mapped() -> None:
    output = run(
        """
        import tempfile
        from rift_core.file_image import read_image

        class Ffi:
            from_buffer = staticmethod(lambda kind, owner: owner)

        with tempfile.NamedTemporaryFile() as file:
            file.write(bytes(range(256)) * 9000)
            file.flush()
            for map_file in (True, False, "auto"):
                image = read_image(pathlib.Path(file.name), map_file, Ffi(), lambda path, head: head[:2] == b"\\0\\1")
                print(image.size, image.mapped, bytes(image.view[255:258]).hex())
        """
    )
    assert output == "2304000 True ff0001\n2304000 False ff0001\n2304000 True ff0001\n"


def test_the_host_is_an_apple_silicon_mac() -> None:
    output = run(
        """
        from rift_core.assembly import AUTO_BACKENDS, host_isa
        from rift_core.build import default_format
        print(host_isa(), default_format(), *AUTO_BACKENDS)
        """
    )
    assert output.split()[:2] == ["aarch64", "macho"]
    assert "hvf" in output.split()


@pytest.mark.parametrize(
    "module",
    ["assembly", "build", "build_macho", "catalog", "cli", "engine", "machine", "payload", "thread", "watchdog"],
)
def test_modules_are_imported(module: str) -> None:
    run(f"import rift_core.{module}")


def test_what_is_held_is_counted() -> None:
    output = run(
        """
        from rift_core.testing.leaks import holdings, no_leaks
        import tempfile
        with no_leaks():
            pass
        before = holdings()
        file = tempfile.TemporaryFile()
        print(before.threads, holdings().descriptors - before.descriptors, before.named)
        """
    )
    assert output == "1 1 -1\n"
