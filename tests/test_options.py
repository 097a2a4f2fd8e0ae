from __future__ import annotations

import pytest
from pydantic import ValidationError

from sft_mlflow.errors import OptionsError
from sft_mlflow.options import (
    COMMANDS,
    FinetuneOptions,
    Options,
    PromoteOptions,
    ScoreOptions,
    flag,
    parse,
)

NEEDED: dict[str, dict[str, object]] = {
    "promote": {"model_name": "digits"},
    "score": {"model": "models:/digits@champion", "input": "images", "output": "out"},
    "report": {"study": "digits"},
}

every_command = pytest.mark.parametrize(
    ("command", "needed"), [(model, NEEDED.get(name, {})) for name, model in COMMANDS.items()]
)


@every_command
def test_the_defaults_are_enough_where_nothing_is_needed(
    command: type[Options], needed: dict[str, object]
) -> None:
    assert parse(command, needed)


@every_command
def test_options_come_back_from_their_text(
    command: type[Options], needed: dict[str, object]
) -> None:
    options = parse(command, needed)
    assert parse(command, options.as_text()) == options


def test_other_values_come_back_from_their_text_too() -> None:
    options = parse(
        FinetuneOptions,
        {
            "source": ["embedded://efficientnet_lite0", "torchvision://resnet50"],
            "depths": "0,layer4.0,full",
            "trials": 7,
            "budget_minutes": 2.5,
            "image_size": 96,
            "lr_min": 1e-7,
            "register": "all",
        },
    )
    text = options.as_text()
    assert all(isinstance(value, str) for value in text.values())
    assert parse(FinetuneOptions, text) == options
    promotion = parse(PromoteOptions, {"model_name": "digits", "rollback": True, "minimum": 0.5})
    assert parse(PromoteOptions, promotion.as_text()) == promotion


def test_every_problem_is_reported_at_once_by_its_flag() -> None:
    with pytest.raises(OptionsError) as caught:
        parse(
            FinetuneOptions,
            {
                "epochs": "0",
                "lr_min": "fast",
                "batch_size": "16.5",
                "optimizer": "adam",
                "register": "some",
                "learning_rate": "0.1",
            },
        )
    lines = str(caught.value).splitlines()
    flags = ["--epochs", "--lr-min", "--batch-size", "--optimizer", "--register", "--learning-rate"]
    assert len(lines) == len(flags)
    for name in flags:
        assert [line for line in lines if line.startswith(f"{name} ")], name
    assert "'fast'" in str(caught.value)


def test_what_is_needed_and_missing_is_named() -> None:
    with pytest.raises(OptionsError) as caught:
        parse(ScoreOptions, {"model": "models:/digits@champion"})
    assert str(caught.value).splitlines() == ["--input is needed.", "--output is needed."]


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(OptionsError, match=r"--epoch is no option of this command"):
        parse(FinetuneOptions, {"epoch": 3})


def test_learning_rates_out_of_order_are_refused_with_both_values() -> None:
    with pytest.raises(OptionsError, match=r"--lr-min 0\.1 .*--lr-max 0\.01"):
        parse(FinetuneOptions, {"lr_min": "0.1", "lr_max": "0.01"})
    assert parse(FinetuneOptions, {"lr_min": 0.01, "lr_max": 0.01}).lr_min == 0.01


def test_text_becomes_numbers_and_lists() -> None:
    options = parse(
        FinetuneOptions,
        {"epochs": "2", "lr_max": "1e-2", "depths": " 0, layer4.0 ,full,", "trials": "9"},
    )
    assert (options.epochs, options.lr_max, options.trials) == (2, 0.01, 9)
    assert options.depths == ("0", "layer4.0", "full")


def test_a_list_of_numbers_may_be_one_number_and_holds_each_once() -> None:
    options = parse(FinetuneOptions, {"batch_size": "32, 16,32", "lr": 1e-3})
    assert options.batch_size == (32, 16)
    assert options.lr == (1e-3,)
    assert options.as_text()["batch_size"] == "32,16"


@pytest.mark.parametrize(
    ("text", "value"), [("on", True), ("yes", True), ("true", True), ("off", False), ("no", False)]
)
def test_a_switch_takes_a_word(text: str, value: bool) -> None:
    # `mlflow run -P` has no bare flags.
    assert parse(PromoteOptions, {"model_name": "a", "rollback": text}).rollback is value


def test_an_empty_number_is_the_default() -> None:
    options = parse(FinetuneOptions, {"trials": "", "budget_minutes": ""})
    assert options.trials is None
    assert options.budget_minutes is None


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(OptionsError, match="--depths"):
        parse(FinetuneOptions, {"depths": " , "})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("trials", 0),
        ("budget_minutes", 0),
        ("budget_minutes", "nan"),
        ("lr_max", "inf"),
        ("lr_min", "nan"),
        ("label_smoothing", 1),
        ("weight_decay", -0.1),
        ("weight_decay", "nan"),
        ("image_size", 8),
        ("seed", -1),
        ("seed", 2**31),
        ("workers", 0),
        ("data", ""),
        ("device", "tpu"),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_its_flag(name: str, value: object) -> None:
    with pytest.raises(OptionsError, match=f"^{flag(name)} "):
        parse(FinetuneOptions, {name: value})


def test_batches_of_one_image_are_refused_where_batchnorm_counts_anew() -> None:
    assert parse(FinetuneOptions, {"batch_size": 1})
    with pytest.raises(OptionsError, match=r"--batch-size 1 with --head-start random"):
        parse(FinetuneOptions, {"batch_size": "16,1", "head_start": "random"})


def test_register_is_register_for_every_user() -> None:
    assert flag("register_") == "--register"
    assert parse(FinetuneOptions, {"register": "none"}).register_ == "none"
    assert FinetuneOptions(register="all").register_ == "all"


def test_options_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        FinetuneOptions().epochs = 3  # type: ignore[misc]


@every_command
def test_every_option_has_a_description(command: type[Options], needed: dict[str, object]) -> None:
    assert all(field.description for field in command.model_fields.values())
    assert command.__doc__


def test_a_password_is_neither_printed_nor_logged() -> None:
    options = parse(FinetuneOptions, {"storage": "postgresql://user:secret@host:5432/optuna"})
    assert options.as_text()["storage"] == "postgresql://user:***@host:5432/optuna"
    assert options.storage == "postgresql://user:secret@host:5432/optuna"


@pytest.mark.parametrize(
    "given", [{"views": "0"}, {"views": ""}, {"study": ".."}, {"cache_gb": "inf"}]
)
def test_a_wrong_value_has_one_message(given: dict[str, str]) -> None:
    with pytest.raises(OptionsError) as raised:
        parse(FinetuneOptions, given)
    [line] = str(raised.value).splitlines()
    assert line.startswith(flag(next(iter(given))))
    assert "pattern" not in line
