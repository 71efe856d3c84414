class WeightsError(Exception):
    """The weights cannot be had; the message is one line that says what to do."""
