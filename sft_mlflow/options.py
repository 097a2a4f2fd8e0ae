"""Every option of every command, once: type, bounds, default and description.

The command line, the Python API and the logged parameters all come from these models. Values may
come as text (`mlflow run -P` passes nothing else), and all problems are reported at once, each by
the name of its flag.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from sft_mlflow.errors import OptionsError

EMBEDDED_SOURCE = "embedded://efficientnet_lite0"
# Of the views of a training image: a new one in every epoch.
FRESH = "fresh"


NumberT = TypeVar("NumberT", int, float)


def _split(value: object) -> object:
    """Comma-separated text as a list, a number as a list of one; other values as they are."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int | float) else value


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


def _automatic_is_none(value: object) -> object:
    return None if value in ("", "auto") else value


def _counts_or_fresh(words: tuple[str, ...]) -> tuple[str, ...]:
    if not words or not all(w == FRESH or (w.isdecimal() and int(w) > 0) for w in words):
        raise ValueError(f"take whole numbers from 1, or {FRESH}")
    return words


def _once(values: tuple[NumberT, ...]) -> tuple[NumberT, ...]:
    return tuple(dict.fromkeys(values))


def _at_least_one(values: tuple[NumberT, ...]) -> tuple[NumberT, ...]:
    # `min_length` would also complain where a member is wrong.
    if not values:
        raise ValueError("give at least one")
    return values


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Rates = Annotated[
    tuple[Annotated[float, Field(gt=0, le=10)], ...],
    BeforeValidator(_split),
    AfterValidator(_once),
]
BatchSizes = Annotated[
    tuple[Annotated[int, Field(ge=1, le=4096)], ...],
    BeforeValidator(_split),
    AfterValidator(_once),
    AfterValidator(_at_least_one),
]
Views = Annotated[tuple[str, ...], BeforeValidator(_split), AfterValidator(_counts_or_fresh)]
Whole = Annotated[int | None, BeforeValidator(_empty_is_none)]
Number = Annotated[float | None, BeforeValidator(_empty_is_none)]
Device = Literal["auto", "cpu", "cuda", "mps"]
MetricWord = Literal["auto", "accuracy", "macro_f1", "map", "map_50", "miou", "pixel_accuracy"]
TaskWord = Literal["auto", "classification", "detection", "segmentation"]
Faulty = Literal["clip", "skip", "error"]

# Of the data, whatever is done with them.
FAULTY = (
    "Wrong boxes and masks: clip what reaches beyond its image and leave out what cannot be "
    "mended, leave out all, or stop."
)
IGNORE_INDEX = "Value of masks' pixels that counts for nothing, besides 255."


# What MLflow takes as the name of a registered model, and no quotes, which its filters need.
_MODEL_NAME = r"^[^/:'\"]*$"


