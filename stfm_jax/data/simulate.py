"""Simulated spatial transcriptomics: serial sections of one volume, with counts, images and truth.

`volume` makes one patient's sections, `cohort` several patients who share gene signatures. What the
tissue is at a point lives in `simulate_tissue.py`, how it looks under the microscope in
`simulate_patches.py`, how patients differ in `simulate_patient.py`. The simulation is [ours]; the
counts are ZINB as in docs/methods.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from stfm_jax.data.simulate_params import LATTICES, TissueParams
from stfm_jax.data.simulate_patches import SimulatedPatches
from stfm_jax.data.simulate_patient import Patient, draw_patient
from stfm_jax.data.simulate_tissue import (
    CELL_TYPES,
    Motion,
    Tissue,
    cell_density,
    grow_tissue,
    random_field,
    stream,
)
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Signatures:
    """Gene properties, shared by all volumes of equal `signature_seed` and sizes."""

    genes: np.ndarray  # [g] str
    profiles: np.ndarray  # [types, g] float32, relative expression of each cell type, mean 1
    loadings: np.ndarray  # [programs, g] float32, effect of the hidden programs on the log mean
    theta: np.ndarray  # [g] inverse dispersion
    pi: np.ndarray  # [g] zero-inflation probability


@dataclasses.dataclass(frozen=True)
class Truth:
    """What a section's data was made from."""

    points_um: np.ndarray  # [n, 3] where the spots lie in the volume
    motion: Motion  # volume plane -> slide coordinates
    domains: np.ndarray  # [n, domains] float32
    mixtures: np.ndarray  # [n, types] float32, of the tissue at the spot's centre
    programs: np.ndarray  # [n, programs] float32, hidden from the image, nugget included
    depth: np.ndarray  # [n] technical depth, median about 1
    mean: np.ndarray | None  # [n, g] float32, ZINB mean (1 - pi) mu; None when not kept


@dataclasses.dataclass(frozen=True)
class Volume:
    """Serial sections of one simulated block of tissue."""

    slides: list[Slide]
    truth: list[Truth]  # one per slide
    tissue: Tissue
    signatures: Signatures
    patient: Patient


def volume(params: TissueParams, seed: int, patient: str = "P1", keep_mean: bool = True) -> Volume:
    """Simulates serial sections of one block of tissue.

    Args:
      params: what to simulate.
      seed: same params and seed, same volume; another seed is another patient.
      patient: the slides' patient; also begins their names.
      keep_mean: whether to keep the dense mean expression [n, g] in the truth.

    Returns:
      The slides (coords_um, counts, genes, lazily rendered patches, z_um) and their truth.

    Raises:
      InputError: the seed is negative, or no spot lies on the tissue of some section.
    """
    if seed < 0:
        raise InputError(f"simulated tissue: expected a seed of 0 or more, found {seed}.")
    lattice = LATTICES[params.lattice]
    z_um = params.section_gap_um * np.arange(params.num_sections)
    tissue = grow_tissue(
        seed,
        area_um2=params.spots * lattice.cell * params.pitch**2,
        z_um=z_um,
        num_programs=params.num_programs,
        domain_length_um=params.domain_length_um,
        local_length_um=params.local_length_um,
        program_length_um=params.program_length_um,
        z_stretch=params.z_stretch,
    )
    who, genes = draw_patient(params, seed, patient), signatures(params)
    tissue = who.tissue(tissue)
    pairs = [_section(params, tissue, genes, who, k, z, keep_mean) for k, z in enumerate(z_um)]
    return Volume([slide for slide, _ in pairs], [truth for _, truth in pairs], tissue, genes, who)


def cohort(params: TissueParams, seeds: Sequence[int], keep_mean: bool = True) -> list[Volume]:
    """One volume per seed, patients P1, P2, ...: same signatures, other tissue, stain and depth."""
    return [volume(params, s, f"P{i + 1}", keep_mean) for i, s in enumerate(seeds)]


def tissue_rates(volume: Volume, section: int) -> np.ndarray:
    """What the tissue itself says of counts, [n, g] up to a factor: no image can say more.

    Truth's mean knows more: which cells a spot happened to capture, its depth, the programs' part
    that differs from spot to spot.
    """
    mixtures = volume.truth[section].mixtures
    programs = volume.tissue.programs(volume.truth[section].points_um)
    library, shares = _rna(mixtures, cell_density(mixtures))
    rates = library[:, None] * _expressed(volume.signatures, shares, programs)
    return rates * volume.patient.level * volume.patient.detected


