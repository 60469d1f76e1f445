"""Sockets and loops: the only layer that moves bytes between the kernel and the sans-IO layers."""
