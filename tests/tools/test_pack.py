"""imgcls pack: what it writes, what it refuses, and what is left of it when it is stopped."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from support.composed import composed
from support.packs import packed
from support.pictures import write_picture
from support.tables import write_table
from torchcodec.decoders import decode_image

from imgcls.__main__ import main
from imgcls.config import check as configs
from imgcls.data.loading.decode import decode
from imgcls.data.packed import PackedData
from imgcls.errors import UserError
from imgcls.tools import pack as packing


def manifest_of(out: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return manifest


def left(out: Path = Path("out")) -> list[str]:
    return sorted(path.name for path in out.absolute().parent.glob(f"*{out.name}*"))


def damage(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:200])
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command in this process and returns what it printed."""

    def command(*arguments: str) -> str:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["imgcls", *arguments])
        main()
        return capsys.readouterr().out

    return command


def test_the_command(folder: Path, run: Callable[..., str]) -> None:
    """Pack, then train on what was packed, with the line that packing ends with."""
    said = run(
        "pack", f"data.root={folder}", "out='a b/pack'", "data.num_workers=1", "data.image_size=16", "size=24"
    )
    *_, made, advice = said.splitlines()
    assert made.startswith("36 images, 0.0 MB, ") and made.endswith(" images/s: a b/pack")
    assert left(Path("a b/pack")) == ["pack"]
    assert advice == "train on it: imgcls train data=packed data.root='a b/pack'"
    command = shlex.split(advice.partition("imgcls ")[2].replace("'a b/pack'", "\"'a b/pack'\""))
    said = run(*command, "backbone=simple_cnn", "debug=fast", "data.batch_size=4", "data.num_workers=0")
    assert "data: 30 train, 3 val, 3 test images of 3×16×16, 3 classes" in said
    trained = next(path for path in Path("runs").glob("debug/*") if path.is_dir())
    said = run(
        "eval", f"checkpoint={trained}", "data=packed", "data.root='a b/pack'"
    )  # prepared as in training
    assert "top1" in said


def test_the_manifest(folder: Path) -> None:
    out = packed(folder, size=16, format="jpeg", quality=80)
    manifest = manifest_of(out)
    assert [manifest[key] for key in ("version", "format", "size", "quality")] == [1, "jpeg", 16, 80]
    assert manifest["spec"]["class_names"] == ["cat", "dog", "fox"] and manifest["spec"]["image_size"] == 16
    assert manifest["splits"] == {
        "train": {"images": 36, "shape": [16, 20, 3], "classes": {"cat": 12, "dog": 12, "fox": 12}}
    }
    assert {name: facts["bytes"] for name, facts in manifest["files"].items()} == {
        name: (out / name).stat().st_size for name in ("train.bin", "train.npy")
    }


def test_only_splits_of_its_own_are_packed(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("validation", 2)):
        for name in ("a", "b"):
            for i in range(count):
                write_picture(tmp_path / "set" / split / name / f"{i}.png", seed=i)
    splits = manifest_of(packed(tmp_path / "set"))["splits"]
    assert {split: facts["images"] for split, facts in splits.items()} == {"train": 8, "val": 4}


def test_sizes_keep_their_ratio_and_are_never_enlarged(tmp_path: Path) -> None:
    for name, size in (("a", (80, 40)), ("b", (20, 60)), ("c", (16, 10))):
        for i in range(3):
            write_picture(tmp_path / "set" / name / f"{i}.png", size=size)
    table = np.load(packed(tmp_path / "set", size=16) / "train.npy")[::3]
    assert [(int(r["width"]), int(r["height"])) for r in table] == [(32, 16), (16, 48), (16, 10)]


def test_a_jpeg_that_needs_no_resizing_keeps_its_bytes(folder: Path) -> None:
    write_picture(folder / "cat" / "z.png", size=(20, 20))
    out = packed(folder, format="jpeg", size=32)
    table, content = np.load(out / "train.npy"), (out / "train.bin").read_bytes()
    for offset, count, _, _, _, name in table.tolist():
        stored, source = content[offset : offset + count], folder / name.decode()
        assert source.suffix == ".png" or stored == source.read_bytes()
        image = decode_image(stored, mode="UNCHANGED")
        assert (image.float() - decode(str(source), 3).float()).abs().mean() < 20


