from setuptools import setup

setup(
    cffi_modules=["src/rift_gdb/_native_build.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
