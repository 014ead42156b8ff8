"""Fixtures of the HVF tests: the stand-ins, and the backend over one of them."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rift_core.testing.tools import require_tool, session, skip_here

sys.path.insert(0, str(Path(__file__).parent))  # for stand_in_build: importlib mode does not do it

import stand_in_build
from vmx_script import Script

import rift_hvf

if TYPE_CHECKING:
    from collections.abc import Iterator


class StandIn:
    """A stand-in that the backend has opened, or will open."""

    def __init__(self, path: Path, isa: str) -> None:
        self.path, self.isa = path, isa
        self._library = ctypes.CDLL(str(path))

    def control(self, words: str) -> None:
        """See stand_in/stand_in.h."""
        self._library.rift_stand_in_control(words.encode())

    def function(self, name: str) -> Any:
        """One of the framework's functions, to call from a test."""
        return self._library[name]

    def calls(self, function: str) -> int:
        """How often it was called."""
        return int(self._library.rift_stand_in_calls(function.encode()))

    @property
    def violations(self) -> int:
        """What the real framework would not have forgiven."""
        return int(self._library.rift_stand_in_violations())


@pytest.fixture(scope="session")
def stand_in_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where stand-ins are built."""
    if sys.platform != "linux":
        skip_here("the stand-ins for Hypervisor.framework are for Linux")
    require_tool("gcc")
    return tmp_path_factory.mktemp("stand_in")


@pytest.fixture(scope="session")
def x86_64_stand_in(stand_in_folder: Path) -> StandIn:
    """The framework of an Intel Mac, over /dev/kvm."""
    if platform.machine() != "x86_64":
        skip_here("the x86-64 stand-in for Hypervisor.framework needs an x86-64 CPU")
    if not os.access("/dev/kvm", os.W_OK):
        if "kvm" in session().required:
            pytest.fail("--rift-require=kvm: /dev/kvm cannot be used, which the x86-64 stand-in needs", pytrace=False)
        session().skip("the x86-64 stand-in for Hypervisor.framework needs /dev/kvm")
    return StandIn(stand_in_build.build(stand_in_folder, "x86_64", stand_in_build.X86_64), "x86_64")


@pytest.fixture(scope="session")
def aarch64_stand_in(stand_in_folder: Path) -> StandIn:
    """The framework of a Mac with Apple silicon, over the Unicorn engine."""
    package = require_package("unicorn")
    flags = stand_in_build.unicorn_flags(package)
    return StandIn(stand_in_build.build(stand_in_folder, "arm64", stand_in_build.ARM64, flags), "aarch64")


@pytest.fixture(scope="session")
def other_x86_64(stand_in_folder: Path) -> Path:
    """A framework of an Intel Mac that has nothing in common with the first stand-in but the facts."""
    flags = stand_in_build.unicorn_flags(require_package("unicorn"))
    return stand_in_build.build(stand_in_folder, "other-x86_64", stand_in_build.OTHER_X86_64, flags)


@pytest.fixture(scope="session")
def poor_x86_64(stand_in_folder: Path) -> Path:
    """The same, with a CPU that has no preemption timer and whose exits do not save EFER."""
    flags = ("-DPOOR_CPU=1", *stand_in_build.unicorn_flags(require_package("unicorn")))
    return stand_in_build.build(stand_in_folder, "poor-x86_64", stand_in_build.OTHER_X86_64, flags)


@pytest.fixture(scope="session")
def other_arm64(stand_in_folder: Path) -> Path:
    """The same of a Mac with Apple silicon."""
    flags = stand_in_build.unicorn_flags(require_package("unicorn"))
    return stand_in_build.build(stand_in_folder, "other-arm64", stand_in_build.OTHER_ARM64, flags)


def require_package(name: str) -> Path:
    """The folder of an installed Python package; the test is skipped, or fails, where it is missing."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        sentence, remedy = f"the Python package {name} is missing", f"pip install {name}"
        if session().required:
            pytest.fail(f"--rift-require: {sentence}; {remedy}", pytrace=False)
        session().skip(sentence, remedy)
    return Path(spec.origin).parent


