"""What plugin authors test with: conformance suites, a fake backend, fault injection, leak checks.

Nothing is imported here, so that the fake backend, an ordinary plugin, costs no test framework.
"""
