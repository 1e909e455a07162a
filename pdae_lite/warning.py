"""The category of warnings."""


class PDAEWarning(UserWarning):
    """The one category of this library's warnings."""
