"""Whether KVM works here, and how well.

A look that costs microseconds (device, API version, capabilities) decides whether it is available; what
guests can do is measured once a boot (:mod:`rift_kvm.measure`) and remembered (:mod:`rift_kvm.cache`).
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from rift_core.backend import Check, CpuFeatures, Limits, ProbeResult
from rift_core.errors import HypervisorError
from rift_kvm.host import host_isa, this_host

if TYPE_CHECKING:
    from rift_kvm import KvmConfig
    from rift_kvm.host import Host
    from rift_kvm.measure import Measured

API_VERSION = 12
"""KVM_GET_API_VERSION of every kernel since 2.6.22 (Documentation/virt/kvm/api.rst, 4.1)."""

_NR_VCPUS, _NR_MEMSLOTS, _MAX_VCPUS = 9, 10, 66
"""Capability numbers: include/uapi/linux/kvm.h."""

_ALWAYS = frozenset({"parallel_vcpus", "multiple_vms", "save_restore"})

_SMALLEST_GPA_BITS = 36
"""Of the VM for experiments: every CPU with virtualization has as many."""

_results: dict[tuple[str, bool, bool], ProbeResult] = {}
_lock = threading.Lock()


def probe(config: KvmConfig) -> ProbeResult:
    """What this KVM can do; remembered in the process once it is available. Never raises."""
    key = (config.device, config.measure, config.system_register_exits)
    known = _results.get(key)
    if known is not None:
        return known
    with _lock:
        result = _results.get(key)
        if result is None:
            result = _probe(config)
            if result.available:
                _results[key] = result
        return result


def _probe(config: KvmConfig) -> ProbeResult:
    result = _look(config.device)
    if not result.available:
        return result
    try:
        return _measured(config, result)
    except HypervisorError as failure:
        checks = (*result.checks, Check("virtual machine", "fail", str(failure)))
        return _unavailable(f"KVM is there, but a virtual machine cannot be made: {failure}", "", checks)


def _unavailable(reason: str, remedy: str, checks: tuple[Check, ...]) -> ProbeResult:
    return ProbeResult(False, reason, remedy, checks=checks)


def _failed(checks: list[Check], name: str, reason: str, remedy: str) -> ProbeResult:
    return _unavailable(reason, remedy, (*checks, Check(name, "fail", reason, remedy)))


def _look(device: str) -> ProbeResult:
    """Everything short of making a VM."""
    checks: list[Check] = []
    if sys.platform != "linux":
        return _failed(checks, "platform", "KVM is a part of Linux", "use another backend here")
    isa = host_isa()
    if isa is None:
        reason = f"this backend has bindings for x86_64 and aarch64 hosts; this is {os.uname().machine}"
        return _failed(checks, "platform", reason, "use another backend here")
    try:
        from rift_kvm.errors import check, lib, new_error
    except ImportError as missing_module:
        reason = f"rift_kvm._native cannot be loaded: {missing_module}"
        return _failed(checks, "native module", reason, "reinstall riftvm-kvm")
    host = this_host()
    error = new_error()
    descriptor = lib.rift_kvm_device_open(device.encode(), error)
    if descriptor < 0:
        reason, remedy = _why_not_open(device, int(error.code))
        return _failed(checks, "device", reason, remedy)
    try:
        checks.append(Check("device", "pass", f"{device} can be opened"))
        version = check(lib.rift_kvm_device_version(descriptor, error), error)
        if version != API_VERSION:
            reason = f"{device} speaks KVM API version {version}, not {API_VERSION}"
            return _failed(checks, "API version", reason, "use a kernel of 4.13 or later")
        checks.append(Check("API version", "pass", str(version)))
        missing = [
            name
            for name, number in host.required.items()
            if check(lib.rift_kvm_device_extension(descriptor, number, error), error) <= 0
        ]
        if missing:
            return _failed(
                checks, "capabilities", f"this kernel's KVM lacks {', '.join(missing)}", "use a kernel of 4.13 or later"
            )
        checks.append(Check("capabilities", "pass", ", ".join(host.required)))
        slots = check(lib.rift_kvm_device_extension(descriptor, _NR_MEMSLOTS, error), error) or 32
        vcpus = check(lib.rift_kvm_device_extension(descriptor, _MAX_VCPUS, error), error) or check(
            lib.rift_kvm_device_extension(descriptor, _NR_VCPUS, error), error
        )
    except HypervisorError as failure:
        return _failed(checks, "device", f"{device} is not KVM: {failure}", "set device in [backend]")
    finally:
        lib.rift_kvm_device_close(descriptor)
    return ProbeResult(
        True,
        "KVM is usable",
        isas=(isa,),
        limits=Limits(mmap.PAGESIZE, max_slots=slots - 1, max_vcpus=vcpus or 4, max_vms=500, reserved=host.reserved),
        checks=tuple(checks),
    )


def _why_not_open(device: str, code: int) -> tuple[str, str]:
    """Reason and remedy of an open that failed with ``code``."""
    if code in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        reason = f"there is no {device}" if code == errno.ENOENT else f"{device} leads to no driver"
        return reason, (
            "load the KVM module (modprobe kvm_intel or kvm_amd), enable virtualization in the firmware, or give the "
            f"container the device (--device {device})"
        )
    if code in (errno.EACCES, errno.EPERM):
        return f"no permission to open {device}", _group_remedy(device)
    return f"{device} cannot be opened: {os.strerror(code)}", ""


def _group_remedy(device: str) -> str:
    import grp
    import pwd

    try:
        status = os.stat(device)
    except OSError:
        return ""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    if status.st_mode & 0o060 == 0o060 and status.st_gid != 0:
        if status.st_gid in os.getgroups():
            return f"{user} is in group {group} already: a security policy or the container forbids it"
        return f"join its group: sudo usermod -aG {group} {user}, then log in again"
    return f"let a group use it: sudo chgrp kvm {device} && sudo chmod 660 {device}, and sudo usermod -aG kvm {user}"


def _measured(config: KvmConfig, result: ProbeResult) -> ProbeResult:
    """``result`` with what the experiments found."""
    host = this_host()
    measured = _experiments(config, host)
    if measured is None:
        reason = "KVM is there, but the smallest guest does not run"
        return _unavailable(reason, "", (*result.checks, Check("guest code", "fail", reason)))
    machine = host.machine(measured)
    capabilities = measured.capabilities | _ALWAYS
    if not config.system_register_exits:
        capabilities -= {"user_msr_exit"}
    optional = {kind for kind, names in host.optional_kinds.items() if capabilities.intersection(names)}
    found = Check("guest code", "pass", f"runs in {host.level}")
    if not config.measure:
        found = Check("guest code", "warn", "not tried", "set measure = true in [backend]")
    remedy = host.remedies.get(machine, "")
    return replace(
        result,
        limits=replace(result.limits, gpa_bits=host.gpa_bits(config, machine)),
        features=CpuFeatures(measured.page_sizes, measured.names, measured.xcr0, measured.id_registers),
        capabilities=capabilities,
        exit_kinds=host.exit_kinds | optional,
        machine=machine,
        checks=(
            *result.checks,
            found,
            Check("module", "warn" if remedy else "pass", machine, remedy),
            Check(f"CPU in {host.level}", "pass", ", ".join(sorted(measured.names)) or "only the base set"),
            Check("features", "pass", ", ".join(sorted(capabilities))),
        ),
    )


def _experiments(config: KvmConfig, host: Host) -> Measured | None:
    from rift_kvm import cache
    from rift_kvm.vm import KvmVm, host_binding

    if not config.measure:
        return host.assumed
    key = cache.key(config.device)
    measured = cache.load(key)
    if measured is None:
        debug = ("debug_single_step", "debug_hw_breakpoint", "debug_sw_breakpoint", "debug_watchpoint")
        everything = frozenset({"user_msr_exit", "inject_exception", "tsc_offset", *debug})
        for capabilities in (everything, everything - {"user_msr_exit"}):
            try:
                vm = KvmVm(
                    config,
                    host_binding(),
                    gpa_bits=_SMALLEST_GPA_BITS,
                    capabilities=capabilities,
                    exit_kinds=host.exit_kinds,
                )
                break
            except HypervisorError as error:
                if error.operation != "KVM_ENABLE_CAP":
                    raise
        try:
            measured = host.measure(vm)
        finally:
            vm.close()
        if measured is not None:
            cache.store(key, measured)
    return measured