class Options(BaseModel):
    """What all commands share: frozen values, and no unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def as_text(self) -> dict[str, str]:
        """Every option as the text that would give it again on the command line.

        The password in a URL is `***`: this text is printed and logged.
        """
        return {name: _as_text(value) for name, value in self.model_dump(by_alias=True).items()}


class FinetuneOptions(Options):
    """Search, train, register: from labelled images to a registered model."""

    data: str = Field(
        "digits",
        min_length=1,
        description="Folder of class folders, CSV or Parquet table (path,label[,split][,group]), "
        "boxes (COCO, VOC, YOLO) or masks (docs/data.md), or the name of a known set (digits, "
        "cifar10, ...).",
    )
    task: TaskWord = Field(
        "auto", description="What is to be learnt; auto: what the data are laid out for."
    )
    source: Names = Field(
        (EMBEDDED_SOURCE,),
        min_length=1,
        description="Pretrained model to start from; several, separated by commas, are searched. "
        "embedded://, torchvision://, timm://, file://, models:/, runs:/.",
    )
    epochs: int = Field(5, ge=1, le=10_000, description="Passes over the training images a trial.")
    trials: Whole = Field(
        None,
        ge=1,
        description="Trials of the study. Default: 12, or as many as the budget allows; with --lr, "
        "every combination of what is searched, once.",
    )
    budget_minutes: Number = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Wall time for everything, evaluation and registration included.",
    )
    lr_min: float = Field(1e-4, gt=0, le=10, description="Lowest learning rate of the search.")
    lr_max: float = Field(2e-3, gt=0, le=10, description="Highest learning rate of the search.")
    lr: Rates = Field(
        (), description="Learning rates to try, instead of any from the lowest to the highest."
    )
    depths: Names = Field(
        ("auto",),
        min_length=1,
        description="How many of the last stages train, 0 (only the head) to all: numbers, "
        "module names (layer4.0) or `full`; `auto` is a ladder from the head to the full network.",
    )
    image_size: Annotated[int | None, BeforeValidator(_automatic_is_none)] = Field(
        None,
        ge=16,
        le=1024,
        description="Side of the square input in pixels, of boxes and masks the longer side of "
        "the whole picture. Default: the source's own size, less for images that are much smaller; "
        "480 for boxes and masks.",
    )
    batch_size: BatchSizes = Field(
        (16,), description="Images a training step; several numbers are searched."
    )
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="SGD has momentum 0.9.")
    weight_decay: float = Field(0.02, ge=0, lt=1, description="Of weight matrices and kernels.")
    layer_decay: float = Field(
        0.9, gt=0, le=1, description="Factor on the learning rate for each stage below the head."
    )
    label_smoothing: Number = Field(
        None,
        ge=0,
        lt=1,
        description="Share of the target spread out. Default: 0.1, none for boxes and masks.",
    )
    class_weights: Literal["auto", "on", "off"] = Field(
        "auto", description="Weigh rare classes up; auto: where the classes are imbalanced."
    )
    augment: Literal["auto", "none", "light", "natural"] = Field(
        "auto",
        description="light: small shifts, turns and light changes; natural: crops and mirroring "
        "as well; auto: none up to 3 epochs, from the fourth on natural if the probe answers "
        "mirrored images about as well, else, or without a probe, light.",
    )
    views: Views = Field(
        (FRESH,),
        description="Changed versions of each training image, which the epochs take in turn; "
        "several numbers are searched. Frozen stages run once for each: fewer cost less. "
        "fresh: another one in every epoch.",
    )
    mixup: float = Field(
        0.0,
        ge=0,
        le=10,
        description="Blend images of a batch, where training begins; alpha of the Beta "
        "distribution of their shares, 0 for none.",
    )
    head_start: Literal["probe", "random"] = Field(
        "probe",
        description="Start of the head: a probe, fitted to what the frozen source gives, with "
        "BatchNorm at the source's statistics; or random, with BatchNorm of the stages that train "
        "counting anew, as in plain fine-tuning.",
    )
    prune: bool = Field(
        True, description="End trials that are among the worst quarter at their epoch."
    )
    patience: Whole = Field(
        None,
        ge=1,
        description="Epochs without a better validation figure that end a trial. Default: half of "
        "them, at least 4, since a high learning rate pays late; all of them for boxes and masks.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Of the training steps; auto: bfloat16 where a measurement is faster."
    )
    metric: MetricWord = Field(
        "auto",
        description="Objective on validation; auto: accuracy, or macro_f1 where classes are "
        "imbalanced; map; miou.",
    )
    reuse: bool = Field(
        True, description="Keep what frozen stages make of an image, instead of computing it again."
    )
    cache_gb: Number = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="Most disk for pixels and activations, shared by all studies; what is more is "
        "removed. Default: a fifth of what is free.",
    )
    broken: Literal["skip", "error"] = Field(
        "skip", description="Unreadable images: leave out and list them, or stop."
    )
    faulty: Faulty = Field("clip", description=FAULTY)
    ignore_index: Whole = Field(None, ge=0, lt=2**16, description=IGNORE_INDEX)
    seed: int = Field(0, ge=0, lt=2**31, description="Of split, search and training.")
    model_name: str = Field(
        "",
        pattern=_MODEL_NAME,
        description="Name in the registry. Default: sft-, the name of the data, and the task "
        "where it is boxes or masks.",
    )
    study: str = Field(
        "",
        pattern=r"^(\w[\w.-]*)?$",
        max_length=100,
        description="Name of the study; the same name again goes on where it stopped.",
    )
    storage: str = Field(
        "", description="Optuna storage URL. Default: a sqlite file in the study's folder."
    )
    workers: int = Field(1, ge=1, le=64, description="Processes that run trials side by side.")
    device: Device = Field("auto", description="Where to train.")
    register_: Literal["best", "all", "none"] = Field(
        "best", alias="register", description="Which trials' models to register."
    )

    model_config = ConfigDict(populate_by_name=True)

    @model_validator(mode="after")
    def _batches_have_statistics(self) -> Self:
        if 1 in self.batch_size and self.head_start == "random" and self.depths != ("0",):
            raise ValueError(
                "--batch-size 1 with --head-start random: BatchNorm counts anew there and needs "
                "at least two images"
            )
        return self

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.lr_min > self.lr_max:
            raise ValueError(
                f"--lr-min {self.lr_min} is larger than --lr-max {self.lr_max}; swap them"
            )
        return self


class CheckOptions(Options):
    """Look at the data, without training."""

    data: str = Field("digits", min_length=1, description="As for finetune.")
    task: TaskWord = Field(
        "auto", description="What is to be learnt; auto: what the data are laid out for."
    )
    faulty: Faulty = Field("clip", description=FAULTY)
    ignore_index: Whole = Field(None, ge=0, lt=2**16, description=IGNORE_INDEX)
    seed: int = Field(0, ge=0, lt=2**31, description="Of the split.")
    output: str = Field("", description="JSON file for the findings. Default: only print them.")


class PromoteOptions(Options):
    """Let champion and challenger compete, and move the alias if the gate says so."""

    model_name: str = Field(
        min_length=1, pattern=_MODEL_NAME, description="Registered model whose champion it is."
    )
    model: str = Field(
        "",
        description="Candidate: models:/NAME/VERSION, models:/m-ID or runs:/ID. "
        "Default: the alias challenger.",
    )
    data: str = Field("", description="Test data. Default: the test side the candidate has.")
    ignore_index: Whole = Field(None, ge=0, lt=2**16, description=IGNORE_INDEX)
    metric: MetricWord = Field(
        "auto",
        description="Figure of `minimum` and `min-improvement`; auto: accuracy, map or miou.",
    )
    minimum: Number = Field(
        None,
        ge=0,
        le=1,
        description="The candidate's least figure. Default: more than a model that knows nothing "
        "would get.",
    )
    min_improvement: float = Field(
        0.0, ge=-1, le=1, description="Least gain over the champion; negative allows a loss."
    )
    max_p_value: float = Field(
        1.0, gt=0, le=1, description="Largest p of the paired test that the gain is chance."
    )
    max_class_drop: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Most that any class may lose of its recall, average precision or IoU.",
    )
    rollback: bool = Field(False, description="Bring back the previous champion instead.")
    device: Device = Field("auto", description="Where to evaluate.")


class ScoreOptions(Options):
    """Classes, boxes or masks of every image, as Parquet."""

    model: str = Field(min_length=1, description="models:/NAME@champion, models:/m-ID, runs:/ID.")
    input: str = Field(min_length=1, description="Folder, glob, CSV or Parquet table, manifest.")
    output: str = Field(min_length=1, description="Parquet file, or folder for one file a part.")
    split: Literal["", "train", "valid", "test"] = Field(
        "", description="Of a manifest, only this side. Default: all of it."
    )
    least_score: Number = Field(
        None,
        ge=0,
        le=1,
        description="Of boxes that are reported. Default: where F1 on validation was best.",
    )
    coco: str = Field("", description="COCO JSON file to write as well, of boxes or masks.")
    masks: str = Field("", description="Folder to write masks to as well, one PNG an image.")
    overwrite: bool = Field(False, description="Replace another output or Parquet file.")
    device: Device = Field("auto", description="Where to score.")


class ReportOptions(Options):
    """The study's report once more, as a file."""

    study: str = Field(min_length=1, description="Name of the study.")
    output: str = Field("report.html", min_length=1, description="HTML file to write.")


