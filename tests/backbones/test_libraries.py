"""Every network of torchvision and each family of timm: shapes, heads, a training step, weights, errors."""

from typing import Any

import pytest
import timm
import torch
import torchvision.models as models
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum

from imgcls.backbones.build import build_network, try_shapes
from imgcls.backbones.layers import head_names
from imgcls.backbones.timm import timm_network
from imgcls.backbones.torchvision import adapt_stem, torchvision_network
from imgcls.data.batch import Batch
from imgcls.errors import UserError
from imgcls.tasks.classification import ImageClassifier

TORCHVISION = "imgcls.backbones.torchvision.torchvision_network"
TIMM = "imgcls.backbones.timm.timm_network"

FAMILIES = [
    "resnet10t", "resnetv2_18", "seresnet18", "efficientnet_b0", "mobilenetv3_small_050",
    "mobilenetv4_conv_small_035", "convnext_atto", "convnextv2_atto", "vit_tiny_patch16_224",
    "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224",
    "beit_base_patch16_224",
    "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "maxvit_pico_rw_256", "coatnet_nano_rw_224",
    "regnetx_002", "densenet121", "vgg11", "inception_v4", "xception41", "mixer_s32_224", "poolformer_s12",
    "caformer_s18", "pvt_v2_b0", "levit_128s", "efficientformer_l1", "efficientformerv2_s0", "repvgg_a0",
    "ghostnet_050", "hrnet_w18_small", "dpn48b", "nfnet_l0", "rexnet_100", "tiny_vit_5m_224",
    "edgenext_xx_small", "fastvit_t8", "eva02_tiny_patch14_224", "cait_xxs24_224", "crossvit_tiny_240",
    "volo_d1_224",
    "xcit_nano_12_p16_224", "twins_svt_small", "hiera_tiny_224", "mobilevit_xxs", "repvit_m0_9",
    "resmlp_12_224", "davit_tiny", "efficientvit_b0", "res2net50_14w_8s", "hgnetv2_b0", "starnet_s050",
]  # fmt: skip


def check(network: nn.Module, channels: int, size: int) -> None:
    """Fails unless the network gives 7 logits, in training too, and its heads give 7 each."""
    assert network.head_names and not isinstance(network.head_names, str)
    for name in head_names(network):
        head = network.get_submodule(name)
        assert 7 in (getattr(head, "out_features", None), getattr(head, "out_channels", None)), name
    outputs = network.to("meta").train()(torch.empty(2, channels, size, size, device="meta"))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert [out.shape for out in outputs] == [(2, 7)] * len(outputs)


