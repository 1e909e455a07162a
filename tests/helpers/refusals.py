"""What a refusal must be: one line that says what is wrong."""
import pytest


def refuses(message, function, *args, **kwargs):
    """The ValueError that a call raises; its message matches, in one line."""
    with pytest.raises(ValueError, match=message) as e:
        function(*args, **kwargs)
    assert "\n" not in str(e.value)
    return e.value
