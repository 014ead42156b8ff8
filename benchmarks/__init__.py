"""Rift beside a bare C twin that makes the same system calls, in one run: ``python -m benchmarks [NAME ...]``."""