def smallest_first() -> list[Any]:
    """Torchvision's networks; all but the smallest of a family, which are made alike, are slow tests."""

    def size(name: str) -> int:
        return int(models.get_model_weights(name).DEFAULT.meta["num_params"])  # type: ignore[attr-defined]

    found, families = list[Any](), set[str]()
    for name in sorted(models.list_models(module=models), key=size):
        family = models.get_model_builder(name).__module__
        found.append(pytest.param(name, marks=pytest.mark.slow) if family in families else name)
        families.add(family)
    return found


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", smallest_first())
def test_torchvision(name: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 299 if name == "inception_v3" else 224
    if name.startswith("regnet"):  # reads values when it is made; the memory that nothing fills stays unused
        for function in [f for f in dir(nn.init) if f.endswith("_") and not f.startswith("_")]:
            monkeypatch.setattr(nn.init, function, lambda tensor, *_, **__: tensor)
        network = torchvision_network(7, channels, size, name)
    else:
        with torch.device("meta"):
            network = torchvision_network(7, channels, size, name)
    check(network, channels, size)


@pytest.mark.parametrize("channels", [1, pytest.param(3, marks=pytest.mark.slow)])  # timm adapts them
@pytest.mark.parametrize("name", FAMILIES)
def test_timm(name: str, channels: int) -> None:
    known = timm.get_pretrained_cfg(name)
    assert known is not None
    size = known.input_size[-1]
    with torch.device("meta"):
        network = timm_network(7, channels, size, name)
    check(network, channels, size)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
@pytest.mark.parametrize("classes", [7, 192])
def test_auxiliary_heads_are_found_for_any_number_of_classes(name: str, classes: int) -> None:
    with torch.device("meta"):
        network = torchvision_network(classes, 3, 299, name)
    expected = {"googlenet": ("fc", "aux2.fc2", "aux1.fc2"), "inception_v3": ("fc", "AuxLogits.fc")}
    assert network.head_names == expected[name]


STEPS = [
    (TORCHVISION, "resnet18", 32), (TORCHVISION, "squeezenet1_1", 32),
    (TORCHVISION, "mobilenet_v3_small", 32), (TORCHVISION, "shufflenet_v2_x0_5", 32),
    (TORCHVISION, "mnasnet0_5", 32), (TORCHVISION, "efficientnet_b0", 32), (TIMM, "vit_tiny_patch16_224", 32),
    (TIMM, "convnext_atto", 32), (TIMM, "mobilenetv4_conv_small", 32),
]  # fmt: skip


@pytest.mark.parametrize(("target", "name", "size"), STEPS)
def test_training_step(target: str, name: str, size: int) -> None:
    torch.manual_seed(0)
    network = build_network({"_target_": target, "name": name}, 7, 3, size).train()
    head = network.get_parameter(f"{head_names(network)[0]}.weight")
    before = head.detach().clone()
    loss = nn.functional.cross_entropy(network(torch.randn(4, 3, size, size)), torch.tensor([0, 1, 2, 6]))
    loss.backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    assert loss.isfinite()
    assert not torch.equal(before, head)


@pytest.mark.parametrize(("name", "size", "weight"), [("googlenet", 32, 0.3), ("inception_v3", 299, 0.4)])
def test_auxiliary_losses_count(name: str, size: int, weight: float) -> None:
    torch.manual_seed(0)
    spec = {
        "class_names": list("abcdefg"),
        "channels": 3,
        "image_size": size,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    loss = {"_target_": "torch.nn.CrossEntropyLoss"}
    backbone = {
        "_target_": TORCHVISION,
        "name": name,
        "dropout": 0.0,
        "init_weights": False,
    }  # torchvision's take 7 s
    classifier = ImageClassifier(spec, backbone, loss).train()
    if name == "googlenet":
        for branch in (classifier.network.aux1, classifier.network.aux2):
            branch.dropout.p = 0.0  # type: ignore[union-attr]
    images = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8)
    batch = Batch(images, torch.tensor([0, 1, 2, 6]), torch.arange(4), torch.ones(4).bool())
    total = classifier.training_step(batch, 0)
    total.backward()
    heads: Any = classifier.network.head_names
    assert len(heads) > 1
    for head in heads:
        gradient = classifier.network.get_parameter(f"{head}.weight").grad
        assert gradient is not None and gradient.abs().sum() > 0
    main, *auxiliary = classifier.network(classifier.normalise(images))
    losses = [nn.functional.cross_entropy(logits, batch.targets).item() for logits in (main, *auxiliary)]
    assert total.item() == pytest.approx(losses[0] + weight * sum(losses[1:]), rel=1e-3)
    classifier.eval()
    assert isinstance(classifier(images), Tensor)


@pytest.mark.parametrize(
    ("target", "name", "size"),
    [
        (TORCHVISION, "vgg16", 16), (TORCHVISION, "inception_v3", 16), (TORCHVISION, "densenet121", 16),
        (TORCHVISION, "maxvit_t", 100), (TIMM, "vit_tiny_patch16_224", 8), (TIMM, "xcit_nano_12_p16_224", 30),
        (TIMM, "inception_v4", 32),
        pytest.param(
            TORCHVISION, "vit_b_32", 100, ),
        pytest.param(TIMM, "gcvit_xxtiny", 30, ),
        pytest.param(
            TIMM, "efficientvit_m0", 8, ),
    ],
)  # fmt: skip
def test_images_that_do_not_fit(target: str, name: str, size: int) -> None:
    with torch.device("meta"), pytest.raises(UserError) as caught:
        build_network({"_target_": target, "name": name}, 7, 3, size)
    assert "\n" not in str(caught.value)


def test_try_shapes() -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 7)).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    try_shapes(network, 7, 3, 2)
    assert not network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    with pytest.raises(UserError, match=r"returns \(2, 7\) for 2 images; expected logits \(2, 8\)"):
        try_shapes(network, 8, 3, 2)
    with pytest.raises(UserError, match=r"images of 3×4×4 do not fit .* take a larger data\.image_size"):
        try_shapes(network, 7, 3, 4)


