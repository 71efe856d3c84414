"""Composition of product pictures: main image, overlay, contact sheet."""
