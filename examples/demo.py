"""Runs both product-image flows on real photos through a mesh of its own and shows the pictures.

    make demo          or: .venv/bin/python examples/demo.py --help

Starts the router, Triton and the CPU servers on free ports of this machine, so it runs beside
anything else, and stops what it started.
"""

from __future__ import annotations
