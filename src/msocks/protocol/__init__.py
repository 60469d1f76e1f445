"""The wire protocol, sans-IO: bytes in, events out; time and random numbers are arguments.

`docs/reference/protocol.md` describes every byte. Import from the modules; this package itself imports nothing, so that
a program which needs one of them pays for one.
"""
