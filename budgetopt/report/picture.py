"""Pictures of decoded samples."""

from __future__ import annotations

import io

import numpy as np

from budgetopt.packing import PackedSet

COLUMNS, MAX_ROWS, TARGET_WIDTH = 10, 20, 480  # samples a class, classes, pixels


def sample_sheet(packed: PackedSet) -> bytes | None:
    """PNG: one row per class with its first samples, as a receiver decodes them; feature vectors as grey strips, one
    line per sample; voxels by their maximum over depth. None for other samples than of 1 or 3 channels."""
    from PIL import Image

    shape = packed.shape
    if len(shape) > 1 and shape[0] not in (1, 3):
        return None
    starts = np.concatenate([[0], np.cumsum(packed.counts)[:-1]])
    shown = min(len(packed.counts), MAX_ROWS)
    stops = starts + np.minimum(packed.counts, COLUMNS)
    parts = [packed.decode(slice(int(starts[row]), int(stops[row]))) for row in range(shown)]
    if len(shape) == 1:
        sheet = _to_bytes(np.concatenate(parts))
    else:
        channels, height, width = shape[0], *shape[-2:]
        sheet = np.zeros((shown * (height + 1) + 1, COLUMNS * (width + 1) + 1, channels), np.uint8)
        tiles = [_flat(part) for part in parts]
        low_high = (min(float(t.min()) for t in tiles if t.size), max(float(t.max()) for t in tiles if t.size))
        for row in range(shown):
            for column, sample in enumerate(tiles[row]):
                tile = _to_bytes(sample, low_high).transpose(1, 2, 0)
                top, left = 1 + row * (height + 1), 1 + column * (width + 1)
                sheet[top : top + height, left : left + width] = tile
        sheet = sheet[..., 0] if channels == 1 else sheet
    zoom = max(1, min(16, round(TARGET_WIDTH / sheet.shape[1])))
    image = Image.fromarray(sheet).resize((sheet.shape[1] * zoom, sheet.shape[0] * zoom), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _flat(x: np.ndarray) -> np.ndarray:
    """(n, c, h, w) as it is, (n, c, d, h, w) seen along its depth."""
    return x.max(2) if x.ndim == 5 else x


def _to_bytes(x: np.ndarray, low_high: tuple[float, float] | None = None) -> np.ndarray:
    low, high = low_high or (float(x.min()), float(x.max()))
    return np.round(255 * np.clip((x - low) / (high - low or 1.0), 0.0, 1.0)).astype(np.uint8)
