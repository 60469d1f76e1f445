"""Labs with a proxy that splices, on links without delay or limit: what these tests look at is not the path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.end_to_end.conftest import Field

from msocks_lab import Lab, LabConfig, LinkConfig

FAST = (LinkConfig("wifi", fat=True), LinkConfig("lte", fat=True))


@contextmanager
def spliced_field(*links: LinkConfig) -> Iterator[Field]:
    """A lab whose proxy splices, and serves plain SOCKS5 clients too; and an agent that prefers the first link."""
    with Lab(LabConfig(links)) as lab:
        field = Field(lab, "splice")
        field.start_proxy("--open")
        field.start_agent(*(link.name for link in links))
        yield field


@pytest.fixture(scope="module")
def spliced() -> Iterator[Field]:
    """One for all tests of a module; they leave it as it is."""
    with spliced_field(*FAST) as field:
        yield field


@pytest.fixture
def own_spliced() -> Iterator[Field]:
    """One for the test alone."""
    with spliced_field(*FAST) as field:
        yield field
