"""The guide shows every quantizer and transform, and the largest search space offers them."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

from budgetopt import space
from budgetopt.quantizers import QUANTIZERS
from budgetopt.transforms import TRANSFORMS

GUIDE = Path(__file__).parents[1] / "examples" / "guide"


@pytest.fixture(scope="module")
def pictures():
    spec = importlib.util.spec_from_file_location("pictures", GUIDE / "pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_quantizer_and_transform_has_a_picture(pictures):
    shown = pictures.VARIANTS.values()
    assert {quantizer.split(":")[0] for quantizer, *_ in shown} == set(QUANTIZERS)
    assert {transform.split(":")[0] for *_, transform in shown} == set(TRANSFORMS)
    page = (GUIDE / "variants.md").read_text(encoding="utf-8")
    for name in pictures.VARIANTS:
        assert f"(variants/{name}.png)" in page
        with Image.open(GUIDE / "variants" / f"{name}.png") as picture:
            assert picture.width == 2 * pictures.EACH * pictures.SIDE * pictures.ZOOM


def test_pictures_show_what_the_file_decodes_to(pictures, tmp_path):
    (row,) = pictures.draw(tmp_path, ["none"])
    assert "| inf |" in row  # 8-bit values are exact
    with Image.open(tmp_path / "variants" / "none.png") as picture:
        half = (picture.height - 18) // 2
        above = picture.crop((0, 18, picture.width, 18 + half))
        below = picture.crop((0, 18 + half, picture.width, 18 + 2 * half))
        assert above.tobytes() == below.tobytes()


def test_everything_is_in_the_space_of_that_name():
    everything = space.resolve("everything")
    assert {choice.family for choice in everything.quantizer} == set(QUANTIZERS)
    assert {choice.name for choice in everything.transform} == set(TRANSFORMS)
    for choice in everything.transform:
        assert set(choice.option_values) == set(TRANSFORMS[choice.name].options), choice.name


@pytest.mark.parametrize("path", sorted(GUIDE.parent.glob("*.toml")), ids=lambda path: path.name)
def test_spaces_beside_the_guide_can_be_searched(path):
    found = space.resolve(str(path))
    assert found.smallest("coreset", (1, 28, 28))
