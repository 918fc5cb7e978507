"""imgcls export: one file that gives what the checkpoint gives."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from sklearn.datasets import load_sample_images
from support.checkpoints import write_checkpoint
from support.command import ROOT
from support.pictures import write_picture

from imgcls.backbones.weights import load_weights
from imgcls.commands import export
from imgcls.data.digits import Digits
from imgcls.data.files import Files
from imgcls.spec import DataSpec
from imgcls.tasks.classification import ImageClassifier
from imgcls.tasks.published import published

SIZES = {
    "resnet20": 32,
    "mobilenet_v3_small": 224,
    "efficientnet_b0": 224,
    "vit_small": 224,
    "inception_v3": 299,
}
CASES = [
    pytest.param(name, kind, marks=[] if name == "resnet20" else pytest.mark.slow)
    for name in SIZES
    for kind in ("onnx", "torch_export")
]

PROGRAM = ROOT / "docs" / "predict_and_export.md"


def rgb(size: int) -> DataSpec:
    return DataSpec(
        ("cat", "dog", "fox"), 3, size, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 0.875
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """scikit-learn's two photographs, each whole and in quarters."""
    (tmp_path / "photos").mkdir()
    for i, photo in enumerate(load_sample_images().images):
        height, width = photo.shape[0] // 2, photo.shape[1] // 2
        parts = [photo, *(photo[y : y + height, x : x + width] for y in (0, height) for x in (0, width))]
        for j, part in enumerate(parts):
            Image.fromarray(part).save(tmp_path / "photos" / f"{i}{j}.jpg", quality=95)
    return tmp_path / "photos"


