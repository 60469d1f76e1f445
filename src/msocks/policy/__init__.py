"""Which link carries which flow: rules, links and flows in, a decision with its reasons out. No input or output.

`docs/reference/configuration.md` is the manual of the rules.
"""
