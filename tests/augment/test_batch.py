"""Augmentation: what is drawn, that it differs for each sample, and that shares are what the pixels say."""

import random
from typing import Any

import pytest
import torch
from support.noise import CLASSES, as_bytes, noise, spec
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from imgcls.augment.batch import BatchAugment, BatchEntry, patches, rectangles
from imgcls.augment.settings import Augment, Mix
from imgcls.errors import UserError
from imgcls.seeding import seed_others


def batch_augment(image_size: int = 16, mirror: bool = True, **settings: Any) -> BatchAugment:
    return BatchAugment(Augment(**settings), spec(image_size, mirror=mirror))


def placed(image: Tensor, padding: int) -> dict[tuple[int, int, bool], bytes]:
    """Returns each crop of the padded image, mirrored or not, by its place."""
    size = image.shape[-1]
    padded = F.pad(image, (padding,) * 4)
    out = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[:, top : top + size, left : left + size]
            out[top, left, False], out[top, left, True] = as_bytes(crop), as_bytes(crop.flip(2))
    return out


def draws(images: Tensor, out: Tensor, padding: int) -> list[tuple[int, int, bool]]:
    """Returns what was drawn for each image; fails where the output is no crop of it."""
    found = []
    for image, crop in zip(images, out, strict=True):
        places = [place for place, content in placed(image, padding).items() if content == as_bytes(crop)]
        assert len(places) == 1
        found += places
    return found


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_crops_and_mirrored_crops(channels: int) -> None:
    torch.manual_seed(0)
    images = noise(200, channels, 16, 16)
    out = batch_augment(crop="padded", padding=0.125, flip=0.5).pixels(images)
    assert out.shape == images.shape and out.dtype == torch.uint8
    tops, lefts, mirrored = zip(*draws(images, out, 2), strict=True)
    assert set(tops) == set(lefts) == set(range(5))  # all places, each for itself
    assert len(set(zip(tops, lefts, strict=True))) > 20
    assert 70 < sum(mirrored) < 130


def test_pixels_equal_a_crop_by_hand_for_the_same_draws() -> None:
    images = noise(20, 3, 16, 16)
    torch.manual_seed(3)
    out = batch_augment(crop="padded", padding=0.25, flip=0.5).pixels(images)
    torch.manual_seed(3)
    mirrored = torch.rand(20, 1) < 0.5
    tops, lefts = torch.randint(0, 9, (20, 1)), torch.randint(0, 9, (20, 1))
    for i in range(20):
        # mirrored after padding, as columns of the padded image are counted from the other side
        by_hand = F.pad(images[i], (4,) * 4)[:, tops[i] : tops[i] + 16, lefts[i] : lefts[i] + 16]
        assert torch.equal(out[i], by_hand.flip(2) if mirrored[i] else by_hand)


def test_padding_by_the_mirror_image() -> None:
    images = noise(20, 3, 16, 16)
    torch.manual_seed(3)
    out = batch_augment(crop="padded", padding=0.25, padding_with="reflect").pixels(images)
    torch.manual_seed(3)
    tops, lefts = torch.randint(0, 9, (20, 1)), torch.randint(0, 9, (20, 1))
    for i in range(20):
        padded = F.pad(images[i].float(), (4,) * 4, "reflect").to(torch.uint8)
        assert torch.equal(out[i], padded[:, tops[i] : tops[i] + 16, lefts[i] : lefts[i] + 16])


def test_the_same_seed_gives_the_same_pixels() -> None:
    images, augment = noise(50, 3, 16, 16), batch_augment(crop="padded", flip=0.5)
    outs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(augment.pixels(images))
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])


def test_samples_of_a_batch_get_draws_of_their_own() -> None:
    images = noise(1, 3, 16, 16).expand(64, -1, -1, -1)
    out = batch_augment(crop="padded", flip=0.5).pixels(images)
    assert len({as_bytes(image) for image in out}) > 20


@pytest.mark.parametrize(
    ("flip", "mirror", "low", "high"),
    [
        (0.0, True, 0, 0),
        (1.0, True, 400, 400),
        (None, True, 150, 250),
        (None, False, 0, 0),
        (0.25, False, 60, 140),
    ],
)
def test_flips(flip: float | None, mirror: bool, low: int, high: int) -> None:
    torch.manual_seed(0)
    images = noise(400, 3, 8, 8)
    out = batch_augment(8, mirror=mirror, crop="none", flip=flip).pixels(images)
    assert low <= sum(mirrored for _, _, mirrored in draws(images, out, 0)) <= high


