"""Architecture -> a network without its weights, and what is known of its names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import timm
import torchvision
from torch import Tensor, nn

from sft_mlflow.errors import DataError, OptionsError
from sft_mlflow.sources.source_model import Architecture, Library


def build(architecture: Architecture) -> nn.Module:
    """The network with random weights and its own head, in eval mode."""
    if architecture.library == "timm":
        model: nn.Module = timm.create_model(architecture.name, pretrained=False)
    else:
        model = torchvision.models.get_model(
            architecture.name, weights=None, **_plain(architecture)
        )
        _drop_auxiliary_heads(model)
    return model.eval()


def load(model: nn.Module, state_dict: Mapping[str, Tensor], origin: str) -> None:
    """Copy the weights into the model; every tensor of the model must be there.

    Tensors of auxiliary heads, which only their own pretraining used, are passed over.
    Raises DataError that names what does not fit.
    """
    wanted = model.state_dict()
    missing = sorted(wanted.keys() - state_dict.keys())
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
    model.load_state_dict({name: state_dict[name] for name in wanted})


def find(name: str) -> Architecture:
    """The architecture of that name, torchvision's before timm's; the nearest names if unknown."""
    for library in ("torchvision", "timm"):
        if name in names(library):
            return Architecture(library, name)
    raise OptionsError(unknown(name, names("torchvision") + names("timm"), "architecture"))


def names(library: Library) -> list[str]:
    """Every classification network that the library can build."""
    if library == "timm":
        return list(timm.list_models())
    return list(torchvision.models.list_models(module=torchvision.models))


def unknown(name: str, known: list[str], what: str) -> str:
    """The message for a name that is not known, with those that look most like it."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" Nearest: {', '.join(near)}." if near else ""
    return f"unknown {what} {name!r}.{hint}"


def _plain(architecture: Architecture) -> dict[str, bool]:
    # Their constructors start with minutes of scipy's truncated normal unless told not to.
    if architecture.name in ("inception_v3", "googlenet"):
        return {"init_weights": False}
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
