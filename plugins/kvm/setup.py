import sysconfig

from setuptools import setup

# The platform that is built for: elsewhere the probe says why there is no native half.
NATIVE = sysconfig.get_platform() in ("linux-x86_64", "linux-aarch64")

setup(
    cffi_modules=["src/rift_kvm/_native_build.py:ffibuilder"] if NATIVE else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if NATIVE else {},
)
