"""What holds for every detector and segmenter of torchvision; its own code is the reference."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList

from sft_mlflow.data.canvas import Canvas
from sft_mlflow.data.truth import TaskName
from sft_mlflow.errors import DataError, OptionsError
from sft_mlflow.sources import weights, whole_models
from sft_mlflow.sources.network import StagedNetwork
from sft_mlflow.sources.source_model import Architecture, Preprocessing, SourceModel
from sft_mlflow.sources.uri import resolve
from sft_mlflow.tasks import TASKS
from sft_mlflow.tasks.detection.box_head import BoxHead, Objects
from sft_mlflow.tasks.on_canvas import BuildingOnCanvas

NAMES = whole_models.names()
# Of each family the one that is built fastest; of SSD both, whose bodies end differently.
ONE_OF_EACH = (
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "retinanet_resnet50_fpn",
    "fcos_resnet50_fpn",
    "ssd300_vgg16",
    "ssdlite320_mobilenet_v3_large",
    "deeplabv3_mobilenet_v3_large",
    "fcn_resnet50",
    "lraspp_mobilenet_v3_large",
)
# As those of torchvision that it publishes weights for, but what needs more than boxes.
KINDS = ("fasterrcnn", "retinanet", "fcos", "ssd", "deeplabv3", "fcn", "lraspp")
CLASSES = 3


def architecture_of(name: str) -> Architecture:
    return Architecture("torchvision", name)


def family_of(name: str) -> whole_models.Family:
    found = whole_models.family(architecture_of(name))
    assert found is not None
    return found


def building_of(name: str) -> BuildingOnCanvas:
    building = TASKS[family_of(name).task].building
    assert isinstance(building, BuildingOnCanvas)
    return building


def canvas_of(name: str) -> tuple[int, int]:
    """Height and width of small pictures; those of SSD cannot be smaller than it was made for."""
    side = 300 if name == "ssd300_vgg16" else 320
    return (side, side) if family_of(name).square else (64, 96)


def built(name: str) -> tuple[nn.Module, StagedNetwork, Tensor]:
    """torchvision's model, the network made of one with the same weights, and two images."""
    torch.manual_seed(0)
    reference = whole_models.build(architecture_of(name), CLASSES)
    torch.manual_seed(0)
    network = building_of(name).bare_network(architecture_of(name), CLASSES)
    return reference, network, torch.randn(2, 3, *canvas_of(name))


def find_everything(model: Any) -> Any:
    """Random weights are sure of nothing."""
    (model.roi_heads if hasattr(model, "roi_heads") else model).score_thresh = 0.0
    return model


class Untouched(nn.Module):
    """In the place of the transform, since the images are normalised."""

    def forward(self, images: list[Tensor], targets: Any = None) -> tuple[ImageList, Any]:
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        return ImageList(torch.stack(images), sizes), targets

    def postprocess(self, found: Any, *sizes: Any) -> Any:
        return found


def objects() -> tuple[Objects, ...]:
    some = torch.tensor([[4.0, 4, 40, 50], [30, 10, 60, 60]])
    nothing = Objects(torch.empty(0, 4), torch.empty(0, dtype=torch.long))
    return Objects(some, torch.tensor([0, 2])), nothing


def test_every_kind_is_there_with_each_of_its_models() -> None:
    detection, segmentation = torchvision.models.detection, torchvision.models.segmentation
    known = [n for m in (detection, segmentation) for n in torchvision.models.list_models(module=m)]
    assert {n for n in known if n.startswith(KINDS)} == set(NAMES)
    assert all(any(name.startswith(kind) for name in NAMES) for kind in KINDS)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_it_answers_as_torchvisions_own_model_does(name: str) -> None:
    reference, network, images = built(name)
    outputs = network.model(images)
    if family_of(name).task == "segmentation":
        expected = reference(images)["out"]
        found = F.interpolate(outputs, images.shape[-2:], mode="bilinear", align_corners=False)
        assert torch.allclose(found, expected, atol=1e-4)
        return
    head = network.head
    assert isinstance(head, BoxHead)
    find_everything(head.model)
    whole = find_everything(reference)
    whole.transform = Untouched()
    expected = whole(list(images))
    for said, one in zip(head.detect(outputs, canvas_of(name)), expected, strict=True):
        assert len(said.boxes) > 0
        assert torch.allclose(said.boxes, one["boxes"], atol=1e-3)
        assert torch.allclose(said.scores, one["scores"], atol=1e-5)
        # torchvision counts a background before the first class in some.
        assert said.labels.min() >= 0
        assert said.labels.max() < CLASSES
        assert torch.equal(said.labels, one["labels"] - family_of(name).backgrounds)


