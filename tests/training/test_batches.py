from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sft_mlflow.reuse.chain import Chain, Rows
from sft_mlflow.training.augmentation import augment
from sft_mlflow.training.randomness import keyed, seed_of
from sft_mlflow.training.recipe import Augmentation

from .conftest import RECIPE, Digits, plain_network

NAMES = [f"image {number}" for number in range(40)]


def pixels_of(values: torch.Tensor) -> torch.Tensor:
    """The pixels that became these values with a mean and a std of one half."""
    return ((values + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def test_an_epoch_shows_every_image_once_and_each_epoch_in_its_own_order(digits: Digits) -> None:
    batches = digits.batches(RECIPE)
    orders = []
    for epoch in (1, 2):
        shown = torch.cat([pixels_of(batch.values[0]) for batch in batches.training(epoch)])
        flat = shown.flatten(1).numpy()
        known = digits.train.pixels.reshape(64, -1)
        assert np.array_equal(np.unique(flat, axis=0), np.unique(known, axis=0))
        orders.append(shown)
    assert not torch.equal(*orders)


def test_targets_go_with_their_images(digits: Digits) -> None:
    side = digits.train
    label = {pixels.tobytes(): t for pixels, t in zip(side.pixels, side.targets, strict=True)}
    for batch in digits.batches(RECIPE).training(1):
        for pixels, target in zip(pixels_of(batch.values[0]), batch.targets, strict=True):
            assert label[pixels.contiguous().numpy().tobytes()] == target


# Of 64 images; the first batch tells how large they are.
@pytest.mark.parametrize(
    ("read_bytes", "sizes"), [(0, [6] * 10 + [4]), (2**30, [6, 58])], ids=["one", "several"]
)
def test_batches_behind_frozen_stages_are_those_of_their_images_however_many_are_read_at_once(
    read_bytes: int, sizes: list[int], digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sft_mlflow.training.batches.READ_BYTES", read_bytes)
    recipe = replace(RECIPE, depth=9, batch_size=6)
    batches = digits.batches(recipe, plain_network())
    of_pixels = digits.batches(recipe).training(1)
    frozen = batches.train._road.segment(0, batches.point)
    read, inputs = [], Chain.inputs

    def counted(chain: Chain, rows: Rows, view: int, point: int) -> tuple[torch.Tensor, ...]:
        read.append(len(rows))
        return inputs(chain, rows, view, point)

    monkeypatch.setattr(Chain, "inputs", counted)
    shown = list(batches.training(1))
    assert read == sizes
    assert [len(batch.targets) for batch in shown] == [6] * 10 + [4]
    for batch, pixels in zip(shown, of_pixels, strict=True):
        alone = frozen(pixels_of(pixels.values[0]))
        assert torch.allclose(batch.values[0], alone, rtol=1e-5, atol=1e-5)
        assert torch.equal(batch.targets, pixels.targets)


def test_validation_shows_all_images_in_order_as_they_are(digits: Digits) -> None:
    batches = digits.batches(replace(RECIPE, augmentation="natural"))
    shown = torch.cat([pixels_of(batch.values[0]) for batch in batches.validation()])
    assert np.array_equal(shown.numpy(), digits.valid.pixels)
    samples = [sample for batch in batches.validation() for sample in batch.samples]
    assert tuple(samples) == tuple(batches.validated) == digits.valid.samples


@pytest.mark.parametrize(
    ("images", "batch_size", "sizes"),
    [(64, 16, [16] * 4), (64, 30, [30, 30, 4]), (64, 21, [21, 21, 21]), (5, 16, [5]), (1, 16, [1])],
)
def test_a_rest_of_one_image_is_left_out_unless_it_is_all(
    images: int, batch_size: int, sizes: list[int], digits: Digits
) -> None:
    few = Digits(digits.train.only(slice(images)), digits.valid)
    batches = few.batches(replace(RECIPE, batch_size=batch_size))
    assert batches.steps == len(sizes)
    assert [len(batch.targets) for batch in batches.training(1)] == sizes


def test_epochs_take_the_views_in_turn(digits: Digits) -> None:
    def shown(epoch: int, **changes: int) -> torch.Tensor:
        recipe = replace(RECIPE, augmentation="natural", epochs=5, **changes)
        batches = digits.batches(recipe).training(epoch)
        pixels = torch.cat([pixels_of(batch.values[0]) for batch in batches]).flatten(1)
        # Each epoch has its own order.
        return pixels[np.lexsort(pixels.numpy().T)]

    assert torch.equal(shown(1, views=2), shown(3, views=2))
    assert not torch.equal(shown(1, views=2), shown(2, views=2))
    assert not torch.equal(shown(1, views=9), shown(3, views=9))
    # More views than epochs are as many: the first epochs of both see the same.
    assert torch.equal(shown(2, views=9), shown(2, views=2))


@pytest.mark.parametrize("policy", ["none", "light", "natural"])
def test_iterating_leaves_torchs_global_generator_where_it_was(
    policy: Augmentation, digits: Digits
) -> None:
    batches = digits.batches(replace(RECIPE, augmentation=policy))
    before = torch.get_rng_state()
    for batch in batches.training(1):
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.is_grad_enabled()
        assert not batch.values[0].requires_grad
    list(batches.validation())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("policy", ["light", "natural"])
class TestAugmentation:
    def test_an_image_changes_the_same_in_any_batch(
        self, policy: Augmentation, digits: Digits
    ) -> None:
        pixels = torch.from_numpy(digits.train.pixels)
        together = augment(pixels[:8], policy, (0, 1), NAMES[:8])
        alone = augment(pixels[5:6], policy, (0, 1), NAMES[5:6])
        turned = augment(pixels[:8].flip(0), policy, (0, 1), NAMES[:8][::-1])
        assert torch.equal(alone[0], together[5])
        assert torch.equal(turned.flip(0), together)

    def test_each_image_and_each_epoch_has_draws_of_its_own(
        self, policy: Augmentation, digits: Digits
    ) -> None:
        same = torch.from_numpy(digits.train.pixels[:1]).expand(4, -1, -1, -1)
        one = augment(same, policy, (0, 1), NAMES[:4])
        assert len(torch.unique(one.flatten(1), dim=0)) == 4
        assert not torch.equal(one, augment(same, policy, (0, 2), NAMES[:4]))
        assert not torch.equal(one, augment(same, policy, (1, 1), NAMES[:4]))

    def test_shape_and_type_stay(self, policy: Augmentation, digits: Digits) -> None:
        pixels = torch.from_numpy(digits.train.pixels[:3].copy())
        changed = augment(pixels, policy, (0, 1), NAMES[:3])
        assert (changed.shape, changed.dtype) == (pixels.shape, pixels.dtype)
        assert np.array_equal(pixels.numpy(), digits.train.pixels[:3])


def test_light_does_not_mirror_and_natural_does() -> None:
    # Dark on the left half, light on the right.
    pixels = torch.zeros(40, 32, 32, 3, dtype=torch.uint8)
    pixels[:, :, 16:] = 200

    def mirrored(policy: Augmentation) -> int:
        changed = augment(pixels, policy, (0, 1), NAMES).float()
        return int((changed[:, 12:20, 2:6].mean((1, 2, 3)) > 100).sum())

    assert mirrored("light") == 0
    assert 5 < mirrored("natural") < 35


def test_a_key_gives_the_same_draws_and_another_key_others() -> None:
    def draws(*key: int | str) -> torch.Tensor:
        with keyed(*key):
            return torch.rand(4)

    assert torch.equal(draws(0, "step", 1), draws(0, "step", 1))
    keys = [(0, "step", 1), (0, "step", 2), (1, "step", 1), (0, "order", 1), (0, "step1")]
    assert len({tuple(draws(*key).tolist()) for key in keys}) == len(keys)
    assert len({seed_of(*key) for key in keys}) == len(keys)
    assert all(0 <= seed_of(*key) < 2**63 for key in keys)


def test_an_error_inside_a_key_puts_the_generator_back() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), keyed(1):
        torch.rand(3) @ torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
