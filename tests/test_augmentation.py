import dataclasses

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from budgetopt import augmentation
from budgetopt.protocol import AUGMENTATIONS, AUGMENTATIONS_OF

STRENGTHS = {
    "shift": 0.2,
    "scale": 1.3,
    "rotate": 20.0,
    "flip": 0.5,
    "brightness": 0.7,
    "contrast": 0.5,
    "cutout": 0.5,
}
IDENTITY = dict.fromkeys(STRENGTHS, 0.0) | {"scale": 1.0}
STRENGTHS_3D = {"shift3d": 0.2, "rotate3d": 40.0, "flip3d": 0.5}
GRID = (2, 5, 6, 9)  # of voxels, no two sides equal


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=6, shape=(2, 8, 6), seed=1):
    return torch.randn(n, *shape, generator=generator(seed))


def samples_for(name, n=6):
    """What the augmentation of this name is for."""
    return images(n, GRID) if name in AUGMENTATIONS_OF[4] else images(n)


def augmented(x, strengths, seed=0):
    return augmentation.apply(x, augmentation.draw(strengths, len(x), generator(seed)))


def test_all_names_of_the_protocol_are_tested_here():
    assert STRENGTHS.keys() == set(AUGMENTATIONS_OF[3])
    assert STRENGTHS_3D.keys() == set(AUGMENTATIONS_OF[4])
    assert len(STRENGTHS) + len(STRENGTHS_3D) == len(AUGMENTATIONS)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_strength_zero_changes_nothing(name):
    x = samples_for(name)
    assert torch.allclose(augmented(x, {name: IDENTITY.get(name, 0.0)}), x, atol=1e-5)


def test_all_strengths_zero_and_no_augmentation_change_nothing():
    x = images()
    assert torch.allclose(augmented(x, IDENTITY), x, atol=1e-5)
    assert torch.equal(augmented(x, {}), x)
    voxels = images(6, GRID)
    assert torch.allclose(augmented(voxels, dict.fromkeys(STRENGTHS_3D, 0.0)), voxels, atol=1e-5)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_augmentation_does_something(name):
    x = samples_for(name, 40)
    out = augmented(x, {name: (STRENGTHS | STRENGTHS_3D)[name]})
    changed = (out - x).abs().flatten(1).amax(1) > 1e-3
    assert out.shape == x.shape
    assert changed.sum() > (5 if name in ("flip", "flip3d") else 35)


def test_flip_against_reversed_columns():
    x = images(60)
    assert torch.allclose(augmented(x, {"flip": 1.0}), x.flip(3), atol=1e-5)
    half = augmented(x, {"flip": 0.5})
    kept = [torch.allclose(a, b, atol=1e-5) for a, b in zip(half, x, strict=True)]
    turned = [torch.allclose(a, b.flip(2), atol=1e-5) for a, b in zip(half, x, strict=True)]
    assert [a or b for a, b in zip(kept, turned, strict=True)] == [True] * 60
    assert 15 < sum(turned) < 45


def test_cutout_against_a_naive_loop():
    x = images(20)
    drawn = augmentation.draw({"cutout": 0.5}, 20, generator())
    out = augmentation.apply(x, drawn)
    for n in range(20):
        top, bottom, left, right = drawn.cutout[n].tolist()
        assert bottom - top == pytest.approx(0.5)
        assert right - left == pytest.approx(0.5)
        for i in range(8):
            for j in range(6):
                inside = top <= (i + 0.5) / 8 < bottom and left <= (j + 0.5) / 6 < right
                assert torch.equal(out[n, :, i, j], torch.zeros(2) if inside else x[n, :, i, j])


def test_shift_by_whole_pixels_against_slices():
    """A map x → x + 2·k/w moves the content k columns to the left; the border is repeated."""
    x = images(1)
    for columns, rows in ((0, 0), (1, 0), (2, 3), (-1, -2)):
        affine = torch.tensor([[[1.0, 0.0, 2 * columns / 6], [0.0, 1.0, 2 * rows / 8]]])
        out = augmentation.apply(x, augmentation.Draw(affine, None, None, None))
        for i in range(8):
            for j in range(6):
                source = x[0, :, min(max(i + rows, 0), 7), min(max(j + columns, 0), 5)]
                assert torch.allclose(out[0, :, i, j], source, atol=1e-5)


