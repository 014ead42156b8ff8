import sys

from setuptools import setup

NATIVE = sys.platform in ("darwin", "linux")  # on Linux for the tests, over a stand-in for the framework

setup(
    cffi_modules=["src/rift_hvf/_native_build.py:ffibuilder"] if NATIVE else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if NATIVE else {},
)
