"""Seeds by key: a random draw is a function of (seed, epoch, step or sample), never of what ran before."""

import hashlib


def key_seed(*key: int) -> int:
    """Returns a 63-bit seed for a key of integers. Seeds of near keys have nothing in common (BLAKE2b)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
