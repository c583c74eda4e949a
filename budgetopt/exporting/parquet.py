"""Parquet. Pictures in the Hugging Face image layout: `image` = {bytes: PNG, path}, `label` with class names in the
schema's metadata; feature vectors as columns `x_0`, `x_1`, … and `label`. Soft labels are a list column `targets`; the
input statistics are in the metadata under `budgetopt`, with the preparation of raw data under
`budgetopt.preparation`."""

from __future__ import annotations

import io
import json
from typing import Any

from budgetopt.errors import InputError
from budgetopt.exporting.exported import Exported, preparation_of
from budgetopt.exporting.pixels import is_picture, png, to_pixels
from budgetopt.packing import PackedSet
from budgetopt.packing.table import TablePreparation

MOST_LOSS = 0.05  # of 8-bit pixels, in standard deviations: beyond it pictures are other ones


def write(packed: PackedSet) -> Exported:
    """Raises `InputError` for samples that are neither pictures nor feature vectors, and for pictures that 8-bit pixels
    cannot hold."""
    import pyarrow as pa
    import pyarrow.parquet

    names = _class_names(packed)
    columns: dict[str, pa.Array] = {}
    features: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    if is_picture(packed.shape):
        columns["image"], notes = _pictures(packed)
        features["image"] = {"_type": "Image"}
    elif len(packed.shape) == 1:
        for i, column in enumerate(packed.decode().T):
            columns[f"x_{i}"] = pa.array(column)
            features[f"x_{i}"] = {"dtype": "float32", "_type": "Value"}
    else:
        raise InputError(f"samples of shape {packed.shape} are neither pictures nor feature vectors: export --to npz")
    columns["label"] = pa.array(packed.labels())
    features["label"] = {"names": names, "_type": "ClassLabel"}
    targets = packed.targets()
    if targets is not None:
        columns["targets"] = pa.FixedSizeListArray.from_arrays(pa.array(targets.ravel()), len(names))
        value = {"dtype": "float32", "_type": "Value"}
        features["targets"] = {"feature": value, "length": len(names), "_type": "Sequence"}
    metadata = {
        "huggingface": json.dumps({"info": {"features": features}}),
        "budgetopt": json.dumps({"mean": packed.mean.tolist(), "std": packed.std.tolist()}),
        **{f"budgetopt.{name}": text for name, text in preparation_of(packed).items()},
    }
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns).replace_schema_metadata(metadata), buffer)
    return Exported(buffer.getvalue(), ".parquet", notes)


def _class_names(packed: PackedSet) -> list[str]:
    """As the table's labels name them where the set was made of a table, else their numbers."""
    made = packed.preparation
    named = made.classes if isinstance(made, TablePreparation) else ()
    return [str(name) for name in named or range(len(packed.counts))]


def _pictures(packed: PackedSet) -> tuple[Any, tuple[str, ...]]:
    """The column `image`, and what to say of it."""
    import pyarrow as pa

    pixels = to_pixels(packed)
    if pixels.loss > MOST_LOSS:
        raise InputError(
            f"PNG holds whole numbers 0…255: samples would change by up to {pixels.most:.3g}, {pixels.loss:.0%} of "
            "their standard deviation: export --to npz, webdataset or safetensors keeps them as they are"
        )
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": png(picture), "path": f"{i:06}.png"} for i, picture in enumerate(pixels.x)]
    if not pixels.changed:
        return pa.array(rows, kind), ()
    note = (
        f"{pixels.changed:,} of {pixels.x.size:,} values are not whole numbers 0…255: rounded and clipped for PNG, by "
        f"{pixels.most:.3g} at most; --to npz keeps them as they are"
    )
    return pa.array(rows, kind), (note,)
