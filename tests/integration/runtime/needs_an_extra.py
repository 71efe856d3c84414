"""A server whose library is not installed."""

from __future__ import annotations

import no_such_library  # type: ignore[import-not-found]

SERVER = no_such_library.SERVER