@pytest.mark.parametrize(
    ("target", "name", "message"),
    [
        (
            TORCHVISION,
            "resnet_18",
            "backbone.name=resnet_18: torchvision has no such network; did you mean 'resnet18'?",
        ),
        (TORCHVISION, "fcn_resnet50", "torchvision has no such network"),  # segments, does not classify
        (
            TIMM,
            "convnext_ato",
            "backbone.name=convnext_ato: timm has no such network; did you mean 'convnext_atto'?",
        ),
    ],
)
def test_unknown_name(target: str, name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        build_network({"_target_": target, "name": name}, 7, 3, 32)
    assert message in str(caught.value)


@pytest.mark.parametrize("target", [TORCHVISION, TIMM])
def test_unknown_option(target: str) -> None:
    with pytest.raises(UserError, match=r"resnet18.*unexpected keyword argument 'widht'") as caught:
        build_network({"_target_": target, "name": "resnet18", "widht": 2}, 7, 3, 32)
    assert "\n" not in str(caught.value)


def test_options_reach_the_network() -> None:
    network = build_network({"_target_": TORCHVISION, "name": "alexnet", "dropout": 0.25}, 7, 3, 64)
    assert network.get_submodule("classifier.0").p == 0.25
    network = build_network({"_target_": TIMM, "name": "test_resnet", "drop_rate": 0.25}, 7, 3, 64)
    assert network.drop_rate == 0.25


def published(name: str, monkeypatch: pytest.MonkeyPatch, size: int = 224) -> dict[str, Tensor]:
    """Lets the library's default weights of a network be those of a random one with 1000 classes."""
    torch.manual_seed(1)
    sized: dict[str, Any] = {"image_size": size} if name.startswith("vit") else {}
    if name in ("googlenet", "inception_v3"):
        sized = {"init_weights": False}
    state = models.get_model_builder(name)(**sized).state_dict()
    assert not any(".aux" in key for key in state)
    monkeypatch.setattr(
        WeightsEnum, "get_state_dict", lambda *_, **__: {k: v.clone() for k, v in state.items()}
    )
    return state  # type: ignore[no-any-return]


def pretrained(name: str, classes: int = 7, channels: int = 3, size: int = 64) -> nn.Module:
    return build_network({"_target_": TORCHVISION, "name": name, "pretrained": True}, classes, channels, size)


@pytest.mark.parametrize(
    "name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "densenet121", "shufflenet_v2_x0_5"]
)
def test_pretrained_body_and_new_head(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state = published(name, monkeypatch)
    network = pretrained(name)
    own, heads = network.state_dict(), tuple(f"{head}." for head in head_names(network))
    assert own.keys() == state.keys()
    for key, value in own.items():
        if key.startswith(heads):
            assert len(value) == 7
        else:
            assert torch.equal(value, state[key]), key


def test_pretrained_with_as_many_classes_keeps_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    state = published("resnet18", monkeypatch)
    network = pretrained("resnet18", classes=1000)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert network.head_names == ("fc",)


@pytest.mark.parametrize(
    ("name", "stem"), [("resnet18", "conv1.weight"), ("squeezenet1_1", "features.0.weight")]
)
def test_pretrained_stem_for_grey(name: str, stem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state = published(name, monkeypatch)
    own = pretrained(name, channels=1).state_dict()
    torch.testing.assert_close(own[stem], state[stem].sum(1, keepdim=True))
    bias = stem.replace("weight", "bias")
    assert (bias in own) == (bias in state)
    if bias in state:
        assert torch.equal(own[bias], state[bias])


def test_stem_for_grey_sees_grey_as_colour_did() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="reflect"))
    grey = torch.rand(2, 1, 8, 8)
    expected = network(grey.expand(-1, 3, -1, -1))
    adapt_stem(network, 1)
    torch.testing.assert_close(network(grey), expected)


@pytest.mark.parametrize("auxiliary", [True, False])
@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 299)])
def test_pretrained_auxiliary_heads(
    name: str, size: int, auxiliary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = published(name, monkeypatch)
    if not auxiliary:  # a file without them: they are new
        state = {k: v for k, v in state.items() if not k.startswith(("aux", "Aux"))}
        monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: state)
    network = pretrained(name, size=size)
    heads: Any = network.head_names
    assert len(heads) == (3 if name == "googlenet" else 2)
    assert [network.get_submodule(head).out_features for head in heads] == [7] * len(heads)
    own = network.state_dict()
    for key, value in state.items():
        assert key.startswith(tuple(f"{head}." for head in heads)) or torch.equal(own[key], value), key


