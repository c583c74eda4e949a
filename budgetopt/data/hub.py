"""Datasets of the Hugging Face hub, `hf:OWNER/NAME`, by the optional package `datasets`; kept as Parquet."""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from pathlib import Path

from budgetopt import cache_folder
from budgetopt.errors import InputError

PREFIX = "hf:"
TEST_SPLITS = ("test", "validation", "valid", "val")


def fetched(name: str) -> Path:
    """Folder with `train.parquet` and, where the dataset has a test or validation split, `test.parquet`; downloaded
    once. Raises `InputError` in one line where the package, the network or the dataset is missing."""
    wanted = name.removeprefix(PREFIX)
    if not wanted or wanted.startswith("/") or wanted.count("/") > 1:
        raise InputError(f"cannot read the dataset {name!r}: write {PREFIX}OWNER/NAME")
    digest = hashlib.sha256(wanted.encode()).hexdigest()[:8]
    folder = cache_folder.part("hub") / f"{wanted.replace('/', '--')}-{digest}"
    if folder.is_dir():
        return folder
    try:
        import datasets
    except ImportError:
        raise InputError(f"{name} needs the extra hf: pip install 'budgetopt[hf]'") from None
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # every retry would be told
    try:
        splits = datasets.load_dataset(wanted)
        test = next((split for split in TEST_SPLITS if split in splits), None)
        if "train" not in splits:
            raise InputError(f"{name} has no split train; it has {', '.join(splits)}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(".partial", folder.name, folder.parent))
        try:
            splits["train"].to_parquet(str(partial / "train.parquet"))
            if test is not None:
                splits[test].to_parquet(str(partial / "test.parquet"))
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except InputError:
        raise
    except Exception as error:  # whatever a download can raise ends in one line
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
        raise InputError(f"{name} could not be downloaded ({type(error).__name__}): {reason}") from None
    return folder