@pytest.mark.parametrize("name", [*ONE_OF_EACH, "retinanet_resnet50_fpn_v2"])
@torch.no_grad()
def test_every_suffix_makes_of_its_inputs_what_the_whole_network_makes(name: str) -> None:
    _, network, images = built(name)
    whole = network.model(images)
    depth = network.full_depth
    assert depth >= 13
    for point in (1, depth // 2, depth):
        given = [network.segment(0, at)(images) if at else images for at in network.inputs(point)]
        before = [values.clone() for values in given]
        found = network.suffix(depth - point)(*given)
        # They may still wait to be written to the store.
        assert all(map(torch.equal, given, before))
        for name_of_map, values in whole.items() if isinstance(whole, dict) else [("", whole)]:
            one = found[name_of_map] if name_of_map else found
            assert torch.allclose(one, values, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [n for n in ONE_OF_EACH if family_of(n).task == "detection"])
def test_its_loss_is_that_of_torchvisions_own_model(name: str) -> None:
    reference, network, images = built(name)
    reference.transform = Untouched()
    network.freeze(0)
    # As frozen: BatchNorm counts nothing anew, the rest is in training.
    reference.train()
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    first = family_of(name).backgrounds
    targets = [one.as_target(torch.device("cpu"), first) for one in objects()]
    torch.manual_seed(1)
    expected = sum(reference(list(images), targets).values())
    torch.manual_seed(1)
    assert isinstance(network.head, BoxHead)
    loss = network.head.loss(network.model(images), objects(), canvas_of(name))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    trained = {n for n, p in network.model.named_parameters() if p.grad is not None}
    assert trained
    assert all(parameter.startswith("head.") for parameter in trained)


@pytest.mark.parametrize("name", [*ONE_OF_EACH, "fasterrcnn_resnet50_fpn_v2"])
def test_frozen_parts_and_statistics_of_all_stay_as_they_are(name: str) -> None:
    _, network, images = built(name)
    network.freeze(2)
    before = copy.deepcopy(network.model.state_dict())
    outputs = network.model(images)
    if isinstance(network.head, BoxHead):
        # Half of a detector runs in its loss.
        network.head.loss(outputs, objects(), canvas_of(name))
    changed = {n for n, t in network.model.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == set()
    frozen = set().union(*map(network.tensors_of, range(network.full_depth - 2)))
    trainable = {n for n, p in network.model.named_parameters() if p.requires_grad}
    assert trainable
    assert not trainable & frozen


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_class_layers_are_all_that_the_number_of_classes_decides(name: str) -> None:
    few, many = (whole_models.build(architecture_of(name), n).state_dict() for n in (2, 5))
    assert few.keys() == many.keys()
    differing = {n.rpartition(".")[0] for n in few if few[n].shape != many[n].shape}
    named = tuple(f"{path}." for path in family_of(name).class_layers)
    layers = {n.rpartition(".")[0] for n in few if n.startswith(named)}
    assert layers == differing


class TestWeights:
    """Published ones, in torch's cache: as torchvision saves them, for its own classes."""

    @pytest.fixture(autouse=True)
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        self.checkpoints = tmp_path / "hub" / "checkpoints"
        self.checkpoints.mkdir(parents=True)

    def publish(self, name: str, state_dict: dict[str, Tensor]) -> str:
        chosen = torchvision.models.get_model_weights(name).DEFAULT
        torch.save(state_dict, self.checkpoints / chosen.url.rpartition("/")[2])
        return f"torchvision://{name}/{chosen.name}"

    def made(self, name: str) -> dict[str, Tensor]:
        chosen = torchvision.models.get_model_weights(name).DEFAULT
        with_aux = name.startswith(("deeplabv3", "fcn"))
        torch.manual_seed(3)
        model = torchvision.models.get_model(
            name,
            weights=None,
            weights_backbone=None,
            num_classes=len(chosen.meta["categories"]),
            **({"aux_loss": True} if with_aux else {}),
        )
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                # So small that what is added to it matters.
                nn.init.uniform_(module.running_var, 1e-5, 1e-3)
                nn.init.uniform_(module.weight, 1e-3, 1e-2)
        # The frozen BatchNorm that most were trained with counts no batches.
        return {n: t for n, t in model.state_dict().items() if "num_batches_tracked" not in n}

    @pytest.mark.parametrize("name", ONE_OF_EACH)
    @torch.no_grad()
    def test_what_is_found_before_the_class_layers_is_what_torchvision_finds(
        self, name: str
    ) -> None:
        source = resolve(self.publish(name, self.made(name)))
        assert source.task == family_of(name).task
        # It reads the same file.
        reference = torchvision.models.get_model(name, weights="DEFAULT").eval()
        network = building_of(name).network(source, CLASSES)
        images = torch.randn(1, 3, *canvas_of(name))
        expected = {n: t for n, t in reference.backbone(images).items() if n != "aux"}
        if family_of(name).task == "detection":
            found = network.model(images)
        else:
            inputs = network.inputs(network.full_depth)
            found = dict(
                zip(expected, [network.segment(0, at)(images) for at in inputs], strict=True)
            )
        assert found.keys() == expected.keys()
        for of_map, values in expected.items():
            assert torch.allclose(found[of_map], values, rtol=1e-3, atol=1e-5)

    @pytest.mark.parametrize("name", ONE_OF_EACH)
    def test_all_but_the_class_layers_come_from_the_file(self, name: str) -> None:
        published = self.made(name)
        source = resolve(self.publish(name, published))
        torch.manual_seed(4)
        found = building_of(name).network(source, CLASSES).model.state_dict()
        class_layers = tuple(f"head.model.{path}." for path in family_of(name).class_layers)
        assert not {n for n in source.state_dict if n.startswith(class_layers)}
        new = {n for n in found if n not in source.state_dict}
        assert new == {n for n in found if n.startswith(class_layers)}
        assert all(torch.equal(found[n], t) for n, t in source.state_dict.items())

    def test_the_same_weights_are_the_same_source_however_they_are_named(
        self, tmp_path: Path
    ) -> None:
        name = "ssdlite320_mobilenet_v3_large"
        published = self.made(name)
        torch.save(published, tmp_path / "own.pth")
        uris = (self.publish(name, published), f"{(tmp_path / 'own.pth').as_uri()}?arch={name}")
        digests = set()
        for seed, uri in enumerate(uris):
            torch.manual_seed(seed)
            digests.add(resolve(uri).weights_sha256)
        assert len(digests) == 1

    def test_names_from_before_torchvision_wrapped_its_convolutions_are_known(self) -> None:
        name = "fasterrcnn_mobilenet_v3_large_320_fpn"
        published = self.made(name)
        old = {
            key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
            .replace("inner_blocks.0.0.", "inner_blocks.0.")
            .replace("layer_blocks.0.0.", "layer_blocks.0."): tensor
            for key, tensor in published.items()
        }
        assert old.keys() != published.keys()
        source = resolve(self.publish(name, old))
        moved = source.state_dict["head.model.rpn.head.conv.0.0.weight"]
        assert torch.equal(moved, published["rpn.head.conv.0.0.weight"])

    def test_a_file_of_ones_own_is_named_with_its_architecture(self, tmp_path: Path) -> None:
        name = "ssdlite320_mobilenet_v3_large"
        path = tmp_path / "own.pth"
        torch.save(self.made(name), path)
        source = resolve(f"{path.as_uri()}?arch={name}")
        assert source.task == "detection"
        assert source.preprocessing.size == 320
        assert source.preprocessing.mean == (0.5, 0.5, 0.5)

    def test_weights_of_another_model_are_refused(self) -> None:
        state_dict = self.made("lraspp_mobilenet_v3_large")
        with pytest.raises(DataError, match="are of another network"):
            resolve(self.publish("fcn_resnet50", state_dict))


@pytest.mark.parametrize(
    ("name", "task", "class_layers"),
    [
        ("resnet18", "detection", "head.fcos.head.classification_head.cls_logits."),
        ("resnet18", "segmentation", "head.answer."),
        ("fcos_resnet50_fpn", "detection", "head.model.head.classification_head.cls_logits."),
        ("deeplabv3_mobilenet_v3_large", "segmentation", "head.model.classifier.4."),
    ],
)
def test_a_fine_tuned_model_hands_on_its_head_but_not_its_classes(
    name: str, task: TaskName, class_layers: str
) -> None:
    architecture = architecture_of(name)
    building = TASKS[task].building
    torch.manual_seed(5)
    tuned = {
        n: torch.randn_like(t) if t.is_floating_point() else t
        for n, t in building.bare_network(architecture, CLASSES).model.state_dict().items()
    }
    source = SourceModel(
        uri="models:/before@champion",
        architecture=architecture,
        preprocessing=Preprocessing(320, "bilinear", (0.5,) * 3, (0.5,) * 3, Canvas(320, 320)),
        classes=("a", "b", "c"),
        state_dict=tuned,
        weights_sha256=weights.digest(tuned),
        task=task,
    )
    found = building.network(source, CLASSES).model.state_dict()
    new = {n for n in found if not torch.equal(found[n], tuned[n])}
    assert new == {n for n in found if n.startswith(class_layers)}
    assert new


def test_a_detector_is_no_source_for_masks() -> None:
    source = resolve("torchvision://ssdlite320_mobilenet_v3_large/random")
    with pytest.raises(
        OptionsError, match="is a model for detection, and the data are for segmentation"
    ):
        TASKS["segmentation"].building.network(source, CLASSES)
    with pytest.raises(OptionsError, match="a model for detection"):
        TASKS["classification"].building.network(source, CLASSES)


def test_ssd_is_shown_squares_of_its_own_size_and_refuses_others() -> None:
    source = resolve("torchvision://ssdlite320_mobilenet_v3_large/random")
    building = TASKS["detection"].building
    assert building.preprocessing(source, (), None).canvas == Canvas(320, 320)
    assert building.preprocessing(source, (), 320).canvas == Canvas(320, 320)
    with pytest.raises(OptionsError, match="made for 320 pixels"):
        building.preprocessing(source, (), 480)


def test_random_weights_are_the_same_every_time() -> None:
    uri = "torchvision://lraspp_mobilenet_v3_large/random"
    assert resolve(uri).weights_sha256 == resolve(uri).weights_sha256


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(OptionsError, match="fasterrcnn_resnet50_fpn"):
        resolve("torchvision://fasterrcnn_resnet50/random")
