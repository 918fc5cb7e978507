"""Looks of `imgcls inspect`: pictures that are blurred, dark, bright or of an odd size beside the others.
What more than a tenth of a set has is its manner, and no fault: X-rays are dark, and drawings bright."""

import numpy as np
import pandas as pd
from torch import Tensor

MANNER = 0.1  # the share of a set above which a look is its manner
FEW = 20  # images below which a set has no others to compare with
DARK, BRIGHT = 0.2, 0.85  # all but a twentieth of a picture is darker, or brighter
ROUNDING = 20 / 12  # energy that whole numbers add to a Laplacian: 4² + 4 · 1² times the variance 1/12
LONG = 3.0  # times as long as wide
Looks = dict[str, list[dict[str, str]]]  # by name: files, each with the reason


def sharpness(image: Tensor) -> float:
    """Returns how strong the finest details of `image (C, H, W) uint8` are beside those of twice their size:
    the energy of its Laplacian against that at half the size; NaN where there are none. Blur lowers it; how
    much there is to see does not."""
    grey = image[len(image) // 2].numpy().astype(np.float32)  # green: torch takes four times as long
    even = grey[: grey.shape[0] // 2 * 2, : grey.shape[1] // 2 * 2]
    half = (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4
    fine, coarse = laplacian_energy(grey), laplacian_energy(half)
    return max(fine - ROUNDING, 0) / coarse if coarse > 0 else float("nan")


def laplacian_energy(grey: np.ndarray) -> float:
    """Returns the mean square of the Laplacian of `grey (H, W) float32`, 0 where it is too small for one."""
    if min(grey.shape) < 3:
        return 0.0
    sides = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    found = (4 * grey[1:-1, 1:-1] - sides).ravel()
    return float(found @ found) / len(found)


def odd_looks(good: pd.DataFrame) -> Looks:
    """Returns the images of a scan that look odd, the oddest first."""
    if len(good) < FEW:
        return {}
    grey = np.stack([np.frombuffer(thumb, np.uint8).reshape(-1, 64).mean(0) for thumb in good["thumb"]]) / 255
    low, high = np.quantile(grey, [0.05, 0.95], axis=1)
    sharp = np.log(good["sharpness"].to_numpy(float).clip(1e-6))
    usual = np.nanmedian(sharp) if np.isfinite(sharp).any() else 0.0
    spread = 1.4826 * np.nanmedian(abs(sharp - usual)) if np.isfinite(sharp).any() else 0.0
    blur = np.nan_to_num((usual - sharp) / max(spread, 0.25))  # in standard deviations, as a median says them
    width, height = good["width"].to_numpy(float), good["height"].to_numpy(float)
    size, long = np.log(width * height) / 2, np.maximum(width / height, height / width)
    middle, low_size, high_size = np.quantile(size, [0.5, 0.25, 0.75])
    far = abs(size - middle) / max(np.log(4), 3 * (high_size - low_size))
    pixels = [f"{w}×{h} pixels" for w, h in good[["width", "height"]].to_numpy()]
    bright = [f"mean brightness {mean:.2f}" for mean in grey.mean(1)]
    details = [f"sharpness {np.exp(one):.2f}, the median is {np.exp(usual):.2f}" for one in sharp]
    blur[(high < DARK) | (low > BRIGHT)] = 0  # little can be seen in these
    kinds = {
        "blurred": (blur / 3.5, details),
        "dark": (DARK / np.maximum(high, 1e-3), bright),
        "bright": (low / BRIGHT, bright),
        "of an odd size": (np.maximum(far, long / LONG), pixels),
    }
    looks = {}
    for name, (oddity, reasons) in kinds.items():
        odd = np.flatnonzero(oddity > 1)
        odd = odd[np.argsort(-oddity[odd], kind="stable")]
        if 0 < len(odd) <= MANNER * len(good):
            looks[name] = [{"file": good["file"].iloc[i], "reason": reasons[i]} for i in odd.tolist()]
    return looks
