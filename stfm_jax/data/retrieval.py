"""Spots of neighbouring sections that correspond to a spot: what a stack is predicted from.

Sections lie in one frame (see `data.registration`). For every spot the planar nearest spots of the
sections within reach are candidates; they are ranked by likeness of their images, by distance in
the plane and by distance along z, and the best are kept with attention-like weights. Who is
retrieved depends on images and places alone, so a section whose expression is held out is retrieved
and retrieves like any other. Everything of this module is [ours]; docs/methods.md section 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from stfm_jax.errors import InputError
from stfm_jax.ops.neighbors import workers


@dataclasses.dataclass(frozen=True)
class Placed:
    """A section in the frame of its stack."""

    name: str
    coords_um: np.ndarray  # [n, 2] float64, common frame
    z_um: float
    features: np.ndarray  # [n, p] standardised image features


@dataclasses.dataclass(frozen=True)
class Reach:
    """How far, and how, neighbours are looked for."""

    sections: int = 2  # nearest sections on either side
    candidates: int = 24  # planar nearest spots of each of them
    kept: int = 24  # of all candidates of a spot
    image: float = 0.3  # weight of the cosine of the features; the rest is the place's
    sigma_um: float = 150.0  # width of the place's part in the plane
    z_um: float = 400.0  # |dz| that costs as much as the image or the place can give
    temperature: float = 0.3  # of the softmax over the kept


class Retrieved(NamedTuple):
    """Kept spots of each of n spots, the best first; k columns, padded where there are fewer."""

    section: np.ndarray  # [n, k] int32, place of the section in the stack
    spot: np.ndarray  # [n, k] int32, its row there
    offset_um: np.ndarray  # [n, k, 3] float32, from the spot to the retrieved one; z last
    weight: np.ndarray  # [n, k] float32, sums to 1; 0 for padding


def retrieve(sections: Sequence[Placed], target: int, among: Sequence[int], reach: Reach):
    """What corresponds to the spots of one section.

    Args:
      sections: of the stack.
      target: index of the section whose spots look.
      among: indices of the sections that may be looked at; the target is left out.
      reach: settings.

    Returns:
      Retrieved, of the target's n spots.

    Raises:
      InputError: no other section.
    """
    own = sections[target]
    near = within_reach(sections, target, among, reach.sections)
    if not near:
        raise InputError(
            f"slide {own.name!r}: there is no other section to retrieve from; give the sections "
            "of its stack with it."
        )
    found = [_candidates(own, sections[s], reach.candidates) for s in near]
    section = np.concatenate([np.full(i.shape, s) for s, i in zip(near, found, strict=True)], 1)
    spot = np.concatenate(found, axis=1)
    offset = np.concatenate(
        [_offsets(own, sections[s], i) for s, i in zip(near, found, strict=True)], axis=1
    )
    likeness = np.concatenate(
        [_cosine(own.features, sections[s].features, i) for s, i in zip(near, found, strict=True)],
        axis=1,
    )
    return _best(section, spot, offset, _score(likeness, offset, reach), reach)


def within_reach(
    sections: Sequence[Placed], target: int, among: Sequence[int], steps: int
) -> list[int]:
    """The `steps` nearest of `among` below the target and as many above, by z; ascending in z."""
    z = sections[target].z_um
    others = sorted((s for s in among if s != target), key=lambda s: sections[s].z_um)
    below = [s for s in others if sections[s].z_um < z]
    above = [s for s in others if sections[s].z_um > z]
    return below[-steps:] + above[:steps]


def gathered(retrieved: Retrieved, values: Sequence[np.ndarray | None], width: int) -> np.ndarray:
    """Values of the retrieved spots, [n, k, width]; zero where a section has none.

    Args:
      retrieved: of n spots.
      values: [n_s, width] of every section of the stack, None where it has none.
      width: of the values.
    """
    out = np.zeros((*retrieved.spot.shape, width), np.float32)
    for s, of_section in enumerate(values):
        at = (retrieved.section == s) & (retrieved.weight > 0)
        if of_section is not None and at.any():
            out[at] = of_section[retrieved.spot[at]]
    return out


def has_values(retrieved: Retrieved, values: Sequence[np.ndarray | None]) -> np.ndarray:
    """Which retrieved spots [n, k] lie on a section that has values; False for padding."""
    known = np.array([of_section is not None for of_section in values])
    return known[retrieved.section] & (retrieved.weight > 0)


def weighted_copy(
    retrieved: Retrieved, values: Sequence[np.ndarray | None], width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean of the values of the retrieved spots.

    Returns:
      Mean [n, width], zero where no retrieved spot has a value; and what share of the weight had
      one, [n].
    """
    weight = retrieved.weight * has_values(retrieved, values)
    share = weight.sum(axis=1)
    weight /= np.where(share > 0, share, 1.0)[:, None]
    return np.einsum("nk,nkg->ng", weight, gathered(retrieved, values, width)), share


def _candidates(own: Placed, other: Placed, count: int) -> np.ndarray:
    """The planar nearest spots [n, c] of another section, nearest first."""
    count = min(count, len(other.coords_um))
    threads = workers(len(own.coords_um))
    index = cKDTree(other.coords_um).query(own.coords_um, k=count, workers=threads)[1]
    return index.reshape(len(own.coords_um), count)


def _offsets(own: Placed, other: Placed, index: np.ndarray) -> np.ndarray:
    plane = other.coords_um[index] - own.coords_um[:, None]
    z = np.full((*index.shape, 1), other.z_um - own.z_um)
    return np.concatenate([plane, z], axis=2).astype(np.float32)


def _cosine(own: np.ndarray, other: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Cosine of the features of each spot and of its candidates, [n, c]."""
    own, other = _unit(own), _unit(other)
    return np.stack([(own * other[column]).sum(axis=1) for column in index.T], axis=1)


def _unit(x: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norm > 0, norm, 1.0)


def _score(likeness: np.ndarray, offset: np.ndarray, reach: Reach) -> np.ndarray:
    """`a cos + (1 - a) exp(-|p|^2 / 2 sigma^2) - |dz| / z` of every candidate."""
    squared = (offset[..., :2] ** 2).sum(axis=-1)
    place = np.exp(-0.5 * squared / reach.sigma_um**2)
    along = np.abs(offset[..., 2]) / reach.z_um
    return reach.image * likeness + (1.0 - reach.image) * place - along


def _best(section, spot, offset, score, reach: Reach) -> Retrieved:
    """The best candidates of every spot, with the softmax of their scores."""
    order = np.argsort(-score, axis=1, kind="stable")[:, : reach.kept]
    section, spot, score = (np.take_along_axis(a, order, axis=1) for a in (section, spot, score))
    offset = np.take_along_axis(offset, order[..., None], axis=1)
    weight = np.exp((score - score[:, :1]) / reach.temperature)
    weight /= weight.sum(axis=1, keepdims=True)
    return Retrieved(
        section.astype(np.int32), spot.astype(np.int32), offset, weight.astype(np.float32)
    )
