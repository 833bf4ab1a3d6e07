"""The immutable server toolkit: bake machine images, smoke-test them, roll them into pools."""

__version__ = "0.1.0"
