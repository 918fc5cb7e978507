"""Sources of images. Each file holds one datamodule; base.py is what they share."""
