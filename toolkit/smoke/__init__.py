"""Smoke tests: ours, before a machine is registered."""

ORDER = "TOOLKIT_SMOKE_ORDER"
"""Environment variable of the test process with the path of its order, which holds no secret."""
