"""Geometry of products seen in photos: 3D box, dimension lines, SVG."""
