"""The proxy's state directory: its key, its users. Opened by the running proxy and by the operator's commands alike.

`msocks.store.administration` is what the operator's commands call; the proxy uses `StateDirectory`, `ProxyIdentity` and
`UserStore`.
"""
