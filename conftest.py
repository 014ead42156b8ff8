"""For all tests of the repository."""

from hypothesis import HealthCheck, settings

# How fast a machine is, or how busy, is no property of the code; `--hypothesis-profile=ci` has its own words for it.
settings.register_profile("rift", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rift")
