"""Payload of the context coder against PNG, WebP, JPEG XL, zstd and xz, on quantized real samples.

    python examples/benchmarks/lossless.py --out runs/lossless

Every row takes random training samples of one dataset in class order, as many as fill the target, quantized to L
uniform levels. Each rival gets its best arrangement: all samples as one picture (a tile for each sample), or its
bit planes, sample by sample or value by value. A row that is finished is kept in DIR/rows.json and not run again.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import math
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from budgetopt.packing.context import ContextMixing
from budgetopt.packing.layout import Domain, Layout, Plane

Samples = tuple[np.ndarray, np.ndarray]  # (n, c, h, w) float in 0 … 1, labels (n,)
LEVELS = (2, 3, 4, 8, 16)
TARGETS = (1_000, 30_000)  # bytes
CLOSE = 0.04  # a set this close to its target is accepted


def digits(_: Path) -> Samples:
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images[:, None] / 16, data.target


def fashion(folder: Path) -> Samples:
    raw = folder / "FashionMNIST" / "raw"
    images = np.frombuffer((raw / "train-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
    labels = np.frombuffer((raw / "train-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    return images.reshape(-1, 1, 28, 28) / 255, labels


def cifar(folder: Path, samples: int = 6000) -> Samples:
    import pandas

    table = pandas.read_parquet(folder / "cifar10-jpeg" / "train-00000-of-00001.parquet").iloc[:samples]
    pictures = [Image.open(io.BytesIO(cell["bytes"])).convert("RGB") for cell in table["image"]]
    return np.stack([np.asarray(p).transpose(2, 0, 1) for p in pictures]) / 255, table["label"].to_numpy()


def beam(folder: Path) -> Samples:
    """64 features, cut at their common 99th percentile."""
    import pandas

    table = pandas.read_parquet(folder / "beam" / "train.parquet")
    features = table.drop(columns="beam").to_numpy(np.float64)
    top = np.percentile(features, 99)
    return np.clip(features / top, 0, 1)[:, :, None, None], table["beam"].to_numpy()


DATASETS: dict[str, Callable[[Path], Samples]] = {
    "digits": digits,
    "fashion": fashion,
    "cifar10": cifar,
    "beam": beam,
}


def in_class_order(samples: Samples, count: int, seed: int = 0) -> tuple[np.ndarray, tuple[int, ...]]:
    """`count` random samples, classes as equal as the data allow → values (n, c, h, w), samples of each class."""
    values, labels = samples
    rng = np.random.default_rng(seed)
    members = [rng.permutation(np.flatnonzero(labels == c)) for c in range(int(labels.max()) + 1)]
    ranked = sorted((rank, c, i) for c, part in enumerate(members) for rank, i in enumerate(part))[:count]
    chosen = sorted(ranked, key=lambda entry: (entry[1], entry[0]))
    counts = np.bincount([c for _, c, _ in chosen], minlength=len(members))
    return values[[i for _, _, i in chosen]], tuple(int(k) for k in counts)


def quantized(values: np.ndarray, levels: int) -> np.ndarray:
    return np.round(values * (levels - 1)).astype(np.uint8)


def entropy_bytes(symbols: np.ndarray) -> float:
    """Zeroth-order empirical entropy of the whole set."""
    share = np.bincount(symbols.ravel()) / symbols.size
    return float(-(share[share > 0] * np.log2(share[share > 0])).sum()) * symbols.size / 8


def tiled(symbols: np.ndarray) -> np.ndarray:
    """(n, c, h, w) → one picture (H, W, c) of tiles; feature vectors are its rows."""
    n, c, h, w = symbols.shape
    if h * w == 1:
        return symbols.reshape(n, c, 1)
    across = math.isqrt(n - 1) + 1
    down = -(-n // across)
    sheet = np.zeros((down * across, c, h, w), np.uint8)
    sheet[:n] = symbols
    return sheet.reshape(down, across, c, h, w).transpose(0, 3, 1, 4, 2).reshape(down * h, across * w, c)


def pictures(symbols: np.ndarray, levels: int) -> list[Image.Image]:
    """The tiled picture as it is, spread over 0 … 255, and as bits if two levels are all."""
    sheet = tiled(symbols)
    views = [sheet, (sheet.astype(np.int64) * 255 // (levels - 1)).astype(np.uint8)]
    images = [Image.fromarray(v[..., 0] if v.shape[2] == 1 else np.ascontiguousarray(v)) for v in views]
    if sheet.shape[2] == 1:
        if levels == 2:
            images.append(Image.fromarray(sheet[..., 0].astype(bool)))
        palette = Image.fromarray(sheet[..., 0])
        palette.putpalette([k * 255 // (levels - 1) for k in range(levels) for _ in range(3)])
        images.append(palette)
    return images


def saved(image: Image.Image, kind: str, **options: object) -> int:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.tell()


def png(symbols: np.ndarray, levels: int) -> int:
    bits = (levels - 1).bit_length()
    packed = 4 if bits == 3 else bits
    sizes = []
    for image in pictures(symbols, levels):
        sizes.append(saved(image, "PNG", optimize=True))
        if image.mode == "P" and packed <= 4:
            sizes.append(saved(image, "PNG", optimize=True, bits=packed))
    return min(sizes)


def webp(symbols: np.ndarray, levels: int) -> int:
    """Pictures beyond WebP's 16,383 pixels a side are cut in columns side by side."""
    images = []
    for image in pictures(symbols, levels):
        pixels = np.asarray(image.convert("RGB"))
        parts = -(-len(pixels) // 16_000)
        rows = -(-len(pixels) // parts)
        sheet = np.zeros((rows, parts * pixels.shape[1], 3), np.uint8)
        for k in range(parts):
            part = pixels[k * rows : (k + 1) * rows]
            sheet[: len(part), k * pixels.shape[1] : (k + 1) * pixels.shape[1]] = part
        images.append(Image.fromarray(sheet))
    return min(saved(image, "WEBP", lossless=True, method=6, quality=100) for image in images)


def jpeg_xl(symbols: np.ndarray, levels: int) -> int | None:
    try:
        from imagecodecs import jpegxl_encode
    except ImportError:
        return None
    sheet = tiled(symbols)
    sheet = sheet[..., 0] if sheet.shape[2] == 1 else np.ascontiguousarray(sheet)
    spread = (sheet.astype(np.int64) * 255 // (levels - 1)).astype(np.uint8)
    return min(
        len(jpegxl_encode(view, lossless=True, effort=effort, usecontainer=False))
        for view in (sheet, spread)
        for effort in (7, 9)
    )


def bit_planes(symbols: np.ndarray, levels: int) -> list[bytes]:
    """Sample by sample and value by value: all bits of a value together, and one plane after the other."""
    flat = symbols.reshape(len(symbols), -1)
    width = (levels - 1).bit_length()
    shifts = np.arange(width - 1, -1, -1, dtype=np.uint8)
    views = []
    for order in (flat, flat.T):
        bits = order.reshape(-1, 1) >> shifts & 1
        views += [np.packbits(bits).tobytes(), np.packbits(bits.T).tobytes(), order.tobytes()]
    return views


def zstd(symbols: np.ndarray, levels: int) -> int | None:
    try:
        from zstandard import ZstdCompressor
    except ImportError:
        return None
    compressor = ZstdCompressor(level=19, write_content_size=False)
    return min(len(compressor.compress(view)) for view in bit_planes(symbols, levels))


def xz(symbols: np.ndarray, levels: int) -> int:
    """Raw LZMA2 of `xz -9e`, without the container's header and checksum."""
    best = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    return min(len(lzma.compress(v, lzma.FORMAT_RAW, filters=best)) for v in bit_planes(symbols, levels))


RIVALS: dict[str, Callable[[np.ndarray, int], int | None]] = {
    "png": png,
    "webp": webp,
    "jpeg xl": jpeg_xl,
    "zstd": zstd,
    "xz": xz,
}


def layout_of(symbols: np.ndarray) -> Layout:
    _, c, h, w = symbols.shape
    return (Plane(c, h, w),)


def ours(symbols: np.ndarray, levels: int, counts: tuple[int, ...]) -> bytes:
    return ContextMixing().encode(symbols.reshape(len(symbols), -1), levels, Domain(layout_of(symbols), counts), None)


def set_of(samples: Samples, levels: int, target: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Symbols (n, c, h, w) whose payload is about `target` bytes, or all samples if they do not reach it."""
    most = len(samples[0])
    count, low, high = max(1, min(most, target * 8 // samples[0][0].size)), 0, most + 1
    while True:
        values, counts = in_class_order(samples, count)
        symbols = quantized(values, levels)
        size = len(ours(symbols, levels, counts))
        if size > target:
            high = count
        else:
            low = count
        if abs(size - target) <= CLOSE * target or high - low <= 1 or (count == most and size <= target):
            return symbols, counts
        count = min(high - 1, max(low + 1, round(count * target / size)), most)


def row(samples: Samples, levels: int, target: int) -> dict[str, float | int | None]:
    symbols, counts = set_of(samples, levels, target)
    payload = ours(symbols, levels, counts)
    result: dict[str, float | int | None] = {
        "samples": len(symbols),
        "ours": len(payload),
        "share of entropy": len(payload) / max(1.0, entropy_bytes(symbols)),
    }
    result.update({name: rival(symbols, levels) for name, rival in RIVALS.items()})
    return result


def speed(samples: Samples, levels: int, target: int) -> dict[str, float | int | None]:
    """Seconds to pack and unpack, and the peak of traced memory over the bytes of the decoded float32 samples."""
    symbols, counts = set_of(samples, levels, target)
    flat, layout, coder = symbols.reshape(len(symbols), -1), layout_of(symbols), ContextMixing()
    seconds: dict[str, list[float]] = {"pack": [], "unpack": []}
    for _ in range(3):
        start = time.perf_counter()
        payload = coder.encode(flat, levels, Domain(layout, counts), None)
        middle = time.perf_counter()
        decoded = coder.decode(payload, levels, Domain(layout, counts), None)
        seconds["pack"].append(middle - start)
        seconds["unpack"].append(time.perf_counter() - middle)
        assert np.array_equal(decoded, flat)
    tracemalloc.start()
    coder.decode(payload, levels, Domain(layout, counts), None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "samples": len(symbols),
        "bytes": len(payload),
        "pack s": min(seconds["pack"]),
        "unpack s": min(seconds["unpack"]),
        "memory": peak / (4 * flat.size),
    }


def enlarged(samples: Samples) -> Samples:
    """(n, 3, 32, 32) → smooth 128 × 128 pictures: the size matters here, not the content."""
    values, labels = samples
    large = [
        np.asarray(Image.fromarray(np.uint8(v.transpose(1, 2, 0) * 255)).resize((128, 128), Image.Resampling.BICUBIC))
        for v in values[:400]
    ]
    return np.stack(large).transpose(0, 3, 1, 2) / 255, labels[:400]


class Rows:
    """Finished rows, written after each one."""

    def __init__(self, folder: Path | None) -> None:
        self._path = folder / "rows.json" if folder else None
        self._rows: dict[str, dict] = {}
        if self._path and self._path.exists():
            self._rows = json.loads(self._path.read_text())

    def get(self, key: str, make: Callable[[], dict]) -> dict:
        if key not in self._rows:
            self._rows[key] = make()
            if self._path:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                temporary = self._path.with_suffix(".tmp")
                temporary.write_text(json.dumps(self._rows, indent=1))
                temporary.replace(self._path)
        return self._rows[key]


def print_row(name: str, levels: int, result: dict) -> None:
    best = min(size for rival in RIVALS if (size := result[rival]) is not None)
    sizes = "".join(f"{size:>9,}" if (size := result[rival]) is not None else f"{'—':>9}" for rival in RIVALS)
    share, won = result["share of entropy"], result["ours"] / best
    print(f"{name:<9}{levels:>3}{result['samples']:>8,}{result['ours']:>9,}{share:>8.4f}{sizes}{won:>8.3f}", flush=True)


def main(argv: list[str] | None = None) -> None:
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("BUDGETOPT_DATA") or beside))
    parser.add_argument("--out", type=Path, help="keep finished rows here")
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--levels", nargs="+", type=int, default=LEVELS)
    parser.add_argument("--bytes", nargs="+", type=int, default=TARGETS)
    parser.add_argument("--no-speed", action="store_true", help="only sizes")
    arguments = parser.parse_args(argv)

    finished = Rows(arguments.out)
    loaded: dict[str, Samples] = {}

    def samples(name: str) -> Samples:
        if name not in loaded:
            source = DATASETS.get(name)
            loaded[name] = source(arguments.data) if source else enlarged(samples("cifar10"))
        return loaded[name]

    for package, name in (("imagecodecs", "jpeg xl"), ("zstandard", "zstd")):
        try:
            __import__(package)
        except ImportError:
            print(f"{name} is left out: pip install {package}")
    for target in arguments.bytes:
        print(f"\nabout {target:,} bytes; last column: ours over the best rival")
        heads = "".join(f"{name:>9}" for name in RIVALS)
        print(f"{'dataset':<9}{'L':>3}{'samples':>8}{'ours':>9}{'of H0':>8}{heads}{'ratio':>8}")
        for name in arguments.datasets:
            for levels in arguments.levels:
                key = f"size {name} {levels} {target}"
                print_row(name, levels, finished.get(key, lambda n=name, k=levels, t=target: row(samples(n), k, t)))
    if arguments.no_speed:
        return
    print("\nseconds on one core, and peak memory over the decoded float32 samples")
    print(f"{'dataset':<9}{'L':>3}{'samples':>8}{'bytes':>9}{'pack s':>9}{'unpack s':>9}{'memory':>8}")
    target = max(arguments.bytes)
    for name in (
        *(d for d in arguments.datasets if d != "beam"),
        *(["128x128x3"] if "cifar10" in arguments.datasets else []),
    ):
        for levels in arguments.levels:
            key = f"speed {name} {levels} {target}"
            r = finished.get(key, lambda n=name, k=levels, t=target: speed(samples(n), k, t))
            times = f"{r['pack s']:>9.2f}{r['unpack s']:>9.2f}{r['memory']:>8.1f}"
            print(f"{name:<9}{levels:>3}{r['samples']:>8,}{r['bytes']:>9,}{times}", flush=True)


if __name__ == "__main__":
    main()