def test_brightness_and_contrast_against_the_formula():
    x = images()
    drawn = augmentation.draw({"brightness": 0.7, "contrast": 0.5}, 6, generator())
    out = augmentation.apply(x, drawn)
    assert drawn.brightness.abs().max() <= 0.7
    assert (drawn.contrast - 1).abs().max() <= 0.5
    for n in range(6):
        brighter = x[n] + drawn.brightness[n]
        wanted = (brighter - brighter.mean()) * drawn.contrast[n] + brighter.mean()
        assert torch.allclose(out[n], wanted, atol=1e-5)


def test_draws_stay_within_their_strength():
    affine = augmentation.draw({"shift": 0.1, "scale": 1.25, "rotate": 15.0}, 500, generator()).affine
    assert affine[:, :, 2].abs().max() <= 0.2  # of a side that goes from −1 to 1
    scales = affine[:, :, :2].norm(dim=2)
    assert scales.min() >= 1 / 1.26
    assert scales.max() <= 1.26
    angles = torch.rad2deg(torch.atan2(affine[:, 1, 0], affine[:, 1, 1]))
    assert angles.abs().max() <= 15.001
    assert angles.abs().max() > 13


def test_a_draw_is_the_same_for_real_and_synthetic():
    """Linear, but for the brightness: what is done to one set is done to the other."""
    strengths = {k: v for k, v in STRENGTHS.items() if k != "brightness"}
    drawn = augmentation.draw(strengths, 6, generator())
    real, synthetic = images(seed=1), images(seed=2)
    apart = augmentation.apply(real, drawn) - augmentation.apply(synthetic, drawn)
    assert torch.allclose(apart, augmentation.apply(real - synthetic, drawn), atol=1e-5)
    assert torch.equal(augmentation.apply(real, drawn), augmentation.apply(real, drawn))


def test_draws_can_be_picked_by_class():
    drawn = augmentation.draw(STRENGTHS, 3, generator())
    labels = torch.tensor([2, 0, 0, 1, 2])
    x = images(5)
    together = augmentation.apply(x, drawn[labels])
    for i, label in enumerate(labels.tolist()):
        alone = augmentation.apply(x[i : i + 1], drawn[torch.tensor([label])])
        assert torch.allclose(together[i], alone[0], atol=1e-6)


def test_one_draw_for_all():
    drawn = augmentation.draw(STRENGTHS, 1, generator())
    x = images(4)
    one_by_one = torch.cat([augmentation.apply(x[i : i + 1], drawn) for i in range(4)])
    assert torch.allclose(augmentation.apply(x, drawn), one_by_one, atol=1e-6)


