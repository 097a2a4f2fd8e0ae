"""What holds for every kind of source: a new one is tested by being listed here."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

from sft_mlflow.errors import DataError, OptionsError
from sft_mlflow.sources import model_folder, weights
from sft_mlflow.sources.model_folder import Calibration, ModelConfig
from sft_mlflow.sources.network import bare_network, classifier_from, network_from, normalise
from sft_mlflow.sources.source_model import Architecture, Preprocessing, SourceModel
from sft_mlflow.sources.uri import is_tracked, resolve

SMALL = "shufflenet_v2_x0_5"
KINDS = (
    "embedded",
    "torchvision",
    "torchvision-random",
    "timm",
    "safetensors",
    "torch-file",
    "checkpoint",
    "model-folder",
)


@dataclass(frozen=True)
class Prepared:
    uris: dict[str, str]
    cache: Path
    torch_home: Path
    root: Path


def made(name: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None).state_dict()


def fill_torch_home(home: Path, name: str, state_dict: dict[str, torch.Tensor]) -> None:
    """Put the weights where torchvision's own would be."""
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    path = home / "hub" / "checkpoints" / url.rpartition("/")[2]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state_dict, path)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    root = tmp_path_factory.mktemp("sources")
    state_dict = made(SMALL)
    torch_home = root / "torch"
    fill_torch_home(torch_home, SMALL, state_dict)

    name, commit = "test_resnet.r160_in1k", "0" * 40
    repository = root / "huggingface" / f"models--timm--{name}"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    save_file(timm.create_model("test_resnet").state_dict(), snapshot / "model.safetensors")

    save_file(state_dict, root / "weights.safetensors")
    torch.save(state_dict, root / "weights.pth")
    parallel = {f"module.{key}": tensor for key, tensor in state_dict.items()}
    torch.save({"epoch": 3, "state_dict": parallel}, root / "checkpoint.pth")

    architecture = Architecture("torchvision", SMALL)
    tuned = bare_network(architecture, 3).model.state_dict()
    config = ModelConfig(
        task="classification",
        architecture=architecture,
        preprocessing=Preprocessing(48, "bicubic", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        classes=("a", "b", "c"),
        calibration=Calibration(),
        source="made",
        weights_sha256=weights.digest(tuned),
    )
    model_folder.write(root / "model", config, tuned)
    uris = {
        "embedded": "embedded://efficientnet_lite0",
        "torchvision": f"torchvision://{SMALL}/IMAGENET1K_V1",
        "torchvision-random": f"torchvision://{SMALL}/random",
        "timm": f"timm://{name}",
        "safetensors": f"{(root / 'weights.safetensors').as_uri()}?arch={SMALL}",
        "torch-file": f"{(root / 'weights.pth').as_uri()}?arch={SMALL}",
        "checkpoint": f"{(root / 'checkpoint.pth').as_uri()}?arch={SMALL}",
        "model-folder": str(root / "model"),
    }
    assert tuple(uris) == KINDS
    return Prepared(uris, root / "huggingface", torch_home, root)


@pytest.fixture
def caches(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> Iterator[Prepared]:
    """The libraries' caches, filled, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(prepared.torch_home))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(prepared.cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return prepared


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and a proxy that nobody answers at; the folder for torch's weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "huggingface"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    # Else an opener that an earlier test left behind would be used, with its proxies.
    monkeypatch.setattr(urllib.request, "_opener", None)
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize("kind", KINDS)
class TestSource:
    @pytest.fixture
    def source(self, kind: str, caches: Prepared) -> SourceModel:
        return resolve(caches.uris[kind])

    def test_its_fields_are_sane(self, kind: str, source: SourceModel) -> None:
        assert len(bytes.fromhex(source.weights_sha256)) == 32
        assert source.weights_sha256 == weights.digest(source.state_dict)
        assert 16 <= source.preprocessing.size <= 1024
        assert all(0 < value < 1 for value in source.preprocessing.mean)
        assert all(0 < value <= 1 for value in source.preprocessing.std)
        assert all(isinstance(tensor, torch.Tensor) for tensor in source.state_dict.values())
        expected = {"model-folder": 3, "torchvision-random": 0}.get(kind, 1000)
        assert len(source.classes) == expected

    def test_it_is_the_same_each_time(self, source: SourceModel) -> None:
        assert resolve(source.uri).weights_sha256 == source.weights_sha256

    def test_its_digest_is_the_same_in_another_file_format(
        self, source: SourceModel, tmp_path: Path
    ) -> None:
        weights.write_state_dict(source.state_dict, tmp_path / "a.safetensors")
        torch.save(dict(reversed(source.state_dict.items())), tmp_path / "a.pth")
        for name in ("a.safetensors", "a.pth"):
            found = weights.digest(weights.read_state_dict(tmp_path / name))
            assert found == source.weights_sha256

    def test_its_network_has_its_weights_and_a_new_head_that_belongs_to_the_seed(
        self, source: SourceModel
    ) -> None:
        pixels = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
        images = normalise(pixels, source.preprocessing.mean, source.preprocessing.std)
        logits = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            network = network_from(source, 7)
            state_dict = network.model.state_dict()
            body = set().union(*map(network.tensors_of, range(network.full_depth)))
            assert all(torch.equal(state_dict[n], source.state_dict[n]) for n in body)
            with torch.no_grad():
                logits.append(network.model(images))
        assert logits[0].shape == (2, 7)
        assert torch.equal(logits[0], logits[1])
        assert not torch.equal(logits[0], logits[2])


def test_the_same_weights_in_three_files_are_the_same_source(caches: Prepared) -> None:
    kinds = ("torchvision", "safetensors", "torch-file", "checkpoint")
    assert len({resolve(caches.uris[kind]).weights_sha256 for kind in kinds}) == 1


def test_lite0_sees_pixels_minus_127_over_128() -> None:
    preprocessing = resolve("embedded://efficientnet_lite0").preprocessing
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    images = normalise(pixels, preprocessing.mean, preprocessing.std)
    expected = (torch.arange(256.0).reshape(16, 16) - 127) / 128
    assert torch.allclose(images, expected.expand(1, 3, 16, 16), atol=1e-6)


def test_a_models_own_folder_and_a_fetched_one_are_the_same_source(caches: Prepared) -> None:
    folder = Path(caches.uris["model-folder"])
    assert is_tracked("models:/name@champion")
    fetched = resolve("models:/name@champion", fetched=folder)
    assert fetched.uri == "models:/name@champion"
    assert fetched.preprocessing.size == 48
    assert fetched.weights_sha256 == resolve(str(folder)).weights_sha256


@pytest.mark.parametrize(
    ("uri", "nearest"),
    [
        ("embedded://eficientnet_lite0", "efficientnet_lite0"),
        ("torchvision://resnet5", "resnet50"),
        ("torchvision://resnet50/IMAGENET1K_V3", "IMAGENET1K_V2"),
        ("timm://convnext_ato", "convnext_atto"),
        ("torchvison://resnet50", "torchvision"),
        ("model://name/1", "models"),
        ("resnet50", "torchvision://resnet50"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(uri: str, nearest: str) -> None:
    with pytest.raises(OptionsError, match=nearest) as caught:
        resolve(uri)
    assert f"--source {uri!r}" in str(caught.value)


def test_a_file_without_its_architecture_says_how_to_name_it(caches: Prepared) -> None:
    path = caches.root / "weights.safetensors"
    with pytest.raises(OptionsError, match=r"\?arch=resnet50"):
        resolve(path.as_uri())
    with pytest.raises(OptionsError, match=r"Nearest: .*resnet18"):
        resolve(f"{path.as_uri()}?arch=resnet_18")
    with pytest.raises(OptionsError, match="three numbers"):
        resolve(f"{path.as_uri()}?arch={SMALL}&mean=0.5")


def test_a_files_size_mean_and_std_are_its_own(caches: Prepared) -> None:
    path = caches.root / "weights.safetensors"
    settings = f"arch={SMALL}&size=96&mean=0.5:0.4:0.3&std=0.2:0.2:0.2"
    found = resolve(f"{path.as_uri()}?{settings}").preprocessing
    assert found == Preprocessing(96, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


def test_weights_of_another_network_say_what_does_not_fit(caches: Prepared) -> None:
    source = resolve(f"{(caches.root / 'weights.pth').as_uri()}?arch=shufflenet_v2_x1_0")
    with pytest.raises(DataError, match=r"of another shape.*\?arch="):
        network_from(source, 2)
    other = resolve(f"{(caches.root / 'weights.pth').as_uri()}?arch=squeezenet1_1")
    with pytest.raises(DataError, match=r"missing.*unknown"):
        network_from(other, 2)


def test_without_a_network_torchvision_says_which_file_to_put_where(no_network: Path) -> None:
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    with pytest.raises(DataError) as caught:
        resolve("torchvision://resnet18/IMAGENET1K_V1")
    assert url in str(caught.value)
    assert str(no_network) in str(caught.value)
    assert not list(no_network.iterdir())


def test_without_a_network_timm_says_where_its_cache_is(no_network: Path) -> None:
    with pytest.raises(DataError) as caught:
        resolve("timm://test_resnet.r160_in1k")
    assert "test_resnet.r160_in1k" in str(caught.value)
    assert constants.HF_HUB_CACHE in str(caught.value)


def test_weights_that_changed_on_disk_are_refused(caches: Prepared, tmp_path: Path) -> None:
    config = model_folder.read_config(Path(caches.uris["model-folder"]))
    state_dict = model_folder.read_weights(Path(caches.uris["model-folder"]), config)
    state_dict["fc.bias"] = state_dict["fc.bias"] + 1e-6
    model_folder.write(tmp_path, config, state_dict)
    with pytest.raises(DataError, match="SHA-256"):
        resolve(str(tmp_path))


def test_torchvisions_old_names_of_densenet_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in the published file, which is of 2017: `denselayer1.norm.1`, and no counted batches.
    old = {
        name.replace(".norm1.", ".norm.1.")
        .replace(".norm2.", ".norm.2.")
        .replace(".conv1.", ".conv.1.")
        .replace(".conv2.", ".conv.2."): tensor
        for name, tensor in made("densenet121").items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    fill_torch_home(tmp_path, "densenet121", old)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert network_from(resolve("torchvision://densenet121"), 2).full_depth == 5
    # The same file by its path.
    (published,) = (tmp_path / "hub" / "checkpoints").iterdir()
    by_path = resolve(f"{published.as_uri()}?arch=densenet121")
    assert network_from(by_path, 2).full_depth == 5


@pytest.mark.parametrize("name", ["mnasnet0_5", "squeezenet1_1", "googlenet"])
def test_torchvisions_peculiar_networks_take_their_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_dict = {"aux1.fc1.weight": torch.zeros(2, 2)} if name == "googlenet" else {}
    random = resolve(f"torchvision://{name}/random").state_dict
    fill_torch_home(tmp_path, name, {**random, **state_dict})
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert network_from(resolve(f"torchvision://{name}"), 2).head.out_features == 2


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_a_scaling_of_their_own_apply_it_as_torchvision_does(name: str) -> None:
    # torchvision sets it where it loads the pretrained weights, and not on an empty network.
    assert bare_network(Architecture("torchvision", name), 2).model.transform_input


def test_vit_weights_of_another_image_size_fit_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Trained at 384 pixels: 24 x 24 patches of 16 and the class token.
    chosen = torchvision.models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1
    with torch.device("meta"):
        shapes = torchvision.models.vit_b_16(weights=None, image_size=384).state_dict()
    # One value a tensor is all that the file then holds.
    state_dict = {name: torch.zeros(1).expand(t.shape) for name, t in shapes.items()}
    path = tmp_path / "hub" / "checkpoints" / chosen.url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    torch.save(state_dict, path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    source = resolve("torchvision://vit_b_16/IMAGENET1K_SWAG_E2E_V1")
    assert source.preprocessing.size == 224
    assert source.state_dict["encoder.pos_embedding"].shape == (1, 14 * 14 + 1, 768)
    assert network_from(source, 2).full_depth == 13


@pytest.mark.parametrize("name", ["convnextv2_atto.fcmae", "vit_small_patch16_224.dino"])
def test_weights_published_without_a_head_fit_their_network(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of the default weights of the same architecture there is a head, of these there is none.
    monkeypatch.setattr(timm, "create_model", partial(_without_weights, timm.create_model))
    network = network_from(resolve(f"timm://{name}"), 4)
    assert network.head.out_features == 4


def _without_weights(create: Callable[..., nn.Module], name: str, pretrained: bool) -> nn.Module:
    return create(name, pretrained=False)


@pytest.mark.parametrize("name", ["resnetv2_50", "dpn68"])
def test_a_head_that_is_a_convolution_becomes_linear(name: str) -> None:
    # Of as many classes as ImageNet-21k has, say.
    state_dict = timm.create_model(name, num_classes=7).state_dict()
    source = SourceModel(
        uri=f"timm://{name}",
        architecture=Architecture("timm", name),
        preprocessing=Preprocessing(224, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        classes=tuple("abcdefg"),
        state_dict=state_dict,
        weights_sha256="",
    )
    pretrained, network = classifier_from(source), network_from(source, 3)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert pretrained(images).shape == (2, 7)
        assert network.model.eval()(images).shape == (2, 3)
    assert isinstance(network.head, nn.Linear)


def test_a_network_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(OptionsError, match="cannot be divided into stages"):
        bare_network(Architecture("timm", "pit_xs_224"), 2)


def test_a_host_in_a_files_address_is_refused_with_how_to_write_it() -> None:
    with pytest.raises(OptionsError, match="three slashes"):
        resolve("file://weights.safetensors?arch=resnet18")


def test_a_network_published_without_a_head_gets_one() -> None:
    # DINOv2's configuration in timm has no classes.
    network = bare_network(Architecture("timm", "vit_small_patch14_dinov2"), 4)
    assert network.head_path == "head"
    assert network.full_depth == 13
