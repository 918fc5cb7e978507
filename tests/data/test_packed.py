"""Packed sets: the same images as the folder, read in place; and what is wrong with one is said."""

import json
import pickle
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.packs import packed
from support.pictures import write_picture
from support.sets import check_set
from torch.utils.data import DataLoader

from imgcls.augment.settings import Augment
from imgcls.config.build import build
from imgcls.data.imagefolder import ImageFolder
from imgcls.data.loading.manifest import facts_of
from imgcls.data.module import SPLITS, ImageDataModule
from imgcls.data.packed import PackedData, PackedImages
from imgcls.errors import UnreadableImage, UserError

RESIZED = Augment(crop="resized")


def ready(data: ImageDataModule) -> ImageDataModule:
    data.prepare_data()
    data.setup()
    return data


def pack_of(root: Path | str = "out", **arguments: Any) -> ImageDataModule:
    return ready(PackedData(root=str(root), **{"num_workers": 0, "batch_size": 4, **arguments}))


def folder_of(root: Path, **arguments: Any) -> ImageDataModule:
    settings = {"image_size": 24, "mean": [0.5], "std": [0.2], "num_workers": 0, "batch_size": 4}
    return ready(ImageFolder(root=str(root), **{**settings, **arguments}))


def loaders(data: ImageDataModule) -> list[DataLoader[Any]]:
    train = data.train_dataloader()
    train.sampler.set_epoch(3)  # type: ignore[attr-defined]
    return [train, data.val_dataloader(), data.test_dataloader()]


