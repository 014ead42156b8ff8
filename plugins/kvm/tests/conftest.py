"""Fixtures of the KVM tests: a VM with one long-mode guest, and compiled helpers."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rift_core.testing.tools import only_where, require_backend, require_tool
from rift_kvm.host import host_isa

sys.path.insert(0, str(Path(__file__).parent))  # for kvm_bench: importlib mode does not do it

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvm_bench import KvmBench

HERE = Path(__file__).parent

_ANY_HOST = {"test_conformance.py", "test_kvm_probe.py"}
_AARCH64_HOSTS = {"test_kvm_aarch64.py", "test_aarch64_behaviour.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Most tests here are machine code of one ISA, and KVM runs guests of its host's own ISA."""
    isa = host_isa()
    for item in items:
        if item.path.parent != HERE or item.path.name in _ANY_HOST:
            continue
        wanted = "aarch64" if item.path.name in _AARCH64_HOSTS else "x86_64"
        if isa != wanted:
            item.add_marker(only_where(False, f"{wanted} machine code: run tests/lab/run for such a machine"))


@pytest.fixture
def make_bench() -> Iterator[Callable[..., KvmBench]]:
    """Benches that are closed after the test."""
    require_backend("kvm")
    from kvm_bench import KvmBench

    benches: list[KvmBench] = []

    def make(**options: Any) -> KvmBench:
        benches.append(KvmBench(**options))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


@pytest.fixture
def bench(make_bench: Callable[..., KvmBench]) -> KvmBench:
    return make_bench()


@pytest.fixture(scope="session")
def support(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The compiled helpers: ``support.lib``, ``support.ffi``."""
    require_backend("kvm")
    require_tool("gcc")
    from cffi import FFI

    from rift_kvm import get_include

    def text(path: Path) -> str:
        return "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#"))

    folder = tmp_path_factory.mktemp("native")
    builder = FFI()
    include = Path(get_include())
    builder.cdef(text(include / "rift_abi.h") + text(include / "kvm_binding.h") + text(HERE / "native" / "support.h"))
    builder.set_source(
        "rift_kvm_test_support",
        '#include "support.h"',
        sources=[str(HERE / "native" / "support.c")],
        include_dirs=[str(include), str(HERE / "native")],
        extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Wno-unused-parameter"],
    )
    spec = importlib.util.spec_from_file_location("rift_kvm_test_support", builder.compile(tmpdir=str(folder)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
