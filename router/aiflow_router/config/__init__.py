"""What aiflow.yaml may say, and reading it.

A key exists only when the router really does what it says, so nothing a person wrote down is
silently without effect.
"""
