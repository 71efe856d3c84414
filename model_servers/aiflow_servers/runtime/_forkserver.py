"""Imported by the fork server only: makes it outlive a SIGTERM sent to the whole process group.

A supervisor that stops a server signals every process of it. Jobs that the server is draining
would die with the fork server; it ends with the server instead.
"""

from __future__ import annotations

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
