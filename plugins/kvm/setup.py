import platform
import sys

from setuptools import setup

NATIVE = sys.platform == "linux" and platform.machine() == "x86_64"  # elsewhere the probe says why there is none

setup(
    cffi_modules=["src/rift_kvm/_native_build.py:ffibuilder"] if NATIVE else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if NATIVE else {},
)
