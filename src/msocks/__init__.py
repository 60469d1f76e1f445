"""MSOCKS: TCP connections that outlive the network they were opened on."""

__version__ = "0.1.0.dev0"
