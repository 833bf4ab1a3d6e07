"""Measurements of the toolkit: how fast it is, and what its promises are worth under traffic."""
