"""Secrets: who may know them, where they are kept, how they are made."""
