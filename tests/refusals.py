"""For tests of input that is refused."""

import pytest

from budgetopt.errors import InputError


def refused(call, *words, error=InputError):
    """The call raises it, in one line that holds the words; → that line."""
    with pytest.raises(error) as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 500
    for word in words:
        assert word in message
    return message
