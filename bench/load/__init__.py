"""An open-loop HTTP load generator that never retries and hides no error.

Usual clients send an idempotent request again when a kept connection turns out to be closed, so
that a roll which loses requests looks clean through them. This one counts every such request.
It is run as `python -m bench.load`, or from Python through `bench.load.process.LoadProcess`.
"""