@pytest.mark.parametrize("settings", [{}, {"crop": "padded", "padding": 0.0}, {"crop": "resized"}])
def test_nothing_asked_nothing_done(settings: dict[str, Any]) -> None:
    images = noise(8, 3, 16, 16)
    assert torch.equal(batch_augment(**settings).pixels(images), images)


def test_wide_images_keep_their_shape() -> None:
    images = noise(4, 3, 8, 12)
    assert torch.equal(batch_augment(8, flip=1.0).pixels(images), images.flip(3))


def test_padding_is_a_share_of_the_images_own_side() -> None:
    """Small images are enlarged after they were cropped: an eighth of 8 pixels is 1."""
    images = noise(100, 3, 8, 8)
    out = batch_augment(64, crop="padded", padding=0.125).pixels(images)
    assert min(int((image > 0).sum()) for image in out) >= 3 * 7 * 7


# mix


def colours(count: int, size: int = 32) -> tuple[Tensor, Tensor]:
    """Plain images, each of another value, and targets; the value of sample i is i + 1."""
    values = torch.arange(1, count + 1, dtype=torch.float32)
    return values[:, None, None, None].expand(-1, 3, size, size).clone(), torch.arange(count) % CLASSES


def mixed(count: int = 400, **settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    images, targets = colours(count)
    out, shares = batch_augment(32, **settings).mix(images, targets)
    assert out.shape == images.shape and out.dtype == images.dtype
    return out, shares, targets


def test_mix_off_changes_nothing() -> None:
    images, targets = colours(8)
    out, same = batch_augment().mix(images, targets)
    assert out is images and same is targets


@pytest.mark.parametrize(
    "settings",
    [
        {"mixup": Mix(0.4, 1.0)},
        {"cutmix": Mix(1.0, 1.0)},
        {"mixup": Mix(0.2, 0.5), "cutmix": Mix(1.0, 0.5)},
        {"mixup": Mix(0.2, 0.1), "erase": 0.5},
    ],
)
def test_shares_are_shares(settings: dict[str, Any]) -> None:
    _, shares, _ = mixed(**settings)
    assert shares.shape == (400, CLASSES) and shares.dtype == torch.float32
    assert float(shares.min()) >= 0
    torch.testing.assert_close(shares.sum(1), torch.ones(400))
    assert int((shares > 0).sum(1).max()) == 2


def test_mixup_is_own_and_other_in_these_shares() -> None:
    torch.manual_seed(0)
    images, targets = colours(CLASSES)  # a class for each sample: the shares name the other image
    for _ in range(20):
        out, shares = batch_augment(32, mixup=Mix(1.0, 1.0)).mix(images, targets)
        expected = torch.einsum("nk,kchw->nchw", shares, images)
        torch.testing.assert_close(out, expected)
    own = shares.gather(1, targets[:, None])
    assert len(set(own.flatten().tolist())) > CLASSES // 2  # a weight for each sample


def test_cutmix_pastes_the_share_of_pixels_that_it_says() -> None:
    torch.manual_seed(0)
    images, targets = colours(CLASSES)
    pasted = 0
    for _ in range(20):
        out, shares = batch_augment(32, cutmix=Mix(1.0, 1.0)).mix(images, targets)
        pixels = torch.stack([(out[:, 0] == value + 1).float().mean((1, 2)) for value in range(CLASSES)], 1)
        torch.testing.assert_close(pixels, shares)  # each pixel is of one image: the shares add up to 1
        assert torch.equal(out[:, 0], out[:, 2])
        pasted += int((shares.gather(1, targets[:, None]) < 1).sum())
    assert pasted > 100


def test_cutmix_pastes_one_rectangle() -> None:
    torch.manual_seed(0)
    images, targets = colours(CLASSES)
    out, _ = batch_augment(32, cutmix=Mix(1.0, 1.0)).mix(images, targets)
    for image, own in zip(out[:, 0], images[:, 0], strict=True):
        strange = image != own
        rows, columns = strange.any(1), strange.any(0)
        assert torch.equal(strange, rows[:, None] & columns[None, :])
        for side in (rows, columns):
            places = side.nonzero().flatten()
            assert not len(places) or len(places) == int(places[-1] - places[0]) + 1


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.3, 0.0), (0.0, 0.3), (0.3, 0.5), (0.5, 0.5)])
def test_probabilities(mixup: float, cutmix: float) -> None:
    count = 3000
    torch.manual_seed(0)
    images, targets = colours(count, size=16)
    out, _ = batch_augment(16, mixup=Mix(1.0, mixup), cutmix=Mix(1.0, cutmix)).mix(images, targets)
    whole = (out == out[:, :, :1, :1]).flatten(1).all(1)
    changed = (out != images).flatten(1).any(1)
    assert float((changed & whole).float().mean()) == pytest.approx(
        mixup, abs=0.06
    )  # a full paste counts too
    assert float((changed & ~whole).float().mean()) == pytest.approx(cutmix, abs=0.06)


