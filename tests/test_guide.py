"""The guide shows every quantizer and transform, and the largest search space offers them."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from budgetopt import protocol, space
from budgetopt.quantizers import QUANTIZERS
from budgetopt.transforms import TRANSFORMS

GUIDE = Path(__file__).parents[1] / "examples" / "guide"
USES = (GUIDE / "uses.md").read_text(encoding="utf-8")


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


PROTOCOLS = sorted(GUIDE.parent.glob("*_protocol.toml"))


@pytest.mark.parametrize("path", sorted({*GUIDE.parent.glob("*.toml")} - {*PROTOCOLS}), ids=lambda path: path.name)
def test_spaces_beside_the_guide_can_be_searched(path):
    found = space.resolve(str(path))
    assert found.smallest("coreset", (1, 28, 28))


@pytest.mark.parametrize("path", PROTOCOLS, ids=lambda path: path.name)
def test_protocols_beside_the_guide_are_protocols(path):
    assert protocol.resolve(str(path)).steps > 0


@pytest.mark.long
def test_every_block_of_the_page_of_uses(tmp_path):
    """In order, in one folder, as a reader would."""
    pytest.importorskip("safetensors")
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", USES, re.MULTILINE | re.DOTALL)
    assert {kind for kind, _ in blocks} == {"sh", "python"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    (tmp_path / "examples").symlink_to(GUIDE.parent)
    printed = ""
    for kind, text in blocks:
        command = ["bash", "-ec", text] if kind == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
        assert (done.returncode, done.stderr) == (0, ""), f"{text}\n{done.stdout}{done.stderr}"
        printed += done.stdout
    for ending in ("npz", "safetensors", "pt", "parquet", "tar"):
        assert (tmp_path / f"small.{ending}").stat().st_size > (tmp_path / "small.bopt").stat().st_size
    assert re.search(r"small\.bopt: 1,\d{3} bytes", printed)


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", USES))
def test_links_of_the_page_of_uses_lead_somewhere(link):
    assert (GUIDE / link).exists()
