"""Data sources: one file for each, on the base class in module.py; loading/ reads files and draws samples."""