# Every command by its name on the command line.
COMMANDS: Mapping[str, type[Options]] = {
    "finetune": FinetuneOptions,
    "check": CheckOptions,
    "promote": PromoteOptions,
    "score": ScoreOptions,
    "report": ReportOptions,
}

OptionsT = TypeVar("OptionsT", bound=Options)


def parse(model: type[OptionsT], values: Mapping[str, Any]) -> OptionsT:
    """The options from named values; raises OptionsError that lists every problem by its flag."""
    try:
        return model(**values)
    except ValidationError as error:
        raise OptionsError("\n".join(_problem(found) for found in error.errors())) from None


def flag(name: str) -> str:
    """The flag of an option on the command line (`lr_min` -> `--lr-min`)."""
    return "--" + name.rstrip("_").replace("_", "-")


def _problem(found: Mapping[str, Any]) -> str:
    message = str(found["msg"]).removeprefix("Value error, ")
    if found["type"] == "string_pattern_mismatch":
        message = "has characters that such a name cannot have; take letters, digits, - and _"
    if not found["loc"]:
        return message
    name = flag(str(found["loc"][0]))
    if found["type"] == "missing":
        return f"{name} is needed."
    if found["type"] == "extra_forbidden":
        return f"{name} is no option of this command."
    return f"{name} {found['input']!r}: {message}."


def _as_text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None else re.sub(r"(?<=://)([^/@:]*):[^/@]+@", r"\1:***@", str(value))
