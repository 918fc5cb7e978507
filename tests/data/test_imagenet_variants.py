"""ImageNet's variants, each by a made set of pictures: the layouts, and how they are scored."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from support.checkpoints import write_checkpoint
from support.pictures import write_picture
from torch.nn import functional as F

from imgcls.commands.eval import data_config
from imgcls.data import imagenet_labels as labels
from imgcls.data.batch import Batch
from imgcls.data.loading.decode import decode
from imgcls.data.loading.preparation import evaluation_transform
from imgcls.errors import UserError
from imgcls.report.classification import ClassificationReport
from imgcls.spec import DataSpec
from imgcls.tasks.classification import ImageClassifier
from imgcls.tasks.scoring import Scoring
from imgcls.tasks.task import load_checkpoint

IDS = labels.wordnet_ids()
CHOSEN = list(range(0, 1000, 34))[:30]  # classes of the made sets
PICTURES = 30
BACKBONE = {"_target_": "imgcls.backbones.simple_cnn.simple_cnn", "width": 4}
QUICK = ("data=imagenet", "data.num_workers=0", "trainer.accelerator=cpu", "hydra.run.dir=tested")
Eval = Callable[..., dict[str, float]]


class Made:
    """A network of the 1,000 classes, pictures, and the network's logits for these `(N, 1000)`."""

    def __init__(self, folder: Path) -> None:
        self.files = [write_picture(folder / f"{i}.JPEG", seed=i, size=(20, 20)) for i in range(PICTURES)]
        names = tuple(labels.class_words()[wnid] for wnid in IDS)
        spec = DataSpec(names, 3, 16, (0.5,), (0.2,), crop_ratio=0.8)
        self.checkpoint = write_checkpoint(folder / "net.ckpt", spec, "backbone.width=4")
        self.task, _ = load_checkpoint(self.checkpoint)
        self.logits = self.seen(spec)

    def seen(self, spec: DataSpec) -> torch.Tensor:
        transform = evaluation_transform(spec)
        with torch.no_grad():
            found: torch.Tensor = self.task(torch.stack([transform(decode(str(f), 3)) for f in self.files]))
        return found

    def put(self, root: Path, classes: list[int], name: Callable[[int], str] = IDS.__getitem__) -> Path:
        """Copies each picture into the folder of its class, and makes those of CHOSEN that have none."""
        for k in CHOSEN:
            (root / name(k)).mkdir(parents=True, exist_ok=True)
        for file, k in zip(self.files, classes, strict=True):
            (root / name(k)).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, root / name(k))
        return root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield Made(folder)