def signatures(params: TissueParams) -> Signatures:
    """Draws the gene properties from `params.signature_seed`."""
    rng = stream(params.signature_seed, "signatures")
    num, num_types = params.num_genes, len(CELL_TYPES)
    width = max(3, len(str(num)))
    base = np.exp(rng.normal(0, 0.7, num))
    change = rng.normal(0, 0.45, (num_types, num))
    change[rng.integers(num_types, size=num), np.arange(num)] += rng.uniform(1.2, 3.2, num)
    profiles = base * np.exp(change)
    loadings = rng.normal(size=(params.num_programs, num))
    loadings *= rng.uniform(size=loadings.shape) < 0.6
    loadings *= params.program_strength / np.sqrt(0.6 * params.num_programs)
    return Signatures(
        genes=np.array([f"GENE{i + 1:0{width}d}" for i in range(num)]),
        profiles=(profiles / profiles.mean()).astype(np.float32),
        loadings=loadings.astype(np.float32),
        theta=np.exp(rng.normal(np.log(10.0), 0.5, num)),
        pi=rng.beta(1.0, 30.0, num),
    )


def _section(
    params: TissueParams,
    tissue: Tissue,
    genes: Signatures,
    patient: Patient,
    k: int,
    z_um: float,
    keep_mean: bool,
) -> tuple[Slide, Truth]:
    name, seed = f"{patient.name}_S{k + 1}", patient.seed
    motion = _draw_motion(params, tissue, stream(seed, "motion", k))
    coords, barcodes = _place_spots(params, tissue, motion, z_um, stream(seed, "spots", k))
    if len(coords) == 0:
        raise InputError(
            f"simulated slide {name!r}: expected about {params.spots} spots on the tissue, found "
            "none; raise spots or lower lost."
        )
    points = motion.points(coords, z_um)
    counts, truth = _measure(params, tissue, genes, patient, k, points, motion, keep_mean)
    slide = Slide(
        name=name,
        barcodes=barcodes,
        coords_um=coords,
        counts=counts,
        genes=genes.genes,
        patches=SimulatedPatches(
            tissue,
            motion,
            z_um,
            coords,
            patient.stain(k),
            (seed, k),
            params.um_per_px * patient.scanner.pixel,
            patient.scanner,
        ),
        patient=patient.name,
        section=f"S{k + 1}",
        z_um=float(z_um),
        source=f"simulated, seed {seed}",
    )
    return slide, truth


def _draw_motion(params: TissueParams, tissue: Tissue, rng: np.random.Generator) -> Motion:
    angle = np.deg2rad(params.rotation_deg) * rng.uniform(-1, 1)
    shift = params.shift_um * rng.uniform(-1, 1, 2)
    mirror = np.diag([-1.0, 1.0]) if rng.uniform() < params.flip else np.eye(2)
    c, s = np.cos(angle), np.sin(angle)
    matrix = np.array([[c, -s], [s, c]]) @ mirror
    return Motion(matrix, tissue.center_um + shift - matrix @ tissue.center_um)


