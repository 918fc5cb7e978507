"""imgcls inspect: each planted fault is found, a clean set has none, and data.exclude leaves files out."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from support.command import imgcls
from support.composed import composed
from support.pages import HOSTILE, elements

from imgcls.__main__ import main
from imgcls.commands.eval import data_config
from imgcls.config import check as configs
from imgcls.data.imagefolder import ImageFolder
from imgcls.data.loading import folders as index
from imgcls.errors import UserError
from imgcls.tools.inspect.command import InspectConfig
from imgcls.tools.inspect.findings import near_duplicates, near_pairs, to_compare
from imgcls.tools.inspect.scan import look

Run = Callable[..., tuple[dict[str, Any], str, Path]]
SMALL = ("data.image_size=32", "data.num_workers=0")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Inspects in this process; returns inspect.json, what was printed, and the run directory."""

    def command(*arguments: str) -> tuple[dict[str, Any], str, Path]:
        GlobalHydra.instance().clear()
        shutil.rmtree("runs", ignore_errors=True)
        monkeypatch.setattr(sys, "argv", ["imgcls", "inspect", *arguments])
        monkeypatch.setenv("COLUMNS", "140")
        main()
        (folder,) = Path("runs/inspect").iterdir()
        return json.loads((folder / "inspect.json").read_text()), capsys.readouterr().out, folder

    return command