@pytest.fixture
def evaluate(made: Made, here: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Eval:
    """Evaluates the network from the command line; returns metrics.json."""
    monkeypatch.setattr(ClassificationReport, "draw", lambda *_: None)

    def run(*arguments: str) -> dict[str, float]:
        chosen = (
            [] if any(a.startswith("checkpoint=") for a in arguments) else [f"checkpoint={made.checkpoint}"]
        )
        here("eval", *chosen, *QUICK, *arguments)
        found: dict[str, float] = json.loads(Path("tested/metrics.json").read_text())
        return found

    return run


def half_right(best: torch.Tensor, others: list[int]) -> list[int]:
    """Returns classes for the pictures: `best (N,)` of every second, and another one of the others."""
    wrong = [next(o for o in others[i:] + others if o != k) for i, k in enumerate(best.tolist())]
    return [k if i % 2 else wrong[i] for i, k in enumerate(best.tolist())]


def expected(logits: torch.Tensor, classes: list[int]) -> dict[str, float]:
    targets = torch.tensor(classes)
    five = (logits.topk(5).indices == targets[:, None]).any(1)
    values = {"top1": (logits.argmax(1) == targets).float().mean(), "top5": five.float().mean()}
    return {f"test/{k}": float(v) for k, v in (values | {"loss": F.cross_entropy(logits, targets)}).items()}


def check(found: dict[str, float], wanted: dict[str, float]) -> None:
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(("variant", "place"), [("a", "imagenet-a"), ("r", "imagenet-r"), ("a", ".")])
def test_a_and_r_are_scored_among_their_own_classes(
    variant: str, place: str, made: Made, evaluate: Eval, capsys: pytest.CaptureFixture[str]
) -> None:
    """As published: the other logits are left out. Half of the pictures lie where the best of the rest is."""
    own = made.logits[:, CHOSEN]
    classes = half_right(torch.tensor(CHOSEN)[own.argmax(1)], CHOSEN)
    made.put(Path("root") / place, classes)
    (Path("root") / place / "README.txt").touch()
    found = evaluate(f"data.variant={variant}", "data.root=root")
    wanted = expected(own, [CHOSEN.index(k) for k in classes])
    assert wanted["test/top1"] == 0.5 and expected(made.logits, classes)["test/top1"] < 0.2  # it matters
    check(found, wanted)
    said = "".join(capsys.readouterr())
    assert f"has 30 of the 200 classes of data.variant={variant}" in said
    scores = pd.read_csv("tested/per_class.csv").set_index("class")
    weakest = re.search(r"weakest classes\W+(.*?) \(f1", said)
    assert weakest and scores["support"][weakest[1]] > 0  # none that the set lacks
    confidences = pd.read_csv("tested/predictions.csv").sort_values("name")["confidence"]
    order = np.argsort([f"root/{IDS[classes[i]]}/{i}.JPEG" for i in range(PICTURES)])
    assert np.allclose(confidences, own[order].softmax(1).amax(1), atol=1e-4)


@pytest.mark.parametrize("place", ["imagenetv2-matched-frequency-format-val", "."])
def test_v2_is_ordered_by_number(place: str, made: Made, evaluate: Eval) -> None:
    classes = half_right(made.logits.argmax(1), CHOSEN)
    made.put(Path("root") / place, classes, str)
    check(evaluate("data.variant=v2", "data.root=root"), expected(made.logits, classes))


def test_sketch(made: Made, evaluate: Eval) -> None:
    classes = half_right(made.logits.argmax(1), CHOSEN)
    made.put(Path("root/sketch"), classes)
    check(evaluate("data.variant=sketch", "data.root=root"), expected(made.logits, classes))


@pytest.mark.parametrize("place", ["contrast/3", "digital/contrast/3"])
def test_c_is_seen_whole(place: str, made: Made, evaluate: Eval) -> None:
    """Its pictures are the crops of 224 pixels: published numbers are of these, not of their centres."""
    logits = made.seen(DataSpec(("a", "b"), 3, 16, (0.5,), (0.2,), crop_ratio=1.0))
    classes = half_right(logits.argmax(1), CHOSEN)
    made.put(Path("root") / place, classes)
    made.put(Path("root") / place.replace("3", "4"), classes[::-1])
    found = evaluate("data.variant=c", "data.root=root", "data.corruption=contrast", "data.severity=3")
    check(found, expected(logits, classes))
    assert not torch.equal(logits, made.logits)


@pytest.mark.parametrize("flat", [False, True])
def test_real_takes_any_label(flat: bool, made: Made, evaluate: Eval) -> None:
    """Of the labels of an image any is right; images without labels are left out."""
    best = made.logits.topk(7).indices.tolist()
    kinds: list[list[int]] = [[], [0, 6], [6, 3], [6], [1, 0]]  # places among the likeliest classes
    real = [[row[place] for place in kinds[i % 5]] for i, row in enumerate(best)]
    for i, file in enumerate(made.files):
        place = Path("root/val") / ("" if flat else IDS[CHOSEN[i]])
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place / f"{labels.IMAGE.format(i + 1)}.JPEG")
    Path("root/real.json").write_text(json.dumps(real))
    found = evaluate("data.variant=real", "data.root=root")
    assert found["test/top1"] == pytest.approx(12 / 24) and found["test/top5"] == pytest.approx(18 / 24)
    assert len(pd.read_csv("tested/predictions.csv")) == 24


