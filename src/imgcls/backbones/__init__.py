"""Networks. Each file holds one architecture of our own, or the door to a library's.

A backbone is a function of its config, `num_classes`, `in_channels` and `image_size` that returns a module
from images `(N, in_channels, H, W)` to logits `(N, num_classes)`. The module's `head_names` say which of
its modules are the classifying layers, the main one first. A network with auxiliary heads returns a tuple
in training: logits, then those of each auxiliary head, whose losses count `auxiliary_weight` each.
"""
