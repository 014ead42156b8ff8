import os

from setuptools import setup

NATIVE = os.name == "posix"  # elsewhere the probe says why there is none

setup(
    cffi_modules=["src/rift_emulator/_native_build.py:ffibuilder"] if NATIVE else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if NATIVE else {},
)