def test_real_of_fewer_classes(made: Made, evaluate: Eval, capsys: pytest.CaptureFixture[str]) -> None:
    """A network of 30 of the classes: images that have a label of these count, and these labels."""
    kinds = [[CHOSEN[3], 1], [1, 2], [CHOSEN[i] for i in (4, 9)], [CHOSEN[7]], []]
    real = [kinds[i % 5] for i in range(PICTURES)]
    Path("root/val").mkdir(parents=True)
    for i, file in enumerate(made.files):
        shutil.copy(file, Path("root/val") / f"{labels.IMAGE.format(i + 1)}.JPEG")
    Path("root/real.json").write_text(json.dumps(real))
    names = tuple(labels.class_words()[IDS[k]] for k in reversed(CHOSEN))  # in an order of its own
    spec = DataSpec(names, 3, 16, (0.5,), (0.2,), crop_ratio=0.8)
    few = write_checkpoint(Path("few.ckpt"), spec, "backbone.width=4")
    transform = evaluation_transform(spec)
    images = torch.stack([transform(decode(str(file), 3)) for file in made.files])
    with torch.no_grad():
        best = load_checkpoint(few)[0](images).argmax(1).tolist()
    counted = [i for i in range(PICTURES) if i % 5 in (0, 2, 3)]
    right = sum(CHOSEN[::-1][best[i]] in real[i] for i in counted)
    found = evaluate("data.variant=real", "data.root=root", f"checkpoint={few}")
    assert found["test/top1"] == pytest.approx(right / len(counted))
    assert len(pd.read_csv("tested/predictions.csv")) == len(counted) == 18
    assert "18 of 24 test images have a label among the 30 of 1,000 classes" in "".join(capsys.readouterr())


def test_labels_of_the_training_are_not_those_of_a_variant(made: Made) -> None:
    """A file of labels that the training had is no real.json, and its list of exclusions is of train."""
    trained = {"cwd": "/", "data": {"_target_": "imgcls.data.imagenet.ImageNet", "root": "r"}}
    trained["data"] |= {"labels": "val.txt", "exclude": "bad.txt"}  # type: ignore[operator]
    found = data_config(trained, {"variant": "real"}, made.task.spec)
    assert not {"labels", "exclude"} & found.keys() and found["root"] == "/r"
    assert data_config(trained, {}, made.task.spec)["labels"] == "/val.txt"


def test_a_file_nested_too_deep_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match=r"expected real\.json of ReaL"):
        labels.real_labels_of(["a"], tmp_path / "real.json")


def test_the_real_labels_that_ship() -> None:
    names = [f"{labels.IMAGE.format(i)}.JPEG" for i in (1, 2, 3, 50_000)]
    assert labels.real_labels_of(names, None)[:3] == [[], [970, 795], [230, 231]]


def test_any_of_several_labels_by_hand() -> None:
    """Four images and three classes: the likeliest of an image's labels is its target."""
    names = ("cat", "dog", "fox")
    task = ImageClassifier(asdict(DataSpec(names, 1, 8, (0.0,), (1,))), BACKBONE)
    task.scored = Scoring(any_label=True)
    logits = torch.tensor([[3.0, 2, 1], [3, 2, 1], [1, 3, 2], [0, 1, 5]])
    task.forward = lambda images: logits  # type: ignore[method-assign, assignment]
    sets = torch.tensor([[0, 1, 1], [1, 0, 1], [0, 1, 0], [1, 0, 0]], dtype=torch.uint8)
    batch = Batch(torch.zeros(4, 1, 1, 1, dtype=torch.uint8), sets, torch.arange(4), torch.ones(4) > 0)
    assert task.compute(batch, "test").targets.tolist() == [1, 0, 1, 0]
    views = [task.compute(batch, "test")._replace(logits=view) for view in (logits, logits.flip(1))]
    assert task.averaged(views, sets).targets[0] == 2  # in the mean of both views fox is likelier than dog
    others = torch.tensor([True, False, False])  # cat is no class of the set
    task.scored = Scoring(others, any_label=True)
    out = task.compute(batch._replace(targets=torch.tensor([[0, 1, 0]] * 4, dtype=torch.uint8)), "test")
    assert out.logits.argmax(1).tolist() == [1, 1, 1, 2]
    own = torch.tensor([[2.0, 1], [2, 1], [3, 2], [1, 5]])
    assert float(out.loss) == pytest.approx(float(F.cross_entropy(own, torch.zeros(4, dtype=torch.long))))