def use(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A stand-in as the framework that the backend opens by default; it must find no fault with the backend."""
    monkeypatch.setenv("RIFT_HVF_FRAMEWORK", str(stand_in.path))
    stand_in.control("reset")
    yield stand_in
    assert stand_in.violations == 0
    stand_in.control("reset")


@pytest.fixture
def x86_64(x86_64_stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The stand-in of an Intel Mac, in use."""
    yield from use(x86_64_stand_in, monkeypatch)


@pytest.fixture
def aarch64(aarch64_stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The stand-in of a Mac with Apple silicon, in use."""
    yield from use(aarch64_stand_in, monkeypatch)


@pytest.fixture(params=("x86_64", "aarch64"))
def stand_in(request: pytest.FixtureRequest) -> StandIn:
    """Both, one after the other."""
    found: StandIn = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=("x86_64", "aarch64"))
def old_stand_in(request: pytest.FixtureRequest, stand_in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The framework of macOS 11, and on x86-64 of 10.14, without what came later."""
    request.getfixturevalue(f"{request.param}_stand_in")  # skips where it cannot be had
    sources, flags = stand_in_build.X86_64, ("-DOLD_MACOS",)
    if request.param == "aarch64":
        sources = stand_in_build.ARM64
        flags = (*flags, *stand_in_build.unicorn_flags(require_package("unicorn")))
    path = stand_in_build.build(stand_in_folder, f"old-{request.param}", sources, flags)
    monkeypatch.setenv("RIFT_HVF_FRAMEWORK", str(path))
    return StandIn(path, request.param)


@pytest.fixture(scope="session")
def scripted(stand_in_folder: Path) -> Path:
    """The framework of an Intel Mac whose exits a test writes down."""
    if platform.machine() != "x86_64":
        skip_here("CPUID, which the answers are made from, is an instruction of x86-64")
    return stand_in_build.build(stand_in_folder, "scripted", ("stand_in.c", "scripted.c"))


@pytest.fixture
def script(scripted: Path) -> Iterator[Script]:
    """A machine over it."""
    made = Script(
        scripted,
        frozenset({"user_msr_exit", "inject_exception", "inject_interrupt", "debug_single_step", "debug_sw_breakpoint",
                   "debug_hw_breakpoint", "debug_watchpoint"}),
    )  # fmt: skip
    yield made
    made.vm.close()


KEPT = {"x86_64": ["hv_vcpu_invalidate_tlb"], "aarch64": ["sys_icache_invalidate"]}
"""The engines of the stand-ins remember what these make the CPU forget."""


def required() -> list[str]:
    """The functions that the backend says it cannot do without."""
    source = Path(rift_hvf.__file__).with_name("native") / "hvf_framework.c"
    return re.findall(r'"(hv_\w+)", \w+, 1\)', source.read_text())


@pytest.fixture(params=("x86_64", "aarch64"))
def bare(request: pytest.FixtureRequest, stand_in_folder: Path) -> Iterator[StandIn]:
    """A stand-in that exports nothing else."""
    request.getfixturevalue(f"{request.param}_stand_in")  # skips where it cannot be had
    exported = "; ".join([*required(), *KEPT[request.param], "rift_*"])
    script = stand_in_folder / f"bare-{request.param}.map"
    script.write_text(f"{{ global: {exported}; local: *; }};")
    sources, flags = stand_in_build.X86_64, (f"-Wl,--version-script={script}",)
    if request.param == "aarch64":
        sources, flags = stand_in_build.ARM64, (*flags, *stand_in_build.unicorn_flags(require_package("unicorn")))
    stand_in = StandIn(stand_in_build.build(stand_in_folder, f"bare-{request.param}", sources, flags), request.param)
    stand_in.control("reset")
    yield stand_in
    assert stand_in.violations == 0
