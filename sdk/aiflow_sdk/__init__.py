"""Python SDK of AIFlow: clients, typed errors, the testing kit and the `aiflow` command."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiflow_sdk._catalog import (
        Endpoint,
    )
    from aiflow_sdk._plan import (
        Priority,
        Reply,
    )
    from aiflow_sdk._settings import (
        TLS,
        Retry,
    )
    from aiflow_sdk.async_client import (
        AsyncClient,
    )
    from aiflow_sdk.client import (
        Client,
    )
    from aiflow_sdk.errors import (
        AiflowError,
        AuthenticationError,
        BackendError,
        BadInputError,
        CallCancelledError,
        DeadlineExceededError,
        DeadlineUnreachableError,
        DrainingError,
        MessageTooLargeError,
        ModelNotFoundError,
        NoEndpointError,
        NotFoundError,
        OverloadedError,
        PermissionDeniedError,
        RateLimitedError,
        RefusedError,
        ServiceNotFoundError,
        StreamBrokenError,
        UnavailableError,
    )
    from aiflow_sdk.tensors import (
        InferResult,
    )

__all__ = [
    "TLS",
    "AiflowError",
    "AsyncClient",
    "AuthenticationError",
    "BackendError",
    "BadInputError",
    "CallCancelledError",
    "Client",
    "DeadlineExceededError",
    "DeadlineUnreachableError",
    "DrainingError",
    "Endpoint",
    "InferResult",
    "MessageTooLargeError",
    "ModelNotFoundError",
    "NoEndpointError",
    "NotFoundError",
    "OverloadedError",
    "PermissionDeniedError",
    "Priority",
    "RateLimitedError",
    "RefusedError",
    "Reply",
    "Retry",
    "ServiceNotFoundError",
    "StreamBrokenError",
    "UnavailableError",
]

# Imported when first used: a server that only raises errors needs no client, and
# `aiflow --help` no tritonclient (0.4 s).
_MODULES = {
    "Endpoint": "aiflow_sdk._catalog",
    "Priority": "aiflow_sdk._plan",
    "Reply": "aiflow_sdk._plan",
    "TLS": "aiflow_sdk._settings",
    "Retry": "aiflow_sdk._settings",
    "AsyncClient": "aiflow_sdk.async_client",
    "Client": "aiflow_sdk.client",
    "InferResult": "aiflow_sdk.tensors",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'aiflow_sdk' has no attribute {name!r}")
    module = importlib.import_module(_MODULES.get(name, "aiflow_sdk.errors"))
    value: object = getattr(module, name)
    globals()[name] = value
    return value