REFUSED = {
    "v2": "holds no data.variant=v2; expected root/<class from 0 to 999>/… or root/imagenetv2-…/<class",
    "a": "holds no data.variant=a; expected root/<WordNet id>/… or root/imagenet-a/<WordNet id>/…",
    "r": "holds no data.variant=r; expected root/<WordNet id>/… or root/imagenet-r/<WordNet id>/…",
    "sketch": "holds no data.variant=sketch; expected root/<WordNet id>/… or root/sketch/<WordNet id>/…",
    "c": "expected root/<corruption>/<severity>/<WordNet id>/…; corruptions in root: none",
    "real": "holds no ImageNet; expected root/train/<WordNet id>/…",
}


@pytest.mark.parametrize("variant", REFUSED)
def test_a_variant_that_is_not_there(variant: str, made: Made, said: Callable[..., str]) -> None:
    Path("root").mkdir()
    more = ("data.corruption=fog", "data.severity=1") if variant == "c" else ()
    arguments = ("data.root=root", f"data.variant={variant}", *more, *QUICK)
    assert REFUSED[variant] in said("eval", f"checkpoint={made.checkpoint}", *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data.variant=c"], "give data.corruption=NAME and data.severity=1 to 5; expected"),
        (["data.variant=c", "data.corruption=fog", "data.severity=6"], "data.severity=6"),
        (["data.variant=c", "data.corruption=fog", "data.severity=2"], "there is no such folder"),
        (["data.variant=v3"], "data.variant=v3"),
        (["data.severity=2"], "these are for data.variant=c alone"),
        (["data.variant=v2"], "has imagenetv2-a, imagenetv2-b; give one of them as data.root"),
        (["data.variant=a"], "has the folder 'n99999999', which is no WordNet id of ImageNet-1k"),
    ],
)
def test_mistakes(arguments: list[str], words: str, made: Made, said: Callable[..., str]) -> None:
    for name in ("fog/1/n01440764", "imagenetv2-a/0", "imagenetv2-b/0", "imagenet-a/n99999999"):
        Path("root", name).mkdir(parents=True)
    assert words in said("eval", f"checkpoint={made.checkpoint}", "data.root=root", *arguments, *QUICK)


@pytest.mark.parametrize("verb", ["train", "pack", "inspect"])
def test_a_variant_is_for_evaluation(verb: str, made: Made, said: Callable[..., str]) -> None:
    made.put(Path("root"), [0] * PICTURES)
    more = {"pack": ["out=packed"], "train": ["trainer=cpu"]}.get(verb, [])
    words = "data.variant=a is a test set alone: to train, or for knn or features, leave data.variant out"
    assert words in said(verb, "data=imagenet", "data.root=root", "data.variant=a", *more)


def test_another_task_is_refused(made: Made, said: Callable[..., str]) -> None:
    made.put(Path("root"), [0] * PICTURES)
    content = torch.load(made.checkpoint, weights_only=True)
    content["task"] = "imgcls.tasks.multilabel.MultiLabelClassifier"
    del content["hyper_parameters"]["class_weights"], content["hyper_parameters"]["temperature"]
    torch.save(content, "several.ckpt")
    message = said("eval", "checkpoint=several.ckpt", "data.root=root", "data.variant=a", *QUICK)
    assert "the data scores one class for an image; the checkpoint's task is MultiLabelClassifier" in message
