"""What the tests of aiflow.yaml share."""

import pytest

from aiflow_router.config.file import ConfigError, parse

DIGEST = "a" * 64


def refusal(text: str) -> str:
    """What is said of a file `f` with this text, which is not taken."""
    with pytest.raises(ConfigError) as caught:
        parse(text, file="f")
    return str(caught.value)
