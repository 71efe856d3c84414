"""The part of aiflow.yaml that may change while the router runs, as a document of its own."""

from __future__ import annotations

from aiflow_router.config.route import Route
from aiflow_router.config.values import Section


class PolicyDocument(Section):
    """What an operator sends or stores under a key; in aiflow.yaml its keys stand beside others.

    Every key of it is a key of `Config` too: see `file.differing`.
    """

    routes: tuple[Route, ...] = ()
