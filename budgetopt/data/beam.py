"""Beam management (QuADD, appendices C and E.1), simulated: which of 64 beams of a phone is the strongest, when half of
them were measured.

Channels are those of 3GPP TR 38.901, urban microcell, by Sionna. The base station sends one fixed beam; the phone's
panel listens along a codebook of 8 × 8 directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from budgetopt.data.dataset import Arrays
from budgetopt.errors import InputError
from budgetopt.seeding import derive, generator

CARRIER = 28e9  # Hz
TONES, TONE_SPACING = 20, 1.44e6  # Hz: 28.8 MHz in all
TRANSMIT_POWER = 2.0  # W, 33 dBm, over all tones
NOISE_TEMPERATURE, NOISE_FIGURE = 290.0, 10.0  # K, dB
MEASUREMENT_ERROR = 0.5  # dB, standard deviation
PANEL = 4  # antennas a side of the phone's panel, of two crossed polarisations each, half a wavelength apart
SIDE, STEP = 8, 15.0  # beams by azimuth and by elevation; degrees between them
MEASURED = 32  # of the SIDE² beams, drawn for each sample
AZIMUTH = 60.0  # the phone is turned away from the station by up to so many degrees, uniform
TILT = (12.0, 25.0)  # and tilted upwards: mean and standard deviation, degrees
ROLL = 20.0  # standard deviation, degrees
TEST_EVERY = 5  # every fifth sample of a class is one of the test part
BATCH = 500  # channels at once
MOST_SAMPLES = 10_000_000

_SPEED_OF_LIGHT, _BOLTZMANN = 299_792_458.0, 1.380649e-23


def simulate(
    samples: int, seed: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[np.ndarray, np.ndarray]:
    """→ x: (samples, 64) float32, power of the measured beams relative to the strongest of them, 0 where a beam was not
    measured; y: (samples,) int64, the strongest beam of all without noise, 8·elevation + azimuth.

    The first samples do not depend on how many follow. torch's random state is left as it was. Raises `InputError`
    where Sionna is not installed.
    """
    if not 1 <= samples <= MOST_SAMPLES:
        raise InputError(f"the number of samples must be in 1..{MOST_SAMPLES:,}, got {samples}")
    found = []
    with torch.random.fork_rng():  # Sionna seeds torch, on import and with its own seed
        sionna = _sionna()
        sionna.config.seed = derive("beam", seed)
        link, draws = _Link(sionna), generator("beam", seed)
        for done in range(0, samples, BATCH):
            found.append(link.batch(draws))
            progress(min(done + BATCH, samples), samples)
    x, y = (np.concatenate(parts)[:samples] for parts in zip(*found, strict=True))
    return x, y


def new_files(folder: Path) -> tuple[Path, Path]:
    """The two files of a table in `folder`. Raises `InputError` where one is there: a simulation takes long."""
    parts = folder / "train.parquet", folder / "test.parquet"
    for path in parts:
        if path.exists():
            raise InputError(f"{str(path)!r} exists already: name another folder with --out")
    return parts


def write(folder: Path, x: np.ndarray, y: np.ndarray, seed: int) -> tuple[Arrays, Arrays]:
    """`train.parquet` and `test.parquet` with columns rsrp_00 … rsrp_63 and the label beam → the two parts. Of a class
    the fifth, tenth … samples are for the test, so that none is there alone."""
    import pyarrow as pa
    import pyarrow.parquet

    parts = new_files(folder)
    order = np.argsort(y, kind="stable")
    rank = np.empty(len(y), np.int64)
    counts = np.bincount(y, minlength=SIDE * SIDE)
    rank[order] = np.arange(len(y)) - np.repeat(np.cumsum(counts) - counts, counts)
    tested = rank % TEST_EVERY == TEST_EVERY - 1
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, rows in zip(parts, (~tested, tested), strict=True):
            columns = {f"rsrp_{beam:02d}": x[rows, beam] for beam in range(SIDE * SIDE)}
            table = pa.table(columns | {"beam": y[rows].astype(np.int16)})
            made = {"made": f"budgetopt data beam --samples {len(y)} --seed {seed}"}
            pyarrow.parquet.write_table(table.replace_schema_metadata(made), path)
    except OSError as error:
        raise InputError(f"cannot write {str(folder)!r}: {error.strerror or error}") from None
    return (x[~tested], y[~tested]), (x[tested], y[tested])


def summary(train: Arrays, test: Arrays) -> list[str]:
    """What was made, a line each."""
    counts = np.bincount(train[1], minlength=SIDE * SIDE)
    (x, y), rare = test, int((counts < 2).sum())
    lines = [
        f"train part: {len(train[1]):,} samples, {counts.min()} to {counts.max()} of a beam; test part: {len(y):,}",
        *([f"{rare} of the {SIDE * SIDE} beams have under 2 training samples: simulate more"] if rare else []),
    ]
    if len(y):
        lines.append(f"the strongest measured beam is the best one in {(x.argmax(1) == y).mean():.1%} of the test part")
    return lines


def _sionna() -> Any:
    """`sionna.phy`, imported only here: it takes seconds, and seeds torch."""
    try:
        import sionna.phy
        import sionna.phy.channel.tr38901
    except ImportError as error:
        raise InputError(f"Sionna simulates the channels: pip install 'budgetopt[wireless]' ({error})") from None
    return sionna.phy


class _Link:
    """From one antenna of the station to the panel of a phone somewhere in its sector."""

    def __init__(self, sionna: Any) -> None:
        self._sionna, models = sionna, sionna.channel.tr38901
        common = {"carrier_frequency": CARRIER, "device": "cpu"}
        one, square = ({"num_rows_per_panel": n, "num_cols_per_panel": n, **common} for n in (1, PANEL))
        element = {"antenna_pattern": "38.901"}
        station = models.PanelArray(polarization="single", polarization_type="V", **element, **one)
        panel = models.PanelArray(polarization="dual", polarization_type="cross", **element, **square)
        self._model = models.UMi(o2i_model="low", ut_array=panel, bs_array=station, direction="downlink", **common)
        self._polarisations = panel.ant_ind_pol1, panel.ant_ind_pol2
        self._weights = codebook(panel.ant_pos)
        self._tones = (torch.arange(TONES) - (TONES - 1) / 2) * TONE_SPACING

    def batch(self, draws: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
        """BATCH samples, as `simulate` returns them."""
        amplitudes = self._beams(self._channels(draws))
        power = amplitudes.abs().square().mean((2, 3))
        noise = _BOLTZMANN * NOISE_TEMPERATURE * TONE_SPACING * 10 ** (NOISE_FIGURE / 10) * TONES / TRANSMIT_POWER
        disturbed = amplitudes + math.sqrt(noise) * torch.randn(amplitudes.shape, generator=draws, dtype=torch.cfloat)
        error = MEASUREMENT_ERROR * torch.randn(power.shape, generator=draws)
        measured = disturbed.abs().square().mean((2, 3)) * 10 ** (error / 10)
        hidden = torch.rand(power.shape, generator=draws).argsort(1)[:, MEASURED:]
        measured.scatter_(1, hidden, 0.0)
        return (measured / measured.amax(1, keepdim=True)).numpy(), power.argmax(1).numpy()

    def _channels(self, draws: torch.Generator) -> torch.Tensor:
        """(BATCH, antennas, TONES) complex gains, path loss and shadowing included: each phone outdoors, uniform in the
        sector, with or without line of sight as TR 38.901 has it."""
        drop = self._sionna.channel.gen_single_sector_topology
        place, station, _, towards_sector, still, outdoors = drop(
            BATCH, 1, "umi", indoor_probability=0.0, max_ut_velocity=0.0, device="cpu"
        )
        way = station - place
        turned = torch.deg2rad(AZIMUTH * (2 * torch.rand(BATCH, 1, generator=draws) - 1))
        up = torch.deg2rad(TILT[0] + TILT[1] * torch.randn(BATCH, 1, generator=draws))
        roll = torch.deg2rad(ROLL * torch.randn(BATCH, 1, generator=draws))
        facing = torch.stack([torch.atan2(way[..., 1], way[..., 0]) + turned, -up, roll], -1)
        self._model.set_topology(place, station, facing, towards_sector, still, outdoors, "random")
        gains, delays = self._model(1, 1.0)
        response = self._sionna.channel.cir_to_ofdm_channel(self._tones, gains, delays)
        return response[:, 0, :, 0, 0, 0]

    def _beams(self, channels: torch.Tensor) -> torch.Tensor:
        """(BATCH, antennas, TONES) → (BATCH, beams, TONES, polarisations): what each beam receives, noise of power 1 in
        an antenna being noise of power 1 in a beam."""
        of_each = [torch.einsum("ka,bat->bkt", self._weights[:, p], channels[:, p]) for p in self._polarisations]
        return torch.stack(of_each, -1)


def codebook(antennas: torch.Tensor) -> torch.Tensor:
    """antennas: (a, 3) places in the panel, metres, x to its front → (64, a) weights of the beams, each polarisation's
    of norm 1: 8 azimuths for each of 8 elevations, STEP degrees apart, symmetric about the front."""
    angles = torch.deg2rad((torch.arange(SIDE) - (SIDE - 1) / 2) * STEP)
    elevation, azimuth = torch.meshgrid(angles, angles, indexing="ij")
    towards = [elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()]
    directions = torch.stack(towards, -1).reshape(SIDE * SIDE, 3)
    phase = 2 * math.pi * CARRIER / _SPEED_OF_LIGHT * directions @ antennas.T
    return torch.polar(torch.full_like(phase, 1 / PANEL), -phase)