def test_draws_follow_from_the_generator_alone():
    before = torch.get_rng_state()
    a, b, c = (augmentation.draw(STRENGTHS, 9, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    for field in dataclasses.fields(augmentation.Draw):
        assert torch.equal(getattr(a, field.name), getattr(b, field.name))
        assert not torch.equal(getattr(a, field.name), getattr(c, field.name))
    moved = a.to(torch.device("cpu"))
    assert torch.equal(moved.affine, a.affine)


def test_differentiable():
    """The gradient is that of a linear map: finite differences agree in double precision."""
    drawn = augmentation.draw(STRENGTHS, 2, generator())
    double = augmentation.Draw(*(t.double() for t in dataclasses.astuple(drawn)))
    x = images(2, (1, 5, 4)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augmentation.apply(x, double), (x,))


@pytest.mark.parametrize("sides", [(8, 8), (8, 24), (20, 6)])
def test_pictures_are_turned_as_scipy_does_it(sides):
    """By an angle between rows and columns of pixels, whatever the sides are."""
    x = images(4, (2, *sides))
    drawn = augmentation.draw({"rotate": 90.0, "scale": 1.3, "flip": 0.5}, 4, generator())
    out = augmentation.apply(x, drawn).double().numpy()
    for n in range(4):
        turn, offset = drawn.affine[n, :, :2].double().numpy(), drawn.affine[n, :, 2].double().numpy()
        for c in range(x.shape[1]):
            assert np.allclose(out[n, c], naive_turn(x[n, c].double().numpy(), turn, offset), atol=1e-4)


# --- voxels ----------------------------------------------------------------------------------------------------------


def naive_turn(grid, turn, offset):
    """scipy's trilinear interpolation of one (d, h, w) grid about its centre. turn: (3, 3) output → input, in voxels,
    and offset: (3,) in shares of the half sides, both for (column, row, slice)."""
    sides = np.array(grid.shape)
    centre = (sides - 1) / 2
    places = np.moveaxis(np.indices(grid.shape), 0, -1) - centre  # (slice, row, column)
    wanted = places[..., ::-1] @ turn.T
    wanted = wanted[..., ::-1] + offset[::-1] * sides / 2 + centre
    return map_coordinates(grid, np.moveaxis(wanted, -1, 0), order=1, mode="nearest")


@pytest.mark.parametrize("strengths", [STRENGTHS_3D, {"rotate3d": 180.0}, {"shift3d": 0.3}, {"flip3d": 1.0}])
def test_voxels_are_turned_and_shifted_as_scipy_does_it(strengths):
    x = images(5, GRID)
    drawn = augmentation.draw(strengths, 5, generator())
    out = augmentation.apply(x, drawn).double().numpy()
    for n in range(5):
        turn, offset = drawn.affine[n, :, :3].double().numpy(), drawn.affine[n, :, 3].double().numpy()
        for c in range(2):
            assert np.allclose(out[n, c], naive_turn(x[n, c].double().numpy(), turn, offset), atol=1e-5)


def test_flip_of_voxels_against_reversed_columns():
    x = images(5, GRID)
    assert torch.allclose(augmented(x, {"flip3d": 1.0}), x.flip(4), atol=1e-5)


def test_turns_are_rotations_about_axes_all_over_the_sphere():
    affine = augmentation.draw({"rotate3d": 30.0, "shift3d": 0.1}, 2000, generator()).affine.double()
    assert affine[:, :, 3].abs().max() <= 0.2
    turns = affine[:, :, :3].numpy()
    assert np.allclose(turns @ turns.transpose(0, 2, 1), np.eye(3), atol=1e-6)
    assert np.allclose(np.linalg.det(turns), 1)
    vectors = Rotation.from_matrix(turns).as_rotvec(degrees=True)
    angles = np.linalg.norm(vectors, axis=1)
    assert 29.5 < angles.max() <= 30.001
    assert angles.mean() == pytest.approx(15, abs=0.7)  # uniform
    axes = vectors / angles[:, None]
    assert np.allclose(axes.mean(0), 0, atol=0.05)
    assert np.allclose(axes.T @ axes / len(axes), np.eye(3) / 3, atol=0.03)
    mirrored = augmentation.draw({"flip3d": 1.0}, 3, generator()).affine[:, :, :3]
    assert torch.allclose(torch.linalg.det(mirrored), -torch.ones(3))


@pytest.mark.parametrize("degrees", [1e308, float("inf")])
def test_a_senseless_strength_gives_no_numbers_but_no_crash(degrees):
    """A protocol may come with a stranger's file: its training then diverges, which is a named error."""
    drawn = augmentation.draw({"rotate3d": degrees}, 3, generator())
    assert drawn.affine[:, :, :3].isnan().any()
    assert augmentation.apply(images(3, GRID), drawn).shape == (3, *GRID)


def test_a_draw_is_the_same_for_real_and_synthetic_voxels():
    drawn = augmentation.draw(STRENGTHS_3D, 4, generator())
    real, synthetic = images(4, GRID, seed=1), images(4, GRID, seed=2)
    apart = augmentation.apply(real, drawn) - augmentation.apply(synthetic, drawn)
    assert torch.allclose(apart, augmentation.apply(real - synthetic, drawn), atol=1e-5)


def test_draws_of_voxels_do_not_depend_on_their_company():
    x, labels = images(5, GRID), torch.tensor([2, 0, 0, 1, 2])
    drawn = augmentation.draw(STRENGTHS_3D, 3, generator())
    again = augmentation.draw(STRENGTHS_3D, 3, generator())
    assert torch.equal(drawn.affine, again.affine)
    together = augmentation.apply(x, drawn[labels])
    for i, label in enumerate(labels.tolist()):
        alone = augmentation.apply(x[i : i + 1], drawn[torch.tensor([label])])
        assert torch.allclose(together[i], alone[0], atol=1e-6)
    one = augmentation.draw(STRENGTHS_3D, 1, generator())
    one_by_one = torch.cat([augmentation.apply(x[i : i + 1], one) for i in range(5)])
    assert torch.allclose(augmentation.apply(x, one), one_by_one, atol=1e-6)


def test_differentiable_in_voxels():
    drawn = augmentation.draw(STRENGTHS_3D, 2, generator())
    double = augmentation.Draw(drawn.affine.double(), None, None, None)
    x = images(2, (1, 3, 4, 2)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augmentation.apply(x, double), (x,))