def test_pretrained_vit_at_another_size(monkeypatch: pytest.MonkeyPatch) -> None:
    state = published("vit_b_32", monkeypatch)
    network = pretrained("vit_b_32", size=64)
    own, key = network.state_dict(), "encoder.pos_embedding"
    assert own[key].shape == (1, 1 + 2 * 2, 768)
    assert torch.equal(own[key][:, 0], state[key][:, 0])
    grid = state[key][:, 1:].transpose(1, 2).reshape(1, 768, 7, 7)
    resized = nn.functional.interpolate(grid, 2, mode="bicubic", align_corners=True)
    torch.testing.assert_close(own[key][:, 1:], resized.flatten(2).transpose(1, 2))
    assert torch.equal(own["conv_proj.weight"], state["conv_proj.weight"])


def test_pretrained_maxvit_at_another_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: pytest.fail("downloaded"))
    with pytest.raises(UserError, match=r"its weights are for one image size"):
        pretrained("maxvit_t", size=448)


@pytest.mark.parametrize(
    "error", [OSError("no route to host"), RuntimeError("invalid hash value"), TimeoutError()]
)
def test_failed_download(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(WeightsEnum, "get_state_dict", fail)
    with pytest.raises(
        UserError, match=r"resnet18 could not be downloaded .*backbone\.weights=FILE"
    ) as caught:
        pretrained("resnet18")
    assert "\n" not in str(caught.value)


def test_failed_download_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr("timm.models._builder.load_pretrained", fail)
    with pytest.raises(UserError, match=r"resnet18.*no route to host.*backbone\.weights=FILE") as caught:
        build_network({"_target_": TIMM, "name": "resnet18", "pretrained": True}, 7, 3, 64)
    assert "\n" not in str(caught.value)


# Functions of other libraries, as they are


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit_b_32"])
def test_a_function_of_torchvision_is_a_backbone(name: str) -> None:
    node = {"_target_": f"torchvision.models.{name}", "weights": None, "pretrained": False}
    options = {"image_size": 64} if name == "vit_b_32" else {}
    network = build_network(node | options, num_classes=7, in_channels=3, image_size=64)
    assert type(network).__module__.startswith("torchvision.models.")
    head = network.get_submodule(head_names(network)[0])
    assert isinstance(head, nn.Linear) and head.out_features == 7


def test_a_function_of_timm_is_a_backbone() -> None:
    node = {"_target_": "timm.create_model", "model_name": "resnet10t", "in_chans": 1}
    network = build_network(node, num_classes=7, in_channels=1, image_size=32)
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


class NoHead(nn.Sequential):
    """Knows nothing of the data."""

    def __init__(self, norm_layer: type[nn.Module] = nn.Identity, classes: int = 5) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), norm_layer(), nn.Linear(3, classes))


@pytest.mark.parametrize(
    ("options", "channels", "message"),
    [
        ({}, 3, r"the backbone returns \(2, 5\) for 2 images; expected logits \(2, 7\)"),
        ({}, 1, r"NoHead takes no in_channels: set data.channels=3"),
        ({"pretrained": True}, 3, r"^backbone.pretrained=true: .*NoHead has no such weights; give a file"),
    ],
)
def test_what_does_not_fit_the_data(options: dict[str, Any], channels: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_network({"_target_": f"{__name__}.NoHead", **options}, 7, channels, 32)


class Passes(NoHead):
    """Passes on what it does not know."""

    def __init__(self, in_channels: int, **others: Any) -> None:
        assert in_channels == 3
        super().__init__(**others)


def test_a_class_that_passes_keywords_on() -> None:
    assert build_network({"_target_": f"{__name__}.Passes", "classes": 7}, 7, 3, 32)


def test_a_network_with_a_layer_by_config(caplog: pytest.LogCaptureFixture) -> None:
    node = {"_target_": f"{__name__}.NoHead", "classes": 7, "_partial_": True}
    norm = {"_target_": "torch.nn.BatchNorm1d", "_partial_": True, "num_features": 3}
    network = build_network({**node, "norm_layer": norm}, 7, 3, 32)
    assert isinstance(network.get_submodule("2"), nn.BatchNorm1d) and head_names(network) == ("3",)
    assert "its checkpoints can be resumed, but not evaluated alone" in caplog.text
