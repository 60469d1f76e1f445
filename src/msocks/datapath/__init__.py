"""What carries a session's bytes at the proxy: one interface, implemented by the relay and by the kernel splice."""
