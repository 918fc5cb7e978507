"""Images that can't be read, bombs, and what is made of them while a network is trained."""

import csv
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from support.command import imgcls
from support.pictures import write_picture
from support.runs import assert_same_run

from imgcls.__main__ import main
from imgcls.data.imagefolder import ImageFolder
from imgcls.data.loading.decode import MAX_PIXELS, decode
from imgcls.engine.signals import STOPPED
from imgcls.errors import UnreadableImage, UserError

Said = Callable[..., str]
OPTIONS = [
    "data=imagefolder", "data.image_size=16", "data.batch_size=4", "data.num_workers=1", "logger=csv",
    "trainer.max_epochs=3", "augment=mix", "data.test_fraction=0.2",
]  # fmt: skip


def data_of(root: Path, **arguments: Any) -> ImageFolder:
    settings = {
        "image_size": 16,
        "mean": [0.5],
        "std": [0.2],
        "num_workers": 0,
        "batch_size": 6,
        "on_error": "skip",
    }
    data = ImageFolder(root=str(root), **{**settings, "max_errors": 1.0, **arguments})
    data.setup()
    return data


def spoil(data: ImageFolder, split: str, *indices: int) -> list[str]:
    names = [data.sets[split].name(index) for index in indices]
    for name in names:
        content = Path(name).read_bytes()
        Path(name).write_bytes(content[: len(content) // 2])
    return names


def listed(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("workers", [0, 2])
def test_another_image_of_the_batch_stands_for_it(folder: Path, workers: int) -> None:
    """All else is as it would be: the other images, their draws, their order."""
    whole = list(data_of(folder, num_workers=workers).train_dataloader())
    data = data_of(folder, num_workers=workers)
    bad = whole[1].indices[[2, 5]].tolist()
    names = spoil(data, "train", *bad)
    found = list(data.train_dataloader())
    assert [batch.indices.tolist() for batch in found] == [batch.indices.tolist() for batch in whole]
    good = torch.tensor([0, 1, 3, 4])
    assert torch.equal(found[1].images[good], whole[1].images[good])
    assert torch.equal(found[1].targets[good], whole[1].targets[good])
    for place, copied in ((2, 3), (5, 1)):
        assert torch.equal(found[1].images[place], found[1].images[copied])
        assert found[1].targets[place] == found[1].targets[copied]
    assert all(torch.equal(one, other) for one, other in zip(found[0], whole[0], strict=True))
    assert [(row["split"], row["path"]) for row in listed("unreadable.csv")] == [
        ("train", name) for name in names
    ]
    assert {row["reason"] for row in listed("unreadable.csv")} <= {
        "Image is incomplete or truncated",
        "Truncated File Read",
    }


def test_in_evaluation_it_is_padding(folder: Path) -> None:
    data = data_of(folder, batch_size=5)
    whole = [batch.targets for batch in data.test_dataloader()]
    spoil(data, "test", 1, 5)  # the second batch has no other
    first, second = data.test_dataloader()
    assert first.indices.tolist() == [0, 1, 2, 3, 4] and second.indices.tolist() == [5]
    assert first.valid.tolist() == [True, False, True, True, True] and second.valid.tolist() == [False]
    assert torch.equal(first.targets[first.valid], whole[0][first.valid])


def test_too_many(folder: Path) -> None:
    data = data_of(folder, max_errors=0.1)
    spoil(data, "train", 0, 1, 2)
    with pytest.raises(
        UserError, match=r"3 of 27 train images can't be read, a larger share than data.max_errors=0.1"
    ):
        for _ in range(3):
            list(data.train_dataloader())
    assert len(listed("unreadable.csv")) == 3
    data = data_of(folder)
    spoil(data, "train", *range(3, 27))
    with pytest.raises(UserError, match="no image of a batch can be read; see unreadable.csv"):
        list(data.train_dataloader())


def test_a_run_goes_on_without_it(train: Callable[..., Any], here: Callable[..., None], folder: Path) -> None:
    """Also over a stop within an epoch, to the same end; each image is listed once."""
    data = data_of(folder)
    spoil(data, "train", 3, 11)
    spoil(data, "val", 0)
    spoil(data, "test", 1)
    options = [*OPTIONS, f"data.root={folder}", "data.on_error=skip", "data.max_errors=0.4"]
    assert train(*options, "hydra.run.dir=whole") is None
    assert train(*options, "hydra.run.dir=cut", stop=9) == STOPPED
    assert train("resume=cut") is None
    assert_same_run(Path("whole"), Path("cut"))
    for run in ("whole", "cut"):
        assert sorted(row["split"] for row in listed(f"{run}/unreadable.csv")) == [
            "test",
            "train",
            "train",
            "val",
        ]
    assert len(listed("whole/test/predictions.csv")) == 5
    given = ["checkpoint=whole", "data.num_workers=0"]
    here("eval", *given, "split=train", "hydra.run.dir=eval")
    assert {row["split"] for row in listed("eval/unreadable.csv")} == {"train"}
    here("eval", *given, "knn=3", "hydra.run.dir=knn")
    assert {row["split"] for row in listed("knn/unreadable.csv")} == {"train", "test"}
    assert not Path("unreadable.csv").exists()
    ended = train(*options, "data.max_errors=0.05", "hydra.run.dir=strict")
    assert (
        "images can't be read, a larger share than data.max_errors=0.05; see strict/unreadable.csv" in ended
    )


def test_no_training_is_lost_for_a_file_of_the_test(
    train: Callable[..., Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (name,) = spoil(data_of(folder), "test", 2)
    assert (
        train(
            *OPTIONS,
            f"data.root={folder}",
            "task.temperature=true",
            "trainer.max_epochs=1",
            "hydra.run.dir=run",
        )
        is None
    )
    shown = capsys.readouterr().out
    assert "left out: 1 unreadable images, see run/unreadable.csv" in " ".join(shown.split())
    assert [row["path"] for row in listed("run/unreadable.csv")] == [name]
    assert len(listed("run/test/predictions.csv")) == 5


@pytest.mark.slow
def test_as_used(folder: Path) -> None:
    """With workers: one line that names the file, and status 1; or the run, whole."""
    (name,) = spoil(data_of(folder), "train", 7)
    done = imgcls("train", *OPTIONS, f"data.root={folder}", "hydra.run.dir=run")
    assert done.returncode == 1
    assert done.stderr == (
        f"imgcls train: {name} can't be read as an image (Image is incomplete or truncated); "
        "data.on_error=skip leaves out such images\n"
    )


def png_of(width: int, height: int) -> bytes:
    """Returns a PNG that claims a size, with the pixels of its first row alone."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(width + 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg_of(path: Path, width: int, height: int) -> bytes:
    """Returns a small JPEG whose header claims a size."""
    content = bytearray(write_picture(path).read_bytes())
    place = content.index(b"\xff\xc0")
    content[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(content)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_bombs(tmp_path: Path, suffix: str) -> None:
    """Refused by what the header says; 60,000 × 60,000 pixels would take 10 GB."""
    path = tmp_path / f"bomb.{suffix}"
    path.write_bytes(png_of(60_000, 60_000) if suffix == "png" else jpeg_of(path, 60_000, 60_000))
    with pytest.raises(UnreadableImage) as caught:
        decode(str(path), 3)
    reason = f"its 60,000×60,000 pixels are more than max_pixels={MAX_PIXELS}"
    assert str(caught.value) == f"{path} can't be read as an image ({reason})"
    assert caught.value.reason() == reason
    picture = write_picture(tmp_path / f"small.{suffix}", size=(40, 32))
    assert decode(str(picture), 3, max_pixels=40 * 32).shape == (3, 32, 40)
    with pytest.raises(UnreadableImage, match=r"its 40×32 pixels are more than max_pixels=1279"):
        decode(str(picture), 3, max_pixels=40 * 32 - 1)


def test_bombs_as_used(
    said: Said, folder: Path, train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "dog" / "bomb.png").write_bytes(png_of(60_000, 60_000))
    options = [*OPTIONS, f"data.root={folder}", "data.val_fraction=0.3", "data.max_errors=0.5"]
    reason = f"its 60,000×60,000 pixels are more than max_pixels={MAX_PIXELS}"
    assert f"dog/bomb.png can't be read as an image ({reason})" in said(
        "train", *options, "hydra.run.dir=refused"
    )
    assert train(*options, "data.on_error=skip", "trainer.max_epochs=1", "hydra.run.dir=run") is None
    assert [row["reason"] for row in listed("run/unreadable.csv")] == [reason]
    assert "1 of 37 could not be read" in said(
        "predict", "checkpoint=run", f"source={folder}", "hydra.run.dir=out", "num_workers=0"
    )
    assert [
        (Path(row["path"]).name, row["reason"]) for row in listed("out/predictions.csv.unreadable.csv")
    ] == [("bomb.png", reason)]
    many = said("predict", "checkpoint=run", f"source={folder}", "max_pixels=1000", "num_workers=0")
    assert "37 of 37 could not be read" in many
    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "argv", ["imgcls", "inspect", f"data.root={folder}", "hydra.run.dir=seen"])
    main()
    assert f"dog/bomb.png\t# {reason}" in Path("seen/exclude.txt").read_text()