def test_out_is_there_already(folder: Path, said: Callable[..., str]) -> None:
    Path("out").mkdir()
    message = "imgcls pack: out=out is there already; give another directory, or delete it"
    assert said("pack", f"data.root={folder}", "out=out") == message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["out=o", "data=digits"], "expected data=imagefolder or its like"),
        (["out=o", "data.fraction=0.5"], "data.fraction=0.5: all images are packed"),
        (["out={root}/o"], "lies in data.root="),
        (["out=o", "format=tar"], "format=tar: input should be 'pixels', 'jpeg' or 'litdata'"),
        (["out=o", "size=0"], "size=0: input should be greater than or equal to 1"),
        (["out=o", "quality=101"], "quality=101: input should be less than or equal to 100"),
        (["out=o", "on_error=x"], "on_error=x: input should be 'refuse' or 'skip'"),
        ([], "out must be given: out=…"),
        (["out=/proc/o/o"], "out=/proc/o/o can't be written"),
    ],
)
def test_what_is_refused(arguments: list[str], expected: str, folder: Path, said: Callable[..., str]) -> None:
    root = [] if "data=digits" in arguments else [f"data.root={folder}"]
    message = said("pack", *root, *[a.format(root=folder) for a in arguments])
    assert expected in message and not Path("o").exists()


def test_an_unreadable_image_is_refused(folder: Path) -> None:
    bad = damage(folder / "dog" / "03.jpg")
    with pytest.raises(UserError, match="mend or delete it, or set on_error=skip") as caught:
        packed(folder)
    assert str(caught.value).startswith(f"{bad} can't be read as an image (") and left() == []


def test_an_unreadable_image_is_skipped(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = [damage(folder / name) for name in ("cat/00.jpg", "dog/03.jpg", "fox/11.jpg")]
    manifest = manifest_of(packed(folder, on_error="skip"))
    assert manifest["splits"]["train"]["classes"] == {"cat": 11, "dog": 11, "fox": 11}
    assert [text.partition(" can't")[0] for text in manifest["skipped"]] == list(map(str, bad))
    assert "3 unreadable images were skipped; manifest.json lists them" in caplog.messages
    names = np.load("out/train.npy")["name"].tolist()
    assert len(names) == 33 and not {b"cat/00.jpg", b"dog/03.jpg", b"fox/11.jpg"} & set(names)


def test_a_class_of_which_all_was_skipped(folder: Path) -> None:
    for path in (folder / "fox").iterdir():
        damage(path)
    with pytest.raises(UserError, match=r"no image of 1 of 3 classes \(fox\)"):
        packed(folder, on_error="skip")
    assert left() == []


def test_a_disk_that_is_too_small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = type("Usage", (), {"free": 100_000})
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda path: full)
    with pytest.raises(UserError, match=r"0.0 GB free; about 0.0 GB are needed"):  # 36 × 40 × 32 × 3 bytes
        packed(folder)
    packed(folder, size=16)


def test_an_interrupt_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = packing.Encoder.__getitem__

    def interrupted(self: packing.Encoder, index: int) -> Any:
        if index == 17:
            raise KeyboardInterrupt
        return real(self, index)

    monkeypatch.setattr(packing.Encoder, "__getitem__", interrupted)
    with pytest.raises(SystemExit) as ended:
        packed(folder)
    assert ended.value.code == 130 and left() == []


def test_two_at_once(folder: Path) -> None:
    from filelock import FileLock

    with FileLock(".out.partial.lock"), pytest.raises(UserError, match="is being packed by another process"):
        packed(folder)


def test_killed_in_the_middle(folder: Path) -> None:
    """After SIGKILL nothing looks finished, and the next start begins anew."""
    trap = (
        folder / "fox" / "08b.jpg"
    )  # reading it waits for ever; not among those that the disk check looks at
    os.mkfifo(trap)
    command = [sys.executable, "-m", "imgcls", "pack", f"data.root={folder}", "out=out", "data.num_workers=0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        end = time.monotonic() + 120
        while not Path(".out.partial/train.bin").exists() and time.monotonic() < end:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert left() == [".out.partial", ".out.partial.lock"] and not list(Path(".out.partial").glob("*.json"))
    with pytest.raises(UserError, match=r"data.root=.out.partial: there is no manifest.json"):
        PackedData(root=".out.partial")
    trap.unlink()
    Path(".out.partial/old.bin").write_bytes(b"x")
    out = packed(folder)
    assert left() == ["out"] and sorted(p.name for p in out.iterdir()) == [
        "manifest.json",
        "train.bin",
        "train.npy",
    ]


def test_the_config() -> None:
    config = composed("out=x", "data=imagefolder", "data.root=x", root="pack")
    configs.check(config)
    assert set(packing.PackConfig.__annotations__) == set(config)


def test_a_directory_with_a_comma_in_its_name(
    run: Callable[..., str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run("pack", f"data.root={folder}", "out=~/p, q", "size=16")
    assert (tmp_path / "p, q").is_dir() and not Path("~").exists()


def test_a_pack_of_measures_is_refused(said: Callable[..., str]) -> None:
    write_table(Path())
    given = ["pack", "out=packed", "data=table", "data.file=labels.csv"]
    measures = ["data.label_column=first", "data.measures=true"]
    assert "the data has measures; imgcls pack expects classes or labels" in said(*given, *measures)
    several = ["data.label_column=tags", "data.separator=;", "format=litdata"]
    assert "shards have one class; take format=jpeg or pixels" in said(*given, *several)
    assert not Path("packed").exists()
