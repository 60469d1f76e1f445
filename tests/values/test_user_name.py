from __future__ import annotations

import pytest

from msocks.errors import ConfigurationError
from msocks.values.user_name import check_user_name


@pytest.mark.parametrize("name", ["a", "alice", "Ålice", "a:b@c/d", "x" * 64, "é" * 32])
def test_user_names(name):
    assert check_user_name(name) == name


@pytest.mark.parametrize("name", ["", "x" * 65, "é" * 33, "a b", "a\tb", "a\0", "a\u00a0b", "\u202eevil", "\udc80"])
def test_what_is_no_user_name(name):
    with pytest.raises(ConfigurationError, match="the user name"):
        check_user_name(name)