def test_beta_of_a_small_alpha_leaves_most_images_nearly_whole() -> None:
    """Beta(0.2, 0.2): half of the weights are within 0.03 of 0 or 1; Beta(1, 1): 6 %."""
    near = {}
    for alpha in (0.2, 1.0):
        _, shares, targets = mixed(2000, mixup=Mix(alpha, 1.0))
        own = shares.gather(1, targets[:, None])
        near[alpha] = float(((own < 0.03) | (own > 0.97)).float().mean())
    assert near[0.2] > 0.4 and near[1.0] < 0.25


@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_erase(probability: float) -> None:
    out, targets, given = mixed(2000, erase=probability)
    assert targets is not None and torch.equal(targets, given)
    share = (out[:, 0] == 0).float().mean((1, 2))
    assert float(share.max()) < 0.4  # a third at the most, and the rim of the pixels
    assert float((share > 0).float().mean()) == pytest.approx(probability, abs=0.06)
    assert float(share[share > 0].mean()) == pytest.approx(0.174, abs=0.01)  # as torchvision's RandomErasing
    untouched = (out == 0) | (out == colours(2000)[0])
    assert bool(untouched.all())


def test_erasing_by_noise() -> None:
    out, _, _ = mixed(2000, erase=0.5, erase_with="noise")
    touched = out != colours(2000)[0]
    values = out[touched]
    assert float(touched.flatten(1).any(1).float().mean()) == pytest.approx(0.5, abs=0.04)
    assert float(values.mean()) == pytest.approx(0.0, abs=0.01)
    assert float(values.std()) == pytest.approx(1.0, abs=0.01)
    assert torch.equal(touched[:, 0], touched[:, 1])  # a rectangle of all channels


def test_rectangles_are_torchvisions_and_timms() -> None:
    """Over 10,000 draws each. Theirs draw again where a side does not fit, ours cuts it: of squares that is
    one draw in a hundred."""
    torch.manual_seed(0)
    random.seed(0)
    blank = torch.zeros(3, 64, 64)
    others: dict[str, Any] = {
        "torchvision": v2.RandomErasing(p=1.0, scale=(0.02, 0.33), ratio=(0.3, 3.3), value=1.0),
        "timm": RandomErasing(probability=1.0, mode="pixel", device="cpu"),
    }
    found = {"ours": patches(torch.zeros(10_000, 1, 64, 64))[:, 0]}
    for name, call in others.items():
        found[name] = torch.stack([call(blank.clone())[0] != 0 for _ in range(10_000)])
    shapes = {}
    for name, masks in found.items():
        height, width = masks.any(2).sum(1).double(), masks.any(1).sum(1).double()
        area, ratio = height * width / 64**2, (height / width).log()
        left = masks.any(1).int().argmax(1) / (64 - width).clamp(min=1)
        shapes[name] = torch.stack(
            [area.mean(), area.std(), ratio.mean(), ratio.std(), left.mean(), left.std()]
        )
    for name in others:
        torch.testing.assert_close(shapes["ours"], shapes[name], rtol=0.0, atol=0.02)


def test_mixing_is_timms() -> None:
    """Shares of the own image over 10,000 draws, by timm's Mixup for each element: it pairs an image with one
    from the other end of the batch, which ours draws."""
    seed_others(0)
    torch.manual_seed(0)
    how = {"prob": 1.0, "switch_prob": 0.5, "mode": "elem", "label_smoothing": 0.0, "num_classes": 2}
    theirs = Mixup(0.8, 1.0, **how)
    targets = torch.cat([torch.zeros(5000), torch.ones(5000)]).long()  # the two of a pair are of two classes
    shares = theirs(torch.zeros(10_000, 1, 32, 32), targets)[1].gather(1, targets[:, None])[:, 0]
    augment = batch_augment(32, mixup=Mix(0.8, 0.5), cutmix=Mix(1.0, 0.5))
    rows, images = torch.eye(2000), torch.zeros(2000, 3, 32, 32)
    own = torch.cat([augment.mix(images, rows)[1].diagonal() for _ in range(5)])
    places = torch.linspace(0.05, 0.95, 19)
    found = [torch.quantile(values.float(), places) for values in (own, shares)]
    torch.testing.assert_close(*found, rtol=0.0, atol=0.035)


