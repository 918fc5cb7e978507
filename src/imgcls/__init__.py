"""An image-classification research template."""

__version__ = "0.1.0"
