"""Seeds by key: a random draw is a function of (seed, epoch, step or sample), never of what ran before."""

import hashlib
import random

import numpy as np


def key_seed(*key: int) -> int:
    """Returns a 63-bit seed for a key of integers. Seeds of near keys have nothing in common (BLAKE2b)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_others(seed: int) -> None:
    """Seeds the generators of Python and numpy, from which code that is not ours may draw; takes 9 µs."""
    random.seed(key_seed(seed, 1))
    np.random.seed(key_seed(seed, 2) % 2**32)  # noqa: NPY002  # there is no other one that all share
