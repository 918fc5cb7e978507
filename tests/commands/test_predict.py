"""imgcls predict: rows of image files, equal to those of imgcls eval."""

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from support.checkpoints import RGB, write_checkpoint
from support.command import imgcls
from support.composed import composed
from support.pictures import write_picture

from imgcls.commands import export, predict
from imgcls.config import check as configs
from imgcls.data.digits import Digits
from imgcls.data.files import find_images
from imgcls.spec import DataSpec
from imgcls.tasks.classification import ImageClassifier


@pytest.fixture
def checkpoint(folder: Path, tmp_path: Path) -> Path:
    return write_checkpoint(
        tmp_path / "net.ckpt", RGB, "data=imagefolder", f"data.root={folder}", "backbone=resnet20"
    )


def rows(path: Path | str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def test_equal_to_eval(
    checkpoint: Path, folder: Path, here: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of eval's test split, listed on standard input, in batches of another size than it had."""
    for i, name in enumerate(
        ("grey.png", "wide.webp", "turned.jpg")
    ):  # all that decoding and cropping must get right
        write_picture(folder / "cat" / name, seed=i, size=(90, 50), mode="L" if name == "grey.png" else "RGB")
    here("eval", f"checkpoint={checkpoint}", "split=all", "hydra.run.dir=tested")
    expected = rows("tested/predictions.csv")
    assert len(expected) == 39
    listed = "\n".join(row["name"] for row in reversed(expected)) + "\n\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed.encode())))
    here("predict", f"checkpoint={checkpoint}", "source=-", "batch_size=5", "num_workers=2", "out=out.csv")
    found = rows("out.csv")[::-1]
    assert [row["path"] for row in found] == [row["name"] for row in expected]
    assert [row["label_1"] for row in found] == [row["prediction"] for row in expected]
    ours, theirs = (
        [float(row[key]) for row in table]
        for key, table in (("probability_1", found), ("confidence", expected))
    )
    assert ours == pytest.approx(theirs, abs=2e-2 if torch.cpu._is_amx_tile_supported() else 1e-6)
    assert len(set(theirs)) > 30 and list(found[0]) == [
        "path",
        *(f"{w}_{i}" for i in (1, 2, 3) for w in ("label", "probability")),
    ]


def test_grey_images_in_memory_equal_to_eval(here: Callable[..., None]) -> None:
    digits = Digits()
    digits.setup()
    test = digits.sets["test"]
    for i in range(40):
        Image.fromarray(test.picture(i)[0].numpy()).save(f"{i:03}.png")
    checkpoint = write_checkpoint(Path("digits.ckpt"), digits.spec, "data=digits", "backbone=simple_cnn")
    here("eval", f"checkpoint={checkpoint}", "trainer.precision=32-true", "hydra.run.dir=tested")
    here(
        "predict",
        f"checkpoint={checkpoint}",
        "trainer.precision=32-true",
        "source='[0-9]*.png'",
        "out=out.jsonl",
        "top_k=1",
    )
    found = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    expected = rows("tested/predictions.csv")[:40]
    assert [row["path"] for row in found] == [f"{i:03}.png" for i in range(40)]
    assert [row["labels"] for row in found] == [[row["prediction"]] for row in expected]
    assert [row["probabilities"][0] for row in found] == pytest.approx(
        [float(r["confidence"]) for r in expected], abs=1e-6
    )


def broken_among(folder: Path, total: int, broken: int) -> list[str]:
    """Writes small pictures in folders of 100, broken ones among them; returns the paths of these."""
    first = write_picture(folder / "first.jpg", size=(24, 20))
    content, bad = first.read_bytes(), list[str]()
    damaged = (b"", content[:100], b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(40))
    for i in range(1, total):
        path = folder / f"{i // 100:03}" / f"{i:05}.jpg"
        path.parent.mkdir(exist_ok=True)
        if i % (total // broken) == 1:
            path.write_bytes(damaged[len(bad) % 4])
            bad.append(str(path))
        else:
            path.write_bytes(content)
    assert len(bad) == broken
    return bad


@pytest.mark.parametrize(
    ("total", "broken"), [(50, 5), pytest.param(10_000, 20, marks=pytest.mark.slow)], ids=["small", "large"]
)
def test_broken_files(checkpoint: Path, tmp_path: Path, total: int, broken: int) -> None:
    """In a process of its own: the others are done, in the order of the source, and the status is 1."""
    bad = broken_among(tmp_path / "many", total, broken)
    done = imgcls(
        "predict",
        f"checkpoint={checkpoint}",
        "source=many",
        "out=out/p.csv",
        "batch_size=16",
        "num_workers=2",
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"imgcls predict: {broken} of {total:,} could not be read; see out/p.csv.unreadable.csv; "
        "the others are done\n"
    )
    assert (
        f"{total - broken:,} images" in done.stdout
        and "images/s" in done.stdout
        and "predictions: out/p.csv" in done.stdout
    )
    assert sorted(os.listdir("out")) == ["p.csv", "p.csv.unreadable.csv"]
    refused = rows("out/p.csv.unreadable.csv")
    assert [str(tmp_path / row["path"]) for row in refused] == bad
    assert {row["reason"] for row in refused} >= {"the file is empty", "no image format that is known"}
    names = [row["path"] for row in rows("out/p.csv")]
    assert len(names) == total - broken and names == ["many/first.jpg", *sorted(names[1:])]


def test_top_k_embedding_and_flip(checkpoint: Path, folder: Path, here: Callable[..., None]) -> None:
    common = (
        f"checkpoint={checkpoint}",
        f"source={folder}/cat",
        "trainer.precision=32-true",
        "num_workers=0",
    )
    here("predict", *common, "out=plain.csv", "top_k=2", "embedding=true")
    here("predict", *common, "out=flip.jsonl", "tta=flip", "embedding=true")
    plain, flip = pd.read_csv("plain.csv"), pd.read_json("flip.jsonl", lines=True)
    assert list(plain.columns[:5]) == ["path", "label_1", "probability_1", "label_2", "probability_2"]
    embedding = plain.filter(like="embedding_").to_numpy(np.float32)
    assert embedding.shape == (12, 64) and len(plain.columns) == 5 + 64
    network = ImageClassifier.load_from_checkpoint(checkpoint).eval()
    images = torch.stack([predict_image(path) for path in plain["path"]])
    with torch.no_grad():
        probabilities = network(images).softmax(1)
        logits = network.network.get_submodule("linear")(torch.from_numpy(embedding))
        both = (probabilities + network(images.flip(-1)).softmax(1)) / 2
    torch.testing.assert_close(logits.softmax(1), probabilities)
    assert plain["probability_1"].to_numpy() == pytest.approx(probabilities.max(1).values.numpy(), abs=1e-6)
    assert [row[0] for row in flip["probabilities"]] == pytest.approx(both.max(1).values.numpy(), abs=1e-6)
    assert not torch.allclose(both, probabilities) and all(len(row) == 3 for row in flip["labels"])
    assert np.allclose(np.array(flip["embedding"].tolist()), embedding, atol=1e-6)  # of the image as it is


def predict_image(path: str) -> torch.Tensor:
    from imgcls.data.files import Files

    images, _, _ = Files(RGB).__getitems__([path])
    assert images is not None
    return images[0]


@pytest.mark.parametrize("backbone", ["squeezenet1_1", "mobilenet_v3_small", "vit_small"])
def test_embeddings_are_vectors(backbone: str, here: Callable[..., None]) -> None:
    """Where the head is a convolution, a layer among several, and a transformer's."""
    spec = DataSpec(("a", "b"), 3, 64, (0.5,) * 3, (0.5,) * 3)
    write_checkpoint(Path("net.ckpt"), spec, f"backbone={backbone}")
    write_picture(Path("one.jpg"))
    here(
        "predict", "checkpoint=net.ckpt", "source=one.jpg", "out=one.jsonl", "embedding=true", "num_workers=0"
    )
    (row,) = [json.loads(line) for line in Path("one.jsonl").read_text().splitlines()]
    assert (
        len(row["embedding"])
        == {"squeezenet1_1": 512, "mobilenet_v3_small": 1024, "vit_small": 384}[backbone]
    )
    assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)


def test_parquet(
    checkpoint: Path,
    folder: Path,
    here: Callable[..., None],
    said: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not one of the template's packages")
    monkeypatch.setattr("imgcls.commands.prediction_files.ROW_GROUP", 16)
    (folder / "cat" / "00.jpg").rename(folder / "cat" / os.fsdecode(b"00\xff.jpg"))  # a name that is no UTF-8
    here(
        "predict",
        f"checkpoint={checkpoint}",
        f"source={folder}",
        "out=p.parquet",
        "embedding=true",
        "batch_size=8",
    )
    here(
        "predict",
        f"checkpoint={checkpoint}",
        f"source={folder}",
        "out=p.jsonl",
        "embedding=true",
        "batch_size=8",
    )
    file = parquet.ParquetFile("p.parquet")
    assert file.num_row_groups == 3 and file.metadata.num_rows == 36
    table = file.read().to_pylist()
    lines = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    assert (
        table[0]["path"] == f"{folder}/cat/00\\udcff.jpg" and lines[0]["path"] == f"{folder}/cat/00\udcff.jpg"
    )
    for row, line in zip(table[1:], lines[1:], strict=True):
        assert row["path"] == line["path"] and row["labels"] == line["labels"]
        assert np.array_equal(np.float32(row["embedding"]), np.float32(line["embedding"]))


def test_missing_pyarrow_is_said(said: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = said("predict", "checkpoint=x", "source=x", "out=p.parquet")
    assert message.startswith(
        "imgcls predict: out=p.parquet needs the package pyarrow, which is not installed"
    )


def test_what_a_source_yields(folder: Path) -> None:
    for path in (
        "pictures/b.PNG",
        "pictures/a.jpg",
        "pictures/.hidden.jpg",
        "pictures/dog/more/deep.gif",
        "pictures/.git/x.jpg",
    ):
        write_picture(Path(path))
    Path("pictures/notes.txt").touch()
    whole = list(find_images("pictures", []))
    assert whole[:3] == ["pictures/a.jpg", "pictures/b.PNG", "pictures/cat/00.jpg"] and len(whole) == 36 + 3
    assert whole[25:27] == ["pictures/dog/11.jpg", "pictures/dog/more/deep.gif"]
    assert list(find_images("pictures/*/0[01].jpg", [])) == [
        f"pictures/{c}/0{i}.jpg" for c in ("cat", "dog", "fox") for i in (0, 1)
    ]
    assert list(find_images("pictures/*", [])) == ["pictures/a.jpg", "pictures/b.PNG"]
    assert (
        sorted(find_images("pictures/**/*.*", [])) == sorted(whole) == sorted(find_images("pictures/**", []))
    )
    assert list(find_images("pictures/notes.txt", [])) == ["pictures/notes.txt"]  # who names a file means it


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("source=nowhere",), "source=nowhere: there is no such file or folder"),
        (
            ("source='no/*.jpg'",),
            "source=no/*.jpg: there is no image; expected files that end in one of .bmp",
        ),
        (("source=empty",), "source=empty: there is no image"),
        (("source=-",), "source=-: there is no image; expected a path a line"),
        (("source=pictures", "top_k=0"), "top_k=0: "),
        (("source=pictures", "tta=rotate"), "tta=rotate: "),
        (
            ("source=pictures", "out=p.txt"),
            "out=p.txt: expected a file name that ends in .csv or .jsonl or .parquet",
        ),
        (
            ("source=pictures", "out=there.csv"),
            "out=there.csv: there.csv is there already; give another name, or overwrite=true",
        ),
        (
            ("source=pictures", "out=there.csv/p.csv", "overwrite=true"),
            "out=there.csv/p.csv can't be written",
        ),
        (("source=pictures", "trainer.precision=7"), "trainer"),
        ((), "source must be given"),
    ],
)
def test_mistakes_are_one_line(
    checkpoint: Path,
    said: Callable[..., str],
    arguments: tuple[str, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("empty").mkdir()
    Path("there.csv").write_text("mine")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    assert said("predict", f"checkpoint={checkpoint}", *arguments).startswith(f"imgcls predict: {words}")
    assert Path("there.csv").read_text() == "mine"


def test_overwriting_leaves_other_outputs_alone(
    checkpoint: Path, folder: Path, here: Callable[..., None], said: Callable[..., str]
) -> None:
    """Each output has a list of unreadable files of its own, so that several fit into one folder."""
    (folder / "cat" / "bad.jpg").touch()
    common = (f"checkpoint={checkpoint}", "num_workers=0")
    assert "see p.csv.unreadable.csv" in said("predict", *common, f"source={folder}/cat", "out=p.csv")
    assert "see p.jsonl.unreadable.csv" in said("predict", *common, f"source={folder}/cat", "out=p.jsonl")
    here("predict", *common, f"source={folder}/cat/00.jpg", "out=p.csv", "overwrite=true")
    assert len(rows("p.csv")) == 1 and not Path("p.csv.unreadable.csv").exists()
    assert len(rows("p.jsonl.unreadable.csv")) == 1


def test_nothing_is_left_of_an_interrupted_run(
    checkpoint: Path, folder: Path, here: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(predict.Predictor, "__call__", stop)
    with pytest.raises(SystemExit) as ended:
        here("predict", f"checkpoint={checkpoint}", f"source={folder}", "out=o/p.csv", "num_workers=0")
    assert ended.value.code == 130 and os.listdir("o") == []


def test_configs_compose() -> None:
    for root, kind in (("predict", predict.PredictConfig), ("export", export.ExportConfig)):
        config = composed("checkpoint=x", "out=x", *(["source=x"] if root == "predict" else []), root=root)
        assert {field.name for field in fields(kind)} == set(config)
        configs.typed(config, kind, "")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's figures of a process")
def test_memory_is_flat(checkpoint: Path, tmp_path: Path) -> None:
    """Resident memory of the process at 1,000 and at 10,000 files, of which all rows have embeddings."""
    content = write_picture(tmp_path / "one.jpg").read_bytes()
    for i in range(10_000):
        path = tmp_path / "many" / f"{i // 100:03}" / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    command = [
        sys.executable,
        "-m",
        "imgcls",
        "predict",
        f"checkpoint={checkpoint}",
        "source=many",
        "out=out/p.csv",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    samples = []  # rows written, bytes resident
    with subprocess.Popen([*command, "num_workers=1", "embedding=true"], env=environment) as process:
        while process.poll() is None and not Path("out/p.csv").exists():
            for file in Path("out").glob(".partial-*/p.csv"):
                with contextlib.suppress(FileNotFoundError):  # renamed
                    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
                    samples.append((file.read_bytes().count(b"\n"), pages * os.sysconf("SC_PAGE_SIZE")))
            time.sleep(0.05)
    assert process.returncode == 0 and len(rows("out/p.csv")) == 10_000
    early, late = (next(memory for done, memory in samples if done >= least) for least in (1_000, 9_500))
    print(f"{early / 1e6:.1f} MB at 1,000 files, {late / 1e6:.1f} MB at 10,000")
    assert late - early < 5e6  # 550 bytes an image
