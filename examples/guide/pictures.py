"""Draws what every quantizer and transform does to real photographs: `python examples/guide/pictures.py`.

One PNG for each variant under `examples/guide/variants/`, and the page `examples/guide/variants.md` with file sizes.
The photographs are crops of the two that scikit-learn ships; each picture shows the originals above what a receiver
decodes.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_image

from budgetopt.allocation import Allocation
from budgetopt.data.dataset import DataSpec
from budgetopt.options import parse, show
from budgetopt.packing import pack, unpack
from budgetopt.quantizers import QUANTIZERS
from budgetopt.representation import InitialSet, Representation
from budgetopt.transforms import TRANSFORMS

HERE = Path(__file__).resolve().parent
SIDE, EACH, ZOOM = 64, 2, 2  # pixels of a crop, crops of a photograph, magnification

# variant → (quantizer, levels, clipping or None for the first, transform); the name is the file's
VARIANTS: dict[str, tuple[str, int, str | None, str]] = {
    "uniform": ("uniform", 4, None, "identity"),
    "uniform-per-class": ("uniform:granularity=class", 4, None, "identity"),
    "uniform-tanh": ("uniform:companding=tanh", 4, None, "standardize"),
    "uniform-laplace": ("uniform:companding=laplace", 4, None, "standardize"),
    "ddq": ("ddq", 4, None, "identity"),
    "apot": ("apot", 7, "half", "standardize"),
    "lloyd-max": ("lloyd-max", 4, None, "identity"),
    "patches-own": ("patches:groups=0", 4, "mse", "identity"),
    "patches-grouped": ("patches:groups=64", 4, "mse", "identity"),
    "palette-median-cut": ("palette:learn=median-cut", 16, None, "identity"),
    "palette-learned": ("palette:learn=learned", 16, None, "identity"),
    "jpeg": ("jpeg:quality=20", 256, None, "identity"),
    "webp": ("webp:quality=20", 256, None, "identity"),
    "none": ("none:dtype=uint8", 256, None, "identity"),
    "identity": ("uniform", 8, None, "identity"),
    "standardize": ("uniform", 8, "p1", "standardize"),
    "dct": ("uniform", 32, None, "dct:keep=0.25"),
    "dct-blocks": ("uniform", 32, None, "dct:block=8x8,keep=0.25"),
    "pca": ("uniform", 16, None, "pca"),
    "resize": ("uniform", 16, None, "resize:scale=0.5"),
    "ycbcr": ("uniform", 16, None, "ycbcr:chroma=420"),
}


def photographs() -> tuple[np.ndarray, tuple[int, ...]]:
    """(4, 3, 64, 64) float32 raw units and the crops of each class."""
    crops = []
    for name in ("china.jpg", "flower.jpg"):
        picture = Image.fromarray(load_sample_image(name))
        for i in range(EACH):
            box = (40 + 230 * i, 90 + 30 * (i % 2), 40 + 230 * i + 2 * SIDE, 90 + 30 * (i % 2) + 2 * SIDE)
            crop = picture.crop(box).resize((SIDE, SIDE), Image.Resampling.BOX)
            crops.append(np.asarray(crop, np.float32).transpose(2, 0, 1))
    return np.stack(crops), (EACH, EACH)


def variant(name: str, x: np.ndarray, counts: tuple[int, ...]) -> tuple[Allocation, np.ndarray, int]:
    """→ (allocation, decoded samples, bytes of the file)."""
    quantizer, levels, clipping, transform = VARIANTS[name]
    family, quantizer_options = parse(quantizer, {n: q.options for n, q in QUANTIZERS.items()}, "quantizer")
    transform, transform_options = parse(transform, {n: t.options for n, t in TRANSFORMS.items()}, "transform")
    allocation = Allocation(
        ipc=max(counts),
        transform=transform,
        quantizer=family,
        levels=QUANTIZERS[family].fixed_levels or levels,
        clipping=clipping or QUANTIZERS[family].clippings[0],
        transform_options=transform_options,
        quantizer_options=quantizer_options,
    )
    mean, std = np.full(3, 128.0, np.float32), np.full(3, 64.0, np.float32)
    spec = DataSpec("photographs", x.shape[1:], counts, mean, std, "", "image-2")
    generator = torch.Generator().manual_seed(0)
    made = Representation(InitialSet(x, counts), allocation, spec, 1, torch.device("cpu"), generator)
    data = pack(made.packed())
    return allocation, unpack(data).decode(), len(data)


def psnr(x: np.ndarray, decoded: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, of values 0 … 255."""
    error = float(np.mean((x - np.clip(decoded, 0, 255)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255.0**2 / error)


def sheet(x: np.ndarray, decoded: np.ndarray, caption: str) -> Image.Image:
    """Originals above decoded samples, with a caption."""
    rows = [
        np.concatenate(list(np.clip(np.round(a), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)), 1)
        for a in (x, decoded)
    ]
    picture = Image.fromarray(np.concatenate(rows, 0))
    picture = picture.resize((picture.width * ZOOM, picture.height * ZOOM), Image.Resampling.NEAREST)
    framed = Image.new("RGB", (picture.width, picture.height + 18), "white")
    framed.paste(picture, (0, 18))
    ImageDraw.Draw(framed).text((4, 3), caption, fill="black")
    return framed


def draw(out: Path, names: list[str]) -> list[str]:
    """Write the PNGs; → the rows of the page's table."""
    x, counts = photographs()
    (out / "variants").mkdir(parents=True, exist_ok=True)
    rows = []
    for name in names:
        allocation, decoded, size = variant(name, x, counts)
        how = f"{show(allocation.quantizer, allocation.quantizer_options)}, {allocation.levels} levels, "
        how += show(allocation.transform, allocation.transform_options)
        caption = f"{how}: {size:,} bytes, {psnr(x, decoded):.1f} dB"
        sheet(x, decoded, caption).save(out / "variants" / f"{name}.png", optimize=True)
        rows.append(f"| [{name}](variants/{name}.png) | `{how}` | {size:,} | {psnr(x, decoded):.1f} |")
        print(f"{name:<20}{caption}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), help="names of variants")
    arguments = parser.parse_args()
    rows = draw(arguments.out, arguments.only)
    if arguments.only == list(VARIANTS):
        head = f"""# Quantizers and transforms, seen

Four crops of {SIDE}×{SIDE} pixels ({4 * 3 * SIDE * SIDE:,} bytes as they are) of the photographs that scikit-learn
ships; originals above, decoded below. Few samples of large pictures favour other variants than many small ones do: this
page is to see what each one does, not which is best. `python examples/guide/pictures.py` draws it.

| variant | setting | file bytes | PSNR, dB |
|---|---|---|---|
"""
        (arguments.out / "variants.md").write_text(head + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