@pytest.mark.parametrize("format", ["pixels", "jpeg"])
@pytest.mark.parametrize("augment", [Augment(), RESIZED])
@pytest.mark.parametrize("channels", [1, 3])
def test_as_from_the_folder(folder: Path, format: str, augment: Augment, channels: int) -> None:
    """The same splits in the same order, the same images to the last bit, the same draws."""
    write_picture(folder / "cat" / "b" / "wide.jpg", seed=1, size=(70, 30))
    write_picture(folder / "dog" / "ü.jpg", seed=2, size=(20, 50), mode="L")
    packed(folder, format=format, channels=channels)
    one, two = folder_of(folder, augment=augment, channels=channels), pack_of(augment=augment)
    assert one.spec == two.spec
    for split in SPLITS:
        paths = [Path(one.sets[split].name(i)).relative_to(folder) for i in range(len(one.sets[split]))]
        assert [two.sets[split].name(i) for i in range(len(paths))] == list(map(str, paths))
        assert torch.equal(one.sets[split].picture(2), two.sets[split].picture(2))
    for mine, theirs in zip(loaders(two), loaders(one), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_workers_and_pickles_map_the_files(folder: Path) -> None:
    packed(folder)
    data, again = pack_of(augment=RESIZED), pack_of(augment=RESIZED, num_workers=2)
    for a, b in zip(data.train_dataloader(), again.train_dataloader(), strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.indices, b.indices)
    dataset = data.sets["train"]
    stored = pickle.dumps(dataset)  # what a worker that is not forked gets
    assert isinstance(dataset, PackedImages) and len(stored) < len(dataset.pack.content) / 10
    assert torch.equal(pickle.loads(stored).images(torch.arange(4)), dataset.images(torch.arange(4)))


def test_pixels_are_views(folder: Path) -> None:
    packed(folder)
    dataset = pack_of().sets["train"]
    assert isinstance(dataset, PackedImages)
    assert dataset.read(1).untyped_storage().data_ptr() == dataset.pack.content.untyped_storage().data_ptr()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_that_needs_nothing_is_one_gather(tmp_path: Path, channels: int) -> None:
    for name in ("a", "b"):
        for i in range(10):
            write_picture(tmp_path / "set" / name / f"{i}.png", seed=i, size=(16, 16))
    packed(tmp_path / "set")
    exact: dict[str, Any] = {"image_size": 16, "crop_ratio": 1.0, "channels": channels}
    data = pack_of(**exact, augment=Augment(crop="padded"), num_workers=None)
    train = data.sets["train"]
    assert isinstance(train, PackedImages) and train.as_stored and data.default_workers() == 0
    keys = torch.tensor([3, 1, 20])
    one_by_one = torch.stack([train.picture(k % len(train)) for k in keys.tolist()])
    assert torch.equal(train.images(keys), one_by_one)
    data.setup_test("all")  # as imgcls eval split=all does
    assert data.default_workers() == 0 and len(next(iter(data.test_dataloader())).targets) == 4
    for other in ({"image_size": 12}, {"crop_ratio": 0.8}, {"augment": RESIZED}):
        images = pack_of(**{**exact, **other}).sets["train"]
        assert isinstance(images, PackedImages) and not images.as_stored


def test_what_can_be_set(folder: Path) -> None:
    packed(folder)
    data = pack_of(
        image_size=20, mean=[0.1, 0.2, 0.3], mirror=False, channels=1, val_fraction=0.25, fraction=0.5
    )
    assert (data.spec.image_size, data.spec.mirror, data.spec.channels) == (20, False, 1)
    assert data.spec.mean == pytest.approx((0.2,)) and data.spec.std == pytest.approx((0.2,))
    assert len(data.sets["val"]) == 6 and len(data.sets["train"]) == 12
    assert next(iter(data.val_dataloader())).images.shape == (4, 1, 20, 20)


def refused(root: str = "out", **arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        pack_of(root, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(**facts: Any) -> None:
    path = Path("out/manifest.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


@pytest.mark.parametrize(
    ("facts", "fault"),
    [
        ({"sizes": 3}, "sizes: unexpected keyword argument"),
        ({"spec": None}, "spec: input should be a dictionary or an instance of dataspec"),
        ({"spec": {"class_names": ["a", "b"]}}, "spec.channels: field required"),
        ({"val_fraction": 3}, "val_fraction: input should be less than or equal to 0.9"),
        ({"splits": {}}, "has no split train, or no file train.npy"),
        ({"files": {}}, "has no split train, or no file train.npy"),
        ({"splits": {"train": {"images": 36}}}, "splits.train.shape: field required"),
        (
            {"files": {"train.npy": {"bytes": "x", "sha256": ""}}},
            "files.train.npy.bytes: input should be a valid integer",
        ),
    ],
)
def test_a_manifest_that_was_changed(folder: Path, facts: dict[str, Any], fault: str) -> None:
    packed(folder)
    change(**facts)
    said = refused()
    assert (
        fault in said
        and said.startswith("out/manifest.json")
        and said.endswith("; expected a directory that `imgcls pack` made")
    )


def test_a_manifest_without_a_key_or_with_a_wrong_fact(folder: Path) -> None:
    path = packed(folder) / "manifest.json"
    whole = json.loads(path.read_text())
    for key in whole:
        path.write_text(json.dumps({name: fact for name, fact in whole.items() if name != key}))
        assert refused().startswith("out/manifest.json")
    for name, fact, fault in (
        ("wings", 2, "spec.wings: unexpected keyword argument"),
        ("mean", [], "data.mean and data.std have 0 numbers for 3 channels"),
        ("std", [0.0], "std=[0.0, 0.0, 0.0]: expected a ratio above 0 and at most 1, std above 0"),
    ):
        path.write_text(json.dumps(whole | {"spec": whole["spec"] | {name: fact}}))
        assert fault in refused()


@pytest.mark.parametrize(
    "name", ["../x.npy", "/x.npy", "train/../../x.npy", "train/a/x.npy", "other.npy", "train\\\\x.npy", ""]
)
def test_names_that_no_pack_has(folder: Path, name: str) -> None:
    packed(folder)
    files = json.loads(Path("out/manifest.json").read_text())["files"]
    change(files=files | {name: files["train.npy"]})
    said = refused()
    assert said.startswith(f"out/manifest.json: files.{name}") and "string should match pattern" in said


@pytest.mark.parametrize(
    "table",
    [
        np.zeros(36),
        np.array([{}] * 36, object),
        np.zeros((6, 6), [("label", "<i8")]),
        np.zeros(36, [("name", "S3")]),
    ],
)
def test_a_table_that_no_pack_has(folder: Path, table: np.ndarray) -> None:
    packed(folder)
    np.save("out/train.npy", table)
    files = json.loads(Path("out/manifest.json").read_text())["files"]
    change(files=files | {"train.npy": asdict(facts_of(Path("out/train.npy")))})
    assert refused().startswith("out/train.npy is no table")


def test_never_above_the_size_that_was_packed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The manifest has the size that is true; one that hasn't is put right; who asks for more gets it."""
    caplog.set_level("INFO")
    packed(folder, size=16)
    assert pack_of().spec.image_size == 16
    line = "training on it is at 16 pixels, as no image has more; data.image_size=24 would enlarge them"
    assert caplog.messages.count(line) == 1
    change(spec=json.loads(Path("out/manifest.json").read_text())["spec"] | {"image_size": 224})
    assert pack_of().spec.image_size == 16
    assert (
        "data.root=out was packed at 16 pixels and is used so; data.image_size=224 enlarges the images"
        in caplog.text
    )
    assert pack_of(image_size=24).spec.image_size == 24


def test_pictures_smaller_than_the_size_of_the_pack(folder: Path) -> None:
    packed(folder, size=256, image_size=224)
    assert pack_of().spec.image_size == 32  # the short side of all


def test_what_is_wrong_with_a_pack(folder: Path) -> None:
    assert (
        "data.root=out: there is no manifest.json; expected a directory that `imgcls pack` made" in refused()
    )
    packed(folder)
    with Path("out/train.bin").open("r+b") as file:
        file.seek(1000)
        file.write(b"changed")
    assert (
        refused(verify=True)
        == "out/train.bin is damaged: its checksum is another; copy the pack again or make it again"
    )
    pack_of()  # the size is right, and nobody asked for more
    with Path("out/train.bin").open("ab") as file:
        file.write(b"x")
    assert "out/train.bin has 138,241 bytes instead of 138,240" in refused()
    Path("out/train.npy").rename("out/other.npy")
    assert "out/train.bin" in refused() and refused("nope").startswith("data.root=nope")
    Path("out/train.bin").unlink()
    assert refused() == "out/train.bin is missing; copy the pack again or make it again"
    change(format="litdata")
    assert refused() == "data.root=out is packed as litdata; expected pixels or jpeg; set data=streaming"
    change(version=2)
    assert refused() == "data.root=out is a pack of version 2; this is version 1: pack it again"
    for text in ("{}", "{", "[]"):
        Path("out/manifest.json").write_text(text)
        assert refused().startswith("out/manifest.json can't be read (")


def test_damaged_jpegs_are_named(folder: Path) -> None:
    out = packed(folder, format="jpeg")
    record = np.load(out / "train.npy")[5]
    with (out / "train.bin").open("r+b") as file:
        file.seek(int(record["offset"]))
        file.write(bytes(64))
    with pytest.raises(
        UnreadableImage, match=f"out/train.bin: the image {record['name'].decode()} is damaged"
    ):
        pack_of().setup_test("all")
        whole = PackedData(root="out").load("train")
        assert whole is not None
        whole.images(torch.arange(36))


def test_the_config(folder: Path) -> None:
    packed(folder, "pack", format="jpeg")
    check_set("packed", "data.root=pack")
    with pytest.raises(UserError, match="data.root=: string should have at least 1 character"):
        build({"_target_": "imgcls.data.packed.PackedData", "root": ""}, "data")


def test_a_fingerprint_is_of_the_content(folder: Path) -> None:
    packs = []
    for seed in (1, 2):  # of pixels: the same table, other content
        write_picture(folder / "cat" / "02.jpg", seed=seed)
        packs.append(pack_of(packed(folder, f"pack{seed}")))
    assert packs[0].fingerprint() != packs[1].fingerprint()


def test_inspect_reads_no_pack(said: Callable[..., str]) -> None:
    Path("empty").mkdir()
    message = said("inspect", "data=packed", "data.root=empty")
    assert "inspect reads image files and sets in memory" in message