def _place_spots(
    params: TissueParams,
    tissue: Tissue,
    motion: Motion,
    z_um: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Spots on tissue: coords [n, 2] in the slide's frame, barcodes [n]."""
    center = motion.apply(tissue.center_um[None])[0]
    coords, labels = _lattice_points(params, center, tissue.reach_um, rng)
    coords = coords + params.jitter_um * rng.normal(size=coords.shape)
    keep = rng.uniform(size=len(coords)) >= params.lost
    keep &= ((coords - center) ** 2).sum(axis=1) < tissue.reach_um**2
    coords, labels = coords[keep], labels[keep]
    blocks = np.array_split(coords, max(1, len(coords) // 65536))
    on = np.concatenate([tissue.inside(motion.points(block, z_um)) > 0 for block in blocks])
    return coords[on], _barcodes(labels[on])


def _lattice_points(
    params: TissueParams, center: np.ndarray, reach_um: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Lattice points [m, 2] around `center` with their integer labels [m, 2]; row by row.

    The lattice is fixed in the slide's frame, as on a real array: the tissue moves over it.
    """
    pitch = params.pitch
    if params.lattice == "random":
        m = round((2 * reach_um / pitch) ** 2)
        coords = center + rng.uniform(-reach_um, reach_um, (m, 2))
        return coords, np.column_stack([np.arange(m), np.zeros(m, int)])
    step = pitch * np.array([1.0, np.sqrt(3) / 2 if params.lattice == "hex" else 1.0])
    low = np.floor((center - reach_um) / step).astype(int)
    high = np.ceil((center + reach_um) / step).astype(int)
    row, column = np.mgrid[low[1] : high[1] + 1, low[0] : high[0] + 1].reshape(2, -1)
    offset = 0.5 * (row % 2) if params.lattice == "hex" else 0.0
    return np.column_stack([column + offset, row]) * step, np.column_stack([column, row])


def _barcodes(labels: np.ndarray) -> np.ndarray:
    column, row = labels.astype(str).T
    return np.char.add(np.char.add(column, "x"), row)


def _measure(
    params: TissueParams,
    tissue: Tissue,
    genes: Signatures,
    patient: Patient,
    k: int,
    points: np.ndarray,
    motion: Motion,
    keep_mean: bool,
) -> tuple[sp.csr_matrix, Truth]:
    """Counts [n, g] and truth of section k, in chunks of spots that bound the memory."""
    seed = patient.seed
    depth_field = random_field(stream(seed, "depth", k), 800.0, 1, num_waves=64)
    size = max(1, 2**22 // params.num_genes)
    parts = []
    for chunk, start in enumerate(range(0, len(points), size)):
        at = points[start : start + size]
        rng = stream(seed, "counts", k, chunk)
        domains = tissue.domains(at)
        mixtures = tissue.mixtures_of(domains, at)
        nugget = params.program_nugget
        programs = np.sqrt(1 - nugget) * tissue.programs(at)
        programs += (np.sqrt(nugget) * rng.normal(size=programs.shape)).astype(np.float32)
        log_depth = params.depth_smooth * depth_field(at)[:, 0]
        log_depth = log_depth + params.depth_noise * rng.normal(size=len(at))
        depth = patient.depth * np.exp(log_depth)
        mu = patient.level * _mean_counts(params, genes, mixtures, programs, depth, rng)
        counts = sample_zinb(rng, mu, genes.theta, genes.pi)
        counts *= patient.detected  # not mu: other genes' draws would change
        detected = (1 - genes.pi) * patient.detected
        mean = (detected * mu).astype(np.float32) if keep_mean else None
        parts.append((sp.csr_matrix(counts), domains, mixtures, programs, depth, mean))
    counts, domains, mixtures, programs, depth, mean = zip(*parts, strict=True)
    truth = Truth(
        points_um=points,
        motion=motion,
        domains=np.concatenate(domains),
        mixtures=np.concatenate(mixtures),
        programs=np.concatenate(programs),
        depth=np.concatenate(depth),
        mean=np.concatenate(mean) if keep_mean else None,
    )
    return sp.vstack(counts, format="csr"), truth


def _mean_counts(
    params: TissueParams,
    genes: Signatures,
    mixtures: np.ndarray,
    programs: np.ndarray,
    depth: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """NB means mu [n, g] float32.

    The few cells that a spot captures are a Dirichlet draw around the tissue's mixture.
    """
    lattice = LATTICES[params.lattice]
    density = cell_density(mixtures)
    cells = 8.0 + 3.0 * lattice.capture_um2 * density  # RNA of cells around the spot, too
    captured = rng.standard_gamma(cells[:, None] * mixtures + 0.02).astype(np.float32)
    captured /= captured.sum(axis=1, keepdims=True)
    library, shares = _rna(captured, density)
    mean_count = lattice.mean_count if params.mean_count is None else params.mean_count
    factor = mean_count * (depth * library).astype(np.float32)
    return factor[:, None] * _expressed(genes, shares, programs)


def _rna(cells: np.ndarray, density: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All RNA [n] and each type's share of it, from cells' shares [n, types] and density [n]."""
    rna = cells * np.array([cell.rna for cell in CELL_TYPES], np.float32)
    total = rna.sum(axis=1)
    # The square root: RNA diffuses, so poor places show more than their cells hold.
    return np.sqrt(total * density * 150.0), rna / total[:, None]


def _expressed(genes: Signatures, shares: np.ndarray, programs: np.ndarray) -> np.ndarray:
    """Relative expression [n, g] of RNA shares [n, types] and programs [n, programs]."""
    activity = np.exp(programs @ genes.loadings - 0.5 * (genes.loadings**2).sum(axis=0))
    return (shares @ genes.profiles) * activity


def sample_zinb(
    rng: np.random.Generator, mu: np.ndarray, theta: np.ndarray, pi: np.ndarray
) -> np.ndarray:
    """Zero-inflated negative binomial counts [n, g] int32 (NB variance mu + mu^2 / theta)."""
    rate = rng.standard_gamma(np.broadcast_to(theta, mu.shape)) * (mu / theta)
    counts = rng.poisson(rate).astype(np.int32)
    counts[rng.uniform(size=mu.shape) < pi] = 0
    return counts
