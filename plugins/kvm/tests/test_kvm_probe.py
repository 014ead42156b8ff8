"""The probe: what it says where KVM does not work, and what it remembers."""

from __future__ import annotations

import json
import mmap
import os
import stat
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from rift_core.errors import PluginUnavailableError
from rift_core.exits import ExitKind
from rift_core.testing.tools import require_backend, skip_here
from rift_kvm import KvmConfig, cache, host_x86_64, rift_binding, rift_plugin
from rift_kvm import probe as probe_module
from rift_kvm.host import host_isa
from rift_kvm.measure import Measured
from rift_kvm.probe import probe
from rift_kvm.vm import KvmVm

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder, and no memory of earlier probes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(probe_module, "_results", {})
    return tmp_path / "rift" / "kvm.json"


def test_what_is_found_is_consistent() -> None:
    result = require_backend("kvm")
    assert result.isas == (host_isa(),)
    assert result.machine in ("kvm-pvm", "kvm-svm", "kvm-svm-emulated", "kvm-vmx", "kvm-unknown", "kvm-arm")
    assert {"parallel_vcpus", "multiple_vms", "save_restore"} <= result.capabilities
    assert {ExitKind.MMIO, ExitKind.FAIL_ENTRY, ExitKind.INTERRUPTED} <= result.exit_kinds
    assert (ExitKind.DEBUG in result.exit_kinds) == any(name.startswith("debug_") for name in result.capabilities)
    assert 36 <= result.limits.gpa_bits <= 52
    assert result.limits.page_size == mmap.PAGESIZE
    assert {0x1000, 0x20_0000} <= set(result.features.page_sizes)
    assert bool(result.features.xcr0 & 1) == (host_isa() == "x86_64")
    assert ("id_aa64mmfr0_el1" in result.features.id_registers) == (host_isa() == "aarch64")
    assert ("vector_supervisor" in result.capabilities) == bool({"sse", "asimd"} & result.features.names)


def test_measurements_are_kept_on_disk(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = require_backend("kvm")
    assert stat.S_IMODE(own_cache.parent.stat().st_mode) == 0o700
    monkeypatch.setattr(probe_module, "_results", {})
    monkeypatch.setattr(KvmVm, "create_vcpu", lambda vm, index: pytest.fail("it was measured again"))
    assert probe(KvmConfig()) == first


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"\xff\xfe",
        lambda data: b"[" * 50_000,
        lambda data: json.dumps({**data, "key": "another boot"}).encode(),
        lambda data: json.dumps({**data, "names": [1]}).encode(),
        lambda data: json.dumps({**data, "names": "sse"}).encode(),
        lambda data: json.dumps({**data, "xcr0": "3"}).encode(),
        lambda data: json.dumps({**data, "page_sizes": None}).encode(),
        lambda data: json.dumps([1, 2]).encode(),
    ],
)
def test_a_damaged_file_is_ignored(own_cache: Path, monkeypatch: pytest.MonkeyPatch, damage: Any) -> None:
    first = require_backend("kvm")
    data = json.loads(own_cache.read_text())
    own_cache.write_bytes(damage(data))
    monkeypatch.setattr(probe_module, "_results", {})
    assert probe(KvmConfig()) == first
    assert json.loads(own_cache.read_text()) == data


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert require_backend("kvm").available
    assert cache.load("anything") is None


@pytest.mark.parametrize(
    ("modules", "cpu", "kind"),
    [
        (["pvm"], {}, "kvm-pvm"),
        (["amd"], {"model name": "AMD EPYC 7763 64-Core Processor"}, "kvm-svm"),
        (["amd"], {"model name": "QEMU TCG CPU version 2.5+"}, "kvm-svm-emulated"),
        (["intel"], {"model name": "Some CPU"}, "kvm-vmx"),
        (["amd", "intel"], {"flags": "fpu svm", "model name": "QEMU TCG CPU version 2.5+"}, "kvm-svm-emulated"),
        (["amd", "intel"], {"flags": "fpu vmx"}, "kvm-vmx"),
        (["amd", "intel"], {}, "kvm-unknown"),
    ],
)
def test_kinds_of_machines(monkeypatch: pytest.MonkeyPatch, modules: list[str], cpu: dict[str, str], kind: str) -> None:
    monkeypatch.setattr(os.path, "isdir", lambda path: path.removeprefix("/sys/module/kvm_") in modules)
    monkeypatch.setattr(host_x86_64, "_first_cpu", lambda: cpu)
    capabilities = frozenset() if modules == ["pvm"] else frozenset({"software_interrupts"})
    assert host_x86_64.machine(Measured(capabilities=capabilities)) == kind


