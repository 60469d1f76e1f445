"""The MSOCKS proxy: one port for plain SOCKS5, MSOCKS legs, control channels and path probes.

`msocks.proxy.daemon.run` runs one from a `msocks.proxy.config.ProxyConfig`.
"""
