"""Triton on this machine: installed from its wheel, kept alive, its models registered."""