def test_the_first_cpu_is_read() -> None:
    if host_isa() != "x86_64":
        skip_here("/proc/cpuinfo names other things on this ISA")
    cpu = host_x86_64._first_cpu()
    assert "fpu" in cpu["flags"].split()
    assert cpu["processor"] == "0"


def test_no_device(tmp_path: Path) -> None:
    result = probe(KvmConfig(device=str(tmp_path / "kvm")))
    assert not result.available
    assert result.reason == f"there is no {tmp_path}/kvm"
    assert "modprobe" in result.remedy
    assert [check.status for check in result.checks] == ["fail"]


def test_something_else_than_kvm() -> None:
    result = probe(KvmConfig(device="/dev/null"))
    assert not result.available
    assert "/dev/null is not KVM: KVM_GET_API_VERSION failed" in result.reason


def test_no_permission_names_the_group(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.write_text("")
    device.chmod(0o660)
    if os.getuid() == 0:  # root may open everything: ask the part that explains
        os.chown(device, 0, 44444)
        reason, remedy = probe_module._why_not_open(str(device), 13)
        assert reason == f"no permission to open {device}"
        assert "usermod -aG 44444" in remedy
        os.chown(device, 0, 0)
    else:
        device.chmod(0)
    reason, remedy = probe_module._why_not_open(str(device), 13)
    assert "chgrp kvm" in remedy


@pytest.mark.parametrize(
    ("function", "value", "reason"),
    [
        ("rift_kvm_device_version", 13, "speaks KVM API version 13, not 12"),
        ("rift_kvm_device_extension", 0, "lacks KVM_CAP_USER_MEMORY"),
    ],
)
def test_too_old(monkeypatch: pytest.MonkeyPatch, function: str, value: int, reason: str) -> None:
    require_backend("kvm")
    from rift_kvm import errors

    real = errors.lib

    class Library:
        def __getattr__(self, name: str) -> Any:
            return (lambda *arguments: value) if name == function else getattr(real, name)

    monkeypatch.setattr(errors, "lib", Library())
    monkeypatch.setattr(probe_module, "_results", {})
    result = probe(KvmConfig())
    assert not result.available
    assert reason in result.reason
    assert result.checks[-1].status == "fail"


def test_without_measuring_the_least_is_assumed() -> None:
    require_backend("kvm")
    result = probe(KvmConfig(measure=False))
    assert result.available
    assert result.features.names == frozenset()
    assert result.capabilities == {"parallel_vcpus", "multiple_vms", "save_restore"}


def test_system_register_exits_can_be_switched_off() -> None:
    require_backend("kvm")
    assert "user_msr_exit" not in probe(KvmConfig(system_register_exits=False)).capabilities


def test_discovery_loads_no_native_code() -> None:
    code = (
        "import sys, rift_kvm; rift_kvm.rift_plugin();"
        "assert not [m for m in sys.modules if m.startswith('rift_kvm.') or '_cffi' in m], sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_what_the_module_declares() -> None:
    infos = rift_plugin()
    assert [(info.kind, info.name) for info in infos] == [
        ("backend", "kvm"),
        ("binding", "kvm/x86_64"),
        ("binding", "kvm/aarch64"),
    ]
    assert rift_binding(backend="hvf", isa="x86_64") is None
    assert rift_binding(backend="kvm", isa="riscv64") is None
    require_backend("kvm")
    isa = host_isa()
    assert isa is not None
    binding = rift_binding(backend="kvm", isa=isa)
    assert binding is not None
    assert (binding.isa, bool(binding.native)) == (isa, True)


def test_guests_of_another_isa_than_the_hosts_are_refused() -> None:
    other = {"x86_64": "aarch64", "aarch64": "x86_64"}[host_isa() or "x86_64"]
    with pytest.raises(PluginUnavailableError, match=f"binding kvm/{other}: KVM runs guests of its host's own ISA"):
        rift_binding(backend="kvm", isa=other)


def test_a_host_without_a_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="riscv64", release="", version=""))
    host_isa.cache_clear()
    try:
        result = probe(KvmConfig())
    finally:
        host_isa.cache_clear()
    assert not result.available
    assert result.reason == "this backend has bindings for x86_64 and aarch64 hosts; this is riscv64"
