"""The links of this host, from the kernel's own words: netlink events, never polling."""
