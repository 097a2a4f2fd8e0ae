"""Architecture -> a network without its weights, and what is known of its names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import timm
import torchvision
from torch import Tensor, nn

from sft_mlflow.errors import DataError
from sft_mlflow.sources.source_model import Architecture, Library


def build(architecture: Architecture) -> nn.Module:
    """The network with random weights and its own head, in eval mode."""
    if architecture.library == "timm":
        return from_timm(architecture.name, pretrained=False)
    model: nn.Module = torchvision.models.get_model(
        architecture.name, weights=None, **_settings(architecture)
    )
    _drop_auxiliary_heads(model)
    return model.eval()


def from_timm(name: str, *, pretrained: bool) -> nn.Module:
    """timm's network of that name, in eval mode.

    One that is published without a head, as DINO is, gets a head of zeros for one class.
    """
    model: nn.Module = timm.create_model(name, pretrained=pretrained)
    if model.num_classes == 0:
        model.reset_classifier(1)  # type: ignore[operator]
        for parameter in model.get_classifier().parameters():  # type: ignore[operator]
            nn.init.zeros_(parameter)
    return model.eval()


def load(model: nn.Module, state_dict: Mapping[str, Tensor], origin: str) -> None:
    """Copy the weights into the model; every tensor of the model must be there.

    Tensors of auxiliary heads, which only their own pretraining used, are passed over, and so are
    missing counters of BatchNorm's batches, which files from before torch 0.4.1 do not have.
    Raises DataError that names what does not fit.
    """
    # Filled in place, because it carries the versions that some modules (MNASNet) insist on.
    wanted = model.state_dict()
    missing = sorted(
        name
        for name in wanted.keys() - state_dict.keys()
        if not name.endswith("num_batches_tracked")
    )
    odd = sorted(
        name
        for name, tensor in state_dict.items()
        if name in wanted and tensor.shape != wanted[name].shape
    )
    unknown = sorted(
        name for name in state_dict.keys() - wanted.keys() if not name.lower().startswith("aux")
    )
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for names, what in ((missing, "missing"), (odd, "of another shape"), (unknown, "unknown"))
        if names
    ]
    if problems:
        raise DataError(
            f"{origin}: the weights do not fit the network: {'; '.join(problems)}. "
            f"Name the architecture they belong to with ?arch=."
        )
    wanted.update((name, state_dict[name]) for name in wanted.keys() & state_dict.keys())
    model.load_state_dict(wanted)


def names(library: Library) -> list[str]:
    """Every classification network that the library can build."""
    if library == "timm":
        return list(timm.list_models())
    return list(torchvision.models.list_models(module=torchvision.models))


def unknown(name: str, known: list[str], what: str) -> str:
    """The message for a name that is not known, with those that look most like it."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    shown = near or ([*known[:2], "…", known[-1]] if len(known) > 3 else known)
    hint = f" {'Nearest' if near else 'There are'}: {', '.join(shown)}."
    return f"unknown {what} {name!r}.{hint}"


def _settings(architecture: Architecture) -> dict[str, bool]:
    # Their constructors start with minutes of scipy's truncated normal unless told not to. Their
    # weights were trained on pixels scaled otherwise than torchvision's presets do it, and the
    # network converts them: torchvision sets that only where it loads the weights itself.
    if architecture.name in ("inception_v3", "googlenet"):
        return {"init_weights": False, "transform_input": True}
    return {}


def _drop_auxiliary_heads(model: nn.Module) -> None:
    # Heads that Inception and GoogLeNet add during their own pretraining; in train mode they
    # would make the network answer with a tuple.
    if isinstance(model, torchvision.models.GoogLeNet):
        model.aux_logits = False
        model.aux1 = model.aux2 = None
    elif isinstance(model, torchvision.models.Inception3):
        model.aux_logits = False
        model.AuxLogits = None