def test_what_is_erased_lies_inside_and_has_many_shapes() -> None:
    torch.manual_seed(0)
    masks = patches(torch.zeros(4000, 3, 40, 60))[:, 0]
    heights, widths = masks.any(2).sum(1).double(), masks.any(1).sum(1).double()
    assert torch.equal(masks.sum((1, 2)).double(), heights * widths)
    area, ratio = heights * widths / 2400, heights / widths
    assert float(area.min()) > 0.015 and float(area.max()) < 0.36  # but for the rounding of sides
    assert float(area.mean()) == pytest.approx(0.174, abs=0.005) and float(area.std()) == pytest.approx(
        0.09, abs=0.01
    )
    assert 0.25 < float(ratio.min()) < 0.4 and 2.5 < float(ratio.max()) < 4
    assert float(ratio.log().mean()) == pytest.approx(0.0, abs=0.05)
    top = masks.any(2).int().argmax(1) / (40 - heights)
    assert float(top[heights < 40].mean()) == pytest.approx(0.5, abs=0.02)  # anywhere


def test_draws_do_not_depend_on_the_default_type() -> None:
    out = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        try:
            out.append(
                batch_augment(32, mixup=Mix(0.4, 0.5), cutmix=Mix(1.0, 0.5), erase=0.5).mix(*colours(40))
            )
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(out[0][0], out[1][0]) and torch.equal(out[0][1], out[1][1])


def test_rectangles_of_an_area() -> None:
    torch.manual_seed(0)
    images = torch.zeros(3000, 3, 40, 40)
    for area in (0.0625, 0.25):
        covered = rectangles(images, torch.full((3000,), area)).float().mean((1, 2, 3))
        assert float(covered.max()) == pytest.approx(area, rel=0.15)
    assert not rectangles(images, torch.zeros(3000)).float().mean((1, 2, 3)).gt(1 / 1600 + 1e-6).any()


# entries of one's own

HERE = "support.augmentation."
V2 = "torchvision.transforms.v2."
DRIFT = {"_target_": HERE + "Drift"}


def entries_of(*nodes: dict[str, Any] | None, **settings: Any) -> BatchAugment:
    augment = BatchAugment(Augment.read({"batch": list(nodes), **settings}), spec())
    augment.check(None, torch.arange(4))
    return augment


def test_entries_get_images_and_targets_or_images_alone() -> None:
    nodes = [DRIFT, {"_target_": HERE + "Relabel"}, {"_target_": HERE + "Several"}, None]
    augment = entries_of(*nodes, {"_target_": V2 + "GaussianBlur", "kernel_size": 3})
    assert [entry.takes_targets for entry in augment.entries] == [False, True, False, True]
    images, targets = torch.randn(50, 3, 16, 16), torch.arange(50) % 10
    torch.manual_seed(0)
    out, labels = augment.own(images.clone(), targets)
    assert out.shape == images.shape and not torch.equal(out, images)
    assert 0 < (labels != targets).sum() < 20 and labels.shape == targets.shape


@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
def test_torchvisions_mixing_is_an_entry(name: str) -> None:
    augment = entries_of({"_target_": V2 + name}, mixup={"probability": 0.5})
    targets = torch.arange(50) % 10
    torch.manual_seed(0)
    images, shares = augment.own(torch.randn(50, 3, 16, 16), targets)
    assert shares.shape == (50, 10) and torch.allclose(shares.sum(1), torch.ones(50))
    assert bool((shares.gt(0).sum(1) == 2).any())
    _, mixed = augment.mix(images, shares)  # and ours after it
    assert mixed.gt(0).sum(1).max() > 2
    labels = torch.eye(10)[targets]
    assert augment.own(torch.randn(50, 3, 16, 16), labels)[1].shape == (50, 10)  # of several labels


