"""Every datapath passes the same tests: one that some of them are spared would go unnoticed in a green list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def unequal(passed: Mapping[str, int], networks: Iterable[str]) -> str:
    """What to complain of, where the counts of those of `networks` that took part differ; else the empty string."""
    counts = {network: passed[network] for network in networks if network in passed}
    if len(set(counts.values())) < 2:
        return ""
    told = ", ".join(f"{network}: {count}" for network, count in counts.items())
    return f"The networks have not passed the same number of tests ({told}). Run the same tests on each."