def photo(path: Path, seed: int, size: int = 64) -> Path:
    """Writes a picture of smooth colours, all of a seed's own."""
    blocks = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(blocks).resize((size, size), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """Three splits of 3 classes, 48 pictures in all, without a fault."""
    for s, (split, count) in enumerate((("train", 8), ("val", 4), ("test", 4))):
        for label, name in enumerate(("cat", "dog", "fox")):
            for i in range(count):
                photo(tmp_path / "set" / split / name / f"{i}.jpg", seed=1000 * s + 100 * label + i)
    return tmp_path / "set"


@pytest.fixture
def broken(clean: Path) -> Path:
    """The same with a fault of each kind."""
    train = clean / "train"
    whole = (train / "cat" / "0.jpg").read_bytes()
    (train / "cat" / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (train / "cat" / "zero.jpg").touch()
    (clean / "test" / "fox" / "text.jpg").write_text("no picture, but a note\n")
    (train / "dog" / "noise.png").write_bytes(bytes(range(256)))
    (train / "dog" / "gone.jpg").symlink_to("nowhere.jpg")
    shutil.copy(clean / "test" / "cat" / "1.jpg", train / "cat" / "leak.jpg")
    shutil.copy(train / "dog" / "2.jpg", train / "fox" / "two_labels.jpg")
    Image.open(train / "fox" / "3.jpg").save(train / "fox" / "same_pixels.png")
    Image.open(train / "dog" / "5.jpg").resize((58, 58)).save(clean / "val" / "dog" / "near.jpg", quality=60)
    photo(clean / "val" / "owl" / "0.jpg", seed=7777)
    return clean


UNREADABLE = {
    "train/cat/truncated.jpg": "Image is incomplete or truncated",
    "train/cat/zero.jpg": "the file is empty",
    "train/dog/gone.jpg": "No such file or directory",
    "train/dog/noise.png": "no image format that is known",
    "test/fox/text.jpg": "no image format that is known",
}


def groups(found: dict[str, Any], kind: str) -> list[tuple[str, ...]]:
    return [tuple(image["file"] for image in group["images"]) for group in found[kind]]


def listed(path: Path) -> set[str]:
    return {line.partition("\t")[0] for line in path.read_text().splitlines() if not line.startswith("#")}


def test_planted_faults(run: Run, broken: Path) -> None:
    found, printed, folder = run(f"data.root={broken}", *SMALL)
    assert {item["file"]: item["reason"] for item in found["unreadable"]} == UNREADABLE
    assert groups(found, "duplicates") == [
        ("test/cat/1.jpg", "train/cat/leak.jpg"),
        ("train/dog/2.jpg", "train/fox/two_labels.jpg"),
        ("train/fox/3.jpg", "train/fox/same_pixels.png"),
    ]
    flags = [(group["leak"], group["two_labels"]) for group in found["duplicates"]]
    assert flags == [(True, False), (False, True), (False, False)]
    assert groups(found, "near_duplicates") == [("val/dog/near.jpg", "train/dog/5.jpg")]
    assert found["near_duplicates"][0]["leak"]
    assert found["absent"] == {"owl": {"in": ["val"], "not_in": ["train", "test"]}}
    assert found["splits"] == {"train": 27, "val": 14, "test": 12}
    assert found["classes"]["cat"] == {"train": 9, "val": 4, "test": 4}
    assert "has the class 'owl', which" in found["training_refuses"]
    assert found["formats"] == {"JPEG": 52, "PNG": 1} and found["modes"] == {"RGB": 53}
    assert found["sizes"] == {"64×64": 52, "58×58": 1}
    for words in (
        "LEAK: the same picture in more than one split (1)\n  test/cat/1.jpg  =  train/cat/leak.jpg",
        "train/cat/zero.jpg: the file is empty",
        "owl: in val, not in train, test",
        "leave 9 files out: data.exclude=runs/",
    ):
        assert words in printed
    assert listed(folder / "exclude.txt") == {
        *UNREADABLE,
        "train/cat/leak.jpg",
        "train/dog/2.jpg",  # nobody knows which of the two labels is right
        "train/fox/two_labels.jpg",
        "train/fox/same_pixels.png",
    }
    assert not (folder / "samples.png").exists()


def test_a_clean_set_has_no_fault(run: Run, clean: Path) -> None:
    found, printed, folder = run(f"data.root={clean}", *SMALL, "augment=mix")
    assert not any(
        found[key] for key in ("unreadable", "duplicates", "near_duplicates", "absent", "training_refuses")
    )
    assert "no faults found" in printed and listed(folder / "exclude.txt") == set()
    assert found["splits"] == {"train": 24, "val": 12, "test": 12} and found["imbalance"]["ratio"] == 1
    train = np.stack([np.asarray(Image.open(path)) for path in (clean / "train").rglob("*.jpg")]) / 255
    assert np.allclose(found["mean"], train.mean((0, 1, 2)), atol=0.002)  # two decoders of JPEG
    assert np.allclose(found["std"], train.std((0, 1, 2)), atol=0.002)
    config = composed("data=imagefolder", f"data.root={clean}", *found["override"].split())
    assert config["data"]["mean"] == found["mean"] and config["data"]["std"] == found["std"]
    assert {path.name for path in folder.glob("*.png")} == {"class_counts.png", "sizes.png", "samples.png"}


def test_the_list_mends_the_set(
    run: Run, broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(broken / "val" / "owl")
    _, _, folder = run(f"data.root={broken}", *SMALL)
    shutil.copy(folder / "exclude.txt", "exclude.txt")
    found, printed, _ = run(f"data.root={broken}", "data.exclude=exclude.txt", "near=null", *SMALL)
    assert "no faults found" in printed and found["images"] == 48
    GlobalHydra.instance().clear()
    train = [
        "data=imagefolder",
        f"data.root={broken}",
        "data.exclude=exclude.txt",
        "trainer.max_epochs=1",
        "logger=csv",
    ]
    monkeypatch.setattr(sys, "argv", ["imgcls", "train", *train, *SMALL, "data.batch_size=8", "trainer=cpu"])
    main()
    assert "Test of the best checkpoint" in capsys.readouterr().out
    (tested,) = Path("runs").glob("imagefolder-*/*/test/predictions.csv")
    assert len(tested.read_text().splitlines()) == 13 and "text.jpg" not in tested.read_text()


def test_in_a_process_of_its_own(broken: Path) -> None:
    done = imgcls("inspect", f"data.root={broken}", "data.num_workers=2", "data.image_size=32")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "LEAK" in done.stdout and "\x1b" not in done.stdout and "Traceback" not in done.stdout


def test_copies_that_a_cut_can_part(run: Run, folder: Path) -> None:
    shutil.copy(folder / "cat" / "00.jpg", folder / "cat" / "again.jpg")
    found, printed, _ = run(f"data.root={folder}", *SMALL)
    assert groups(found, "duplicates") == [("cat/00.jpg", "cat/again.jpg")]
    assert "more than once; val and test are cut from train, so copies can land on both sides (1)" in printed


def test_no_permission(clean: Path) -> None:
    """Read as a user who may not; root may read all files."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        for file, mode in (("secret.jpg", 0), ("open.jpg", 0o644)):
            shutil.copy(clean / "train" / "cat" / "0.jpg", place / file)
            (place / file).chmod(mode)
        look(str(place / "open.jpg"), 3)  # imports what it needs while it may
        if user := os.geteuid() == 0:
            os.seteuid(65534)
        try:
            assert look(str(place / "open.jpg"), 3).reason is None
            assert look(str(place / "secret.jpg"), 3).reason == "Permission denied"
        finally:
            if user:
                os.seteuid(0)


def test_copies_of_any_shape(run: Run, folder: Path) -> None:
    """A picture 200 times as wide as it is high is drawn, and one that is 200 times as high."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 400, 3), dtype=np.uint8)
    for name, pixels in (("wide", noise), ("high", noise.transpose(1, 0, 2))):
        for i in range(2):
            Image.fromarray(pixels).save(folder / "cat" / f"{name}{i}.png")
    found, _, _ = run(f"data.root={folder}", *SMALL)
    assert groups(found, "duplicates") == [
        ("cat/high0.png", "cat/high1.png"),
        ("cat/wide0.png", "cat/wide1.png"),
    ]


def test_the_bits_of_deep_pictures(run: Run, tmp_path: Path) -> None:
    """The words that are printed bring 12 bits in files of 16 and of 32 to their whole range."""
    ramp = np.linspace(0, 4095, 1024).reshape(32, 32)
    for kind, dtype in (("u", np.uint16), ("i", np.int32)):
        for i in range(30):
            path = tmp_path / kind / f"{'ab'[i % 2]}" / f"{i}.tiff"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.roll(ramp, 7 * i).astype(dtype)).save(path)
    found, printed, _ = run(f"data.root={tmp_path}/u", *SMALL)
    words = "30 of 16-bit integers use 12 of 16 bits: up to 4095, where 65535 is white"
    assert (
        f"depth            {words}" in printed and f"{words}; set data.bits=12 and inspect again" in printed
    )
    assert found["mean"][0] < 0.04
    found, printed, folder = run(f"data.root={tmp_path}/i", *SMALL)
    assert len(found["unreadable"]) == 30 and "set data.bits=12 and inspect again" in printed
    assert listed(folder / "exclude.txt") == set()
    for kind in ("u", "i"):
        found, printed, _ = run(f"data.root={tmp_path}/{kind}", *SMALL, "data.bits=12", "near=null")
        assert found["mean"][0] == pytest.approx(0.5, abs=0.01) and "set data.bits" not in printed
        assert not found["unreadable"]


def test_folders_beside_the_splits(run: Run, clean: Path) -> None:
    (clean / "train").rename(clean / "Training")
    photo(clean / "extra" / "cat" / "0.jpg", seed=5)
    found, printed, _ = run(f"data.root={clean}", *SMALL)
    assert found["splits"] == {"train": 24, "val": 12, "test": 12} and found["left_out"] == ["extra"]
    assert "folders beside the splits, which are not read (1)\n  extra" in printed


def test_many_pictures_of_one_hash() -> None:
    """Their number, not its square, says how long they take; those that are alike are one group."""
    count = 20_000
    shades = np.random.default_rng(0).integers(0, 256, (count, 1), dtype=np.uint8).repeat(192, 1)
    shades[: count // 2] = 7
    shades[:, 0] += np.arange(count, dtype=np.uint8) % 3
    table = pd.DataFrame({"digest": range(count), "hash": 0, "thumb": [row.tobytes() for row in shades]})
    compared = to_compare(table["hash"].to_numpy(np.uint64), shades.mean(1), 6)
    assert len(compared) < 40 * count
    assert max(len(group) for group in near_duplicates(table, 6)) > count // 2


@pytest.mark.parametrize("distance", [0, 3, 6])
def test_pairs_are_those_of_all_comparisons(distance: int) -> None:
    generator = np.random.default_rng(distance)
    hashes = generator.integers(0, 2**63, 300, dtype=np.uint64) << np.uint64(1)
    for i in range(150):  # half of them are another with up to 8 bits changed
        flips = generator.choice(np.arange(1, 64), generator.integers(0, 9), replace=False)
        hashes[150 + i] = hashes[i] ^ np.bitwise_or.reduce(
            np.uint64(1) << flips.astype(np.uint64), initial=np.uint64(0)
        )
    differing = np.bitwise_count(hashes[:, None] ^ hashes[None])
    expected = np.argwhere(np.triu(differing <= distance, 1))
    assert len(expected) > 10
    assert near_pairs(hashes, distance).tolist() == expected.tolist()
    pairs = np.sort(to_compare(hashes, generator.random(300), distance), 1)
    assert np.unique(pairs, axis=0).tolist() == expected.tolist()


def test_an_image_is_its_own_near_duplicate_only(tmp_path: Path) -> None:
    def bits(path: Path) -> int:
        return look(str(path), 3).hash

    first = photo(tmp_path / "a.png", 1, 300)
    Image.open(first).resize((200, 280)).save(tmp_path / "small.jpg", quality=50)
    Image.open(first).convert("L").convert("RGB").save(tmp_path / "grey.png")
    assert (bits(first) ^ bits(tmp_path / "small.jpg")).bit_count() <= 6
    others = [bits(photo(tmp_path / f"{i}.png", i, 300)) for i in range(2, 40)]
    assert min((bits(first) ^ other).bit_count() for other in others) > 12


def test_sets_in_memory(run: Run) -> None:
    found, printed, folder = run("data=digits")
    assert found["images"] == 1797 and found["splits"] == {"train": 1797}
    assert np.allclose([*found["mean"], *found["std"]], [0.305, 0.376], atol=5e-4)
    assert found["unreadable"] == [] and not (folder / "exclude.txt").exists()
    assert (folder / "samples.png").is_file() and "mean and std" in printed


def test_names_that_are_hard_to_write(run: Run, folder: Path) -> None:
    photo(folder / "#odd" / "0.jpg", seed=0)
    names = [
        "#odd/1.jpg",
        "cat/new\nline.jpg",
        "cat/a\t# b.jpg",
        "cat/猫 <b>.jpg",
        f"cat/{HOSTILE}.jpg",
        os.fsdecode(b"cat/\xff.jpg"),
    ]
    for name in names:
        (folder / name).touch()
    found, _, place = run(f"data.root={folder}", *SMALL)
    assert sorted(item["file"] for item in found["unreadable"]) == sorted(names)
    page = (place / "index.html").read_text()
    assert "猫 &lt;b&gt;.jpg" in page and "<b>" not in page
    assert not any(key == "onerror" for _, attributes in elements(page) for key, _ in attributes)
    shutil.copy(place / "exclude.txt", "list")
    left = run(f"data.root={folder}", "data.exclude=list", *SMALL)[0]["unreadable"]
    assert {item["file"] for item in left} == {"cat/new\nline.jpg", "cat/a\t# b.jpg"}


def test_a_set_without_one_good_image(run: Run, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for i in range(10):
            (tmp_path / "bad" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "bad" / name / f"{i}.png").touch()
    found, printed, _ = run(f"data.root={tmp_path}/bad", *SMALL)
    assert found["images"] == 0 and len(found["unreadable"]) == 20 and "no image can be read" in printed


def test_splits_without_train(run: Run, clean: Path) -> None:
    shutil.rmtree(clean / "train")
    found, _, _ = run(f"data.root={clean}", *SMALL)
    assert found["splits"] == {"val": 12, "test": 12} and "no train folder" in found["training_refuses"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data.root=nowhere"], "data.root=nowhere: there is no such folder"),
        (["data.root=empty"], "holds no image; expected <class>/<image files>"),
        (["data.root=empty", "near=7"], "near=7: input should be less than or equal to 6"),
        (["data.root=empty", "data.fraction=2"], "data.fraction=2"),
        (
            ["data.root=empty", "data.exclude=nowhere.txt"],
            "data.exclude=nowhere.txt can't be read (No such file",
        ),
    ],
)
def test_mistakes(said: Callable[..., str], arguments: list[str], words: str) -> None:
    Path("empty/cat").mkdir(parents=True)
    Path("empty/dog").mkdir(parents=True)
    assert words in said("inspect", *arguments)


def loaded(root: Path, lines: str | None) -> ImageFolder:
    if lines is not None:
        Path("list").write_text(lines)
    data = ImageFolder(
        root=str(root), exclude=None if lines is None else "list", image_size=24, mean=[0.5], std=[0.2]
    )
    data.setup()
    return data


def test_exclude(clean: Path) -> None:
    lines = "# a comment\r\ntrain/cat/3.jpg\t# a reason\r\n\ntrain/fox/0.jpg\n./test/dog/1.jpg\n"
    whole, rest = loaded(clean, None), loaded(clean, lines)
    for split in ("train", "val", "test"):
        names = [{data.sets[split].name(i) for i in range(len(data.sets[split]))} for data in (whole, rest)]
        gone = {f"{clean}/{name}" for name in ("train/cat/3.jpg", "train/fox/0.jpg", "test/dog/1.jpg")}
        assert names[1] == names[0] - gone
        labels = {
            Path(rest.sets[split].name(i)).parent.name: int(t) for i, t in enumerate(rest.sets[split].targets)
        }
        assert labels == {"cat": 0, "dog": 1, "fox": 2}


@pytest.mark.parametrize(
    "entry",
    [
        "train/cat/99.jpg",
        "train/cat",
        "train",
        "cat/0.jpg",
        "../x.jpg",
        "train/zebra/0.jpg",
        "valid/cat/0.jpg",
    ],
)
def test_an_entry_that_matches_nothing(clean: Path, entry: str) -> None:
    with pytest.raises(
        UserError, match=f"data.exclude=list names '{re.escape(entry)}', which is no image of a split"
    ):
        loaded(clean, f"train/cat/0.jpg\n{entry}\n")


def test_a_class_that_is_left_empty(clean: Path) -> None:
    with pytest.raises(UserError, match="train/fox holds no image that is not excluded"):
        loaded(clean, "".join(f"train/fox/{i}.jpg\n" for i in range(8)))
    assert loaded(clean, "".join(f"val/fox/{i}.jpg\n" for i in range(4))).sets[
        "val"
    ].targets.unique().tolist() == [0, 1]


def test_the_index_stays_valid(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "SETTLED_NS", -(10**12))
    loaded(clean, None)
    monkeypatch.setattr(index, "list_images", lambda *_: pytest.fail("listed again"))
    assert len(loaded(clean, "train/cat/0.jpg\n").sets["train"]) == 23
    assert len(loaded(clean, None).sets["train"]) == 24


def test_eval_takes_the_list_of_its_root_alone(clean: Path) -> None:
    spec = loaded(clean, None).spec
    trained = {
        "data": {"_target_": "imgcls.data.imagefolder.ImageFolder", "root": "set", "exclude": "list"},
        "cwd": "/start",
    }
    assert data_config(trained, {}, spec)["exclude"] == "/start/list"
    assert "exclude" not in data_config(trained, {"root": "other"}, spec)
    assert data_config(trained, {"root": "other", "exclude": "mine"}, spec)["exclude"] == "mine"


def test_eval_takes_the_bits_that_the_set_names_where_training_had_none(clean: Path) -> None:
    spec, trained = loaded(clean, None).spec, {"data": {}, "cwd": "/"}
    wanted = {"_target_": "imgcls.data.imagefolder.ImageFolder", "root": "deep", "bits": 12}
    ten = replace(spec, bits=10)
    assert data_config(trained, wanted, spec)["bits"] == 12
    assert data_config(trained, wanted, ten)["bits"] == 10
    assert data_config(trained, wanted, ten, overrides=["data.bits=12"])["bits"] == 12


def test_the_config() -> None:
    config = composed("data=imagefolder", "data.root=x", root="inspect")
    configs.check({"data": config["data"]})
    assert set(InspectConfig.__annotations__) == set(config)


BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium here")
def test_the_page_in_a_browser(run: Run, broken: Path) -> None:
    assert BROWSER is not None
    shutil.rmtree(broken / "val" / "owl")
    _, _, folder = run(f"data.root={broken}", *SMALL)
    text = (folder / "index.html").read_text()
    assert "<script" not in text and "http" not in text
    widths_of = "document.title = [...document.images].map(i => i.naturalWidth)"
    probe = f"<script>addEventListener('load', () => {widths_of})</script>"
    (folder / "probe.html").write_text(text.replace("</head>", f"{probe}</head>"))
    for name in ("index.html", "probe.html"):
        command = [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
            f"--user-data-dir={folder.absolute() / 'profile'}", "--virtual-time-budget=3000", "--dump-dom",
            f"file://{folder.absolute() / name}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and "CONSOLE" not in done.stderr, done.stderr
        assert "LEAK" in done.stdout
    widths = re.findall(r"<title>(.*?)</title>", done.stdout)[0].split(",")
    assert len(widths) == len(re.findall("<img", text)) >= 5 and all(int(width) > 100 for width in widths)