def test_the_trial_leaves_state_and_draws_alone() -> None:
    torch.manual_seed(3)
    augment = entries_of(DRIFT)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))
    (level,) = augment.state_dict().values()
    assert float(level) == 0
    augment.own(torch.randn(4, 3, 16, 16), torch.arange(4))
    assert float(level) != 0


def test_what_an_entry_learns_is_not_trained() -> None:
    augment = entries_of({"_target_": "torch.nn.BatchNorm2d", "num_features": 3})
    assert [p.requires_grad for p in augment.parameters()] == [False, False]


def test_each_view_is_an_image_of_an_entry() -> None:
    augment = BatchAugment(Augment.read({"batch": [DRIFT], "erase": 0.5}), spec())
    augment.check(2, torch.arange(4))
    images = torch.randn(4, 2, 3, 16, 16)
    out, targets = augment.own(images, torch.arange(4))
    assert out.shape == images.shape and not torch.equal((out - images)[:, 0], (out - images)[:, 1])
    assert torch.equal(targets, torch.arange(4))
    with pytest.raises(UserError, match="makes 2 views of an image, which can't be mixed"):
        BatchAugment(Augment(mixup=Mix(probability=0.5)), spec()).check(2, torch.arange(4))
    with pytest.raises(UserError, match="v2.MixUp can't be called with a batch"):
        BatchAugment(Augment(batch=[{"_target_": V2 + "MixUp"}]), spec()).check(2, torch.arange(4))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "shape": ({"_target_": HERE + "stretched", "_partial_": True}, "augment.batch.0: support.augmentation."
              "stretched returned images float32 (4, 3, 16, 32) for float32 (4, 3, 16, 16); expected alike"),
    "targets": ({"_target_": HERE + "one_label", "_partial_": True}, "augment.batch.0: support.augmentation."
                "one_label returned targets int64 (1,) for int64 (4,); expected alike, or shares (N, 10)"),
    "a dict": ({"_target_": HERE + "named", "_partial_": True}, "augment.batch.0: support.augmentation.named "
               "can't be called with a batch (images: it returned dict)"),
    "half": ({"_target_": V2 + "ToDtype", "dtype": torch.float16}, "augment.batch.0: torchvision.transforms."
             "v2.ToDtype returned images float16 (4, 3, 16, 16) for float32"),
    "an error": ({"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2}, "augment.batch.0: "
                 "torch.nn.Linear can't be called with a batch (images: "),
    "a key": ({**DRIFT, "scal": 1}, "augment.batch.0.scal: support.augmentation.Drift takes no 'scal'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_one_line_for_what_is_no_entry(case: str) -> None:
    node, message = WRONG[case]
    with pytest.raises(UserError) as caught:
        entries_of(node)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


class Halved(nn.Module):
    """Leaves the batch alone once, and then halves it."""

    calls = 0

    def forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        step = 1 if self.calls == 1 else 2
        return images[::step], targets[::step]


class Moved(nn.Module):
    """Returns classes in another form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        shares = nn.functional.one_hot(targets, 3)
        return images, {"floats": targets.float(), "beyond": targets + 5, "integers": shares}[self.form]


def test_a_batch_that_is_halved_later() -> None:
    entry = BatchEntry({"_target_": f"{__name__}.Halved"}, "augment.batch.half", 3)
    images, targets = torch.zeros(4, 3, 8, 8), torch.arange(4) % 3
    entry(images, targets)
    with pytest.raises(UserError, match=r"returned images float32 \(2, 3, 8, 8\) for float32 \(4, 3, 8, 8\)"):
        entry(images, targets)


@pytest.mark.parametrize("form", ["floats", "beyond", "integers"])
def test_targets_that_no_loss_takes(form: str) -> None:
    entry = BatchEntry({"_target_": f"{__name__}.Moved", "form": form}, "augment.batch.moved", 3)
    with pytest.raises(UserError, match="expected alike, or shares"):
        entry.tried(torch.zeros(4, 3, 8, 8), torch.arange(4) % 3)


def test_padding_of_a_rectangle_is_a_share_of_each_side() -> None:
    torch.manual_seed(0)
    out = batch_augment(crop="padded", padding=0.125).pixels(noise(200, 3, 8, 32)) == 0
    assert out.shape == (200, 3, 8, 32)
    rows, columns = out.all(3).all(1).sum(1), out.all(2).all(1).sum(1)
    assert set(rows.tolist()) == {0, 1} and set(columns.tolist()) == {0, 1, 2, 3, 4}