def outputs(path: Path, images: np.ndarray) -> tuple[np.ndarray, dict[str, str]]:
    """Returns the logits of an exported file and what it says of itself, from the file alone."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return session.run(["logits"], {"images": images})[0], dict(
            session.get_modelmeta().custom_metadata_map
        )
    files = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=files)
    with torch.no_grad():
        return program.module()(torch.from_numpy(images)).numpy(), json.loads(files["metadata.json"])


@pytest.mark.parametrize(("backbone", "kind"), CASES)
def test_the_same_logits(
    backbone: str, kind: str, photos: Path, here: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    spec = rgb(SIZES[backbone])
    images, _, _ = Files(spec).__getitems__([str(path) for path in sorted(photos.iterdir())])
    assert images is not None and len(images) == 10
    checkpoint = write_checkpoint(Path("net.ckpt"), spec, f"backbone={backbone}", images=images)
    out = Path("there") / ("net.onnx" if kind == "onnx" else "net.pt2")
    here("export", f"checkpoint={checkpoint}", f"format={kind}", f"out={out}", f"images={photos}")
    said = capsys.readouterr().out
    assert f"batches of 1 and 7, images of {photos}" in said
    print(backbone, kind, said)
    assert {path.name for path in out.parent.iterdir()} == {out.name, f"{out.name}.safetensors"}

    classifier = ImageClassifier.load_from_checkpoint(checkpoint).eval()
    with torch.no_grad():
        expected = classifier(images).numpy()
    most = 1e-4 * max(1, np.abs(expected).max())
    assert float(re.findall(r"checkpoint: (\S+)", said)[0]) <= most
    for count in (1, 3, 10):  # other batch sizes than it was made with
        found, facts = outputs(out, images[:count].numpy())
        np.testing.assert_allclose(found, expected[:count], atol=most)
    assert np.ptp(expected, axis=0).max() > 1e-3  # the images are told apart
    expected_facts = json.loads(json.dumps(asdict(spec))) | {"resize": spec.resize[0]}
    expected_facts["activation"] = "softmax"
    assert {key: json.loads(value) for key, value in facts.items()} == expected_facts
    check_weights(Path(f"{out}.safetensors"), classifier, spec)


def check_weights(path: Path, trained: ImageClassifier, spec: DataSpec) -> None:
    """The weights are what backbone.weights takes."""
    hparams: dict[str, Any] = dict(trained.hparams)
    fresh = ImageClassifier(asdict(spec), hparams["backbone"], hparams["loss"]).network
    load_weights(fresh, path)
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.parameters(), trained.network.parameters(), strict=True)
    )
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["class_names"]) == ["cat", "dog", "fox"]


def test_grey_compiled_scaled(here: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    """A network for grey images that was to be compiled and has a temperature, checked on its own data."""
    spec = Digits().spec
    write_checkpoint(
        Path("run/checkpoints/best.ckpt"), spec, "data=digits", "backbone=simple_cnn", compile=True
    )
    content = torch.load("run/checkpoints/best.ckpt", weights_only=True) | {"temperature": 2.0}
    torch.save(content, "run/checkpoints/best.ckpt")
    here("export", "checkpoint=run", "out=digits.onnx")
    said = capsys.readouterr().out
    assert "test images)" in said and "exported: digits.onnx" in said
    assert said.count("\n") == 2, said  # nothing of the exporter's own
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    found, facts = outputs(Path("digits.onnx"), images)
    network = ImageClassifier.load_from_checkpoint("run/checkpoints/best.ckpt").network.eval()
    with torch.no_grad():
        mean, std = json.loads(facts["mean"])[0], json.loads(facts["std"])[0]
        expected = network.forward((torch.from_numpy(images) / 255 - mean) / std) / 2  # not compiled
    np.testing.assert_allclose(found, expected, atol=1e-5)
    simple = {"_target_": "imgcls.backbones.simple_cnn.simple_cnn"}
    for weights in ("run", "digits.onnx.safetensors"):  # they say the temperature, too
        task = published({**simple, "weights": weights}, spec)
        with torch.no_grad():
            torch.testing.assert_close(task(torch.from_numpy(images)), expected, atol=1e-5, rtol=1e-5)
        assert published({**simple, "weights": weights}, spec, head=False).temperature == 1


def test_a_failed_check_leaves_no_file(
    here: Callable[..., None], said: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_checkpoint(
        Path("net.ckpt"), rgb(32), "data=imagefolder", "data.root=gone", "backbone=simple_cnn"
    )
    arguments = ("export", f"checkpoint={checkpoint}", "format=torch_export", "out=o/net.pt2")
    whole = export.Whole

    def wrong(classifier: Any, network: Any) -> Any:
        classifier.shift = classifier.shift + 1e-3  # of the file as of the checkpoint…
        module = whole(classifier, network)
        classifier.shift = classifier.shift - 1e-3  # …but not any more
        return module

    monkeypatch.setattr(export, "Whole", wrong)
    message = said(*arguments)
    assert message.startswith("imgcls export: out=o/net.pt2 was not kept: it differs from net.ckpt by ")
    words = re.search(
        r"by (\S+) on logits of up to (\S+) .*random pixels\); expected at most (\S+);", message
    )
    assert words is not None and list(Path("o").iterdir()) == []
    difference, largest, allowed = map(float, words.groups())
    assert largest > 2 and allowed == pytest.approx(1e-4 * largest, rel=0.05)
    here(*arguments, f"tolerance={difference / 2}")  # a share of the largest logit
    assert len(list(Path("o").iterdir())) == 2
    Path("o/net.pt2").unlink()
    assert "o/net.pt2.safetensors is there already" in said(*arguments)


def test_two_formats_in_one_folder(here: Callable[..., None]) -> None:
    """Of two checkpoints: the weights beside each file are those of its own."""
    for seed, (format_, name) in enumerate((("onnx", "net.onnx"), ("torch_export", "net.pt2"))):
        write_checkpoint(Path("net.ckpt"), rgb(32), "backbone=simple_cnn", f"backbone.width={4 + seed}")
        here(
            "export",
            "checkpoint=net.ckpt",
            f"format={format_}",
            f"out=o/{name}",
            f"images={write_picture(Path('a.png'))}",
        )
        check_weights(
            Path(f"o/{name}.safetensors"), ImageClassifier.load_from_checkpoint("net.ckpt"), rgb(32)
        )
    assert len(list(Path("o").iterdir())) == 4


def test_random_pixels_are_said(here: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(Path("net.ckpt"), rgb(32), "data=cifar10", "data.root=nowhere", "backbone=simple_cnn")
    here("export", "checkpoint=net.ckpt", "format=torch_export", "out=net.pt2")
    said = capsys.readouterr().out
    assert "checked on random pixels; images=FOLDER gives real ones (data.root=" in said
    assert not Path("nowhere").exists()  # nothing is downloaded for it


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("out=net.pt2",), "out=net.pt2: expected a file name that ends in .onnx"),
        (("format=torch_export", "out=net.onnx"), "out=net.onnx: expected a file name that ends in .pt2"),
        (("format=tflite", "out=net.tflite"), "format=tflite: "),
        (
            ("out=there.onnx",),
            "out=there.onnx: there.onnx is there already; give another name, or overwrite=true",
        ),
        (("out=net.onnx", "tolerance=0"), "tolerance=0"),
        (("out=net.onnx", "images=nowhere"), "images=nowhere: there is no such file or folder"),
        (
            ("out=net.onnx", "images=broken.jpg"),
            "images=broken.jpg: broken.jpg can't be read as an image (the file is empty)",
        ),
        (("out=there.onnx/net.onnx", "images=one.jpg"), "out=there.onnx/net.onnx can't be written"),
        ((), "out must be given"),
    ],
)
def test_mistakes_are_one_line(said: Callable[..., str], arguments: tuple[str, ...], words: str) -> None:
    write_checkpoint(Path("net.ckpt"), rgb(32), "backbone=simple_cnn")
    write_picture(Path("one.jpg"))
    for name in ("there.onnx", "broken.jpg"):
        Path(name).touch()
    assert said("export", "checkpoint=net.ckpt", *arguments).startswith(f"imgcls export: {words}")


def test_missing_packages_are_said(said: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = said("export", "checkpoint=x", "out=net.onnx")
    assert message.endswith(
        "needs onnx and onnxscript and onnxruntime; in the clone: pip install -e '.[export]'"
    )


def write_deep(path: Path, kind: str) -> Path:
    """Writes a picture of squares with more than 8 bits: 16 of them, or floats in [0, 1]."""
    grey = np.asarray(Image.open(write_picture(path.with_suffix(".png"), size=(90, 61), mode="L")))
    deep = grey.astype(np.uint16) * 256 + 99 if kind == "16 bits" else (grey / 255).astype(np.float32)
    Image.fromarray(deep).save(path)
    return path


@pytest.mark.parametrize("channels", [1, 3])
def test_the_readme_example(channels: int, here: Callable[..., None], photos: Path, capsys: Any) -> None:
    """The document's program, as it stands there, says what imgcls predict says, of every kind of image."""
    (program,) = re.findall(r"```python\n(.*?onnxruntime.*?)```", PROGRAM.read_text(), re.S)
    assert "imgcls" not in program and "torch" not in program
    interpolation: Literal["bilinear", "bicubic"] = "bilinear" if channels == 3 else "bicubic"
    ratio = 0.875 if channels == 3 else 0.9
    spec = DataSpec(
        ("cat", "dog", "fox"), channels, 64, (0.5,) * channels, (0.25,) * channels, interpolation, ratio
    )
    checkpoint = write_checkpoint(Path("net.ckpt"), spec, "backbone=resnet20")
    here("export", f"checkpoint={checkpoint}", "out=model.onnx", f"images={photos}")
    kinds = [photos / "00.jpg", write_picture(photos / "grey.png", size=(70, 90), mode="L")]
    kinds += [write_deep(photos / "deep.png", "16 bits"), write_deep(photos / "float.tif", "floats")]
    common = (f"checkpoint={checkpoint}", "num_workers=0", "trainer.precision=32-true")
    here("predict", *common, f"source={photos}", "out=p.jsonl")
    rows = {row["path"]: row for row in map(json.loads, Path("p.jsonl").read_text().splitlines())}
    for path in kinds:
        capsys.readouterr()
        exec(compile(program.replace("photo.jpg", str(path)), PROGRAM.name, "exec"), {})
        label, probability = capsys.readouterr().out.split()
        assert label == rows[str(path)]["labels"][0], path
        assert float(probability) == pytest.approx(rows[str(path)]["probabilities"][0], abs=0.01), path
