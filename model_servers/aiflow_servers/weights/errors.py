from aiflow_sdk.errors import RefusedError


class WeightsError(RefusedError):
    """The weights cannot be had; the message is one line that says what to do."""

    default_reason = "WEIGHTS_UNAVAILABLE"
