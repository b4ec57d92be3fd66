"""What a method for stacks is compared with: the trivial uses of neighbouring sections.

| row | what |
|---|---|
| neighbour_copy | weighted mean of what was measured at the retrieved spots |
| centred_sum | kernel_ridge + w (neighbour_copy - its mean over the section) |

w is chosen by leaving out whole training sections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from stfm_jax.data.expression import expression
from stfm_jax.data.retrieval import Placed, Reach, retrieve, weighted_copy
from stfm_jax.data.slide import Slide
from stfm_jax.ops.metrics import mean_over_genes, pearson
from stfm_jax.regression import features as feature_ops
from stfm_jax.regression import regressors

WEIGHTS = np.arange(0.0, 1.51, 0.1)


def predictions(
    train: Sequence[Slide],
    test: Sequence[Slide],
    genes: Sequence[str],
    normalization: str,
    transform: feature_ops.FeatureTransform,
    context: Sequence[int],
    reach: Reach,
    kernel: Sequence[np.ndarray],
    choice: regressors.Choice,
) -> tuple[dict[str, list[np.ndarray]], float]:
    """The rows' predictions [n, g] of every test slide, and w.

    Args:
      train: training slides, registered.
      test: registered slides to predict; their expression is not looked at.
      genes: the g genes.
      normalization: of the expression.
      transform: feature transform fitted on the training slides.
      context: sizes of the neighbourhoods of kernel ridge's features.
      reach: how neighbours are retrieved.
      kernel: kernel ridge's prediction of the test slides.
      choice: its hyperparameters.

    Returns:
      No rows where a test slide has no training slide in its stack.
    """
    expr = [expression(slide, genes, normalization) for slide in train]
    own = {s.name: feature_ops.own_features(transform, s.features) for s in (*train, *test)}
    copies = [neighbour_copy(s, train, expr, own, reach) for s in test]
    if any(copy is None for copy in copies):
        return {}, float("nan")
    weight = _choose_weight(train, expr, own, transform, context, reach, choice)
    centred = [copy - copy.mean(axis=0) for copy in copies]
    sums = [k + weight * c for k, c in zip(kernel, centred, strict=True)]
    return {"neighbour_copy": copies, "centred_sum": sums}, weight


def neighbour_copy(
    slide: Slide,
    measured: Sequence[Slide],
    expr: Sequence[np.ndarray],
    own: Mapping[str, np.ndarray],
    reach: Reach,
) -> np.ndarray | None:
    """What was measured around a slide's spots on the others of its stack, None without any.

    Args:
      slide: registered.
      measured: registered slides; the slide itself and those of other stacks are left out here.
      expr: [n_j, g] of each of them.
      own: principal components [n, p] of every slide, by name.
      reach: how neighbours are retrieved.
    """
    near = [
        i for i, s in enumerate(measured) if s.patient == slide.patient and s.name != slide.name
    ]
    if not near:
        return None
    stack = [slide, *(measured[i] for i in near)]
    placed = [Placed(s.name, s.registered_um, s.z_um, own[s.name]) for s in stack]
    found = retrieve(placed, 0, range(len(stack)), reach)
    return weighted_copy(found, [None, *(expr[i] for i in near)], expr[near[0]].shape[1])[0]


def _choose_weight(train, expr, own, transform, context, reach: Reach, choice) -> float:
    x = np.concatenate(
        [feature_ops.context_features(transform, s.features, s.coords_um, context) for s in train]
    )
    sizes = [s.num_spots for s in train]
    groups = regressors.leave_out_groups(sizes, [s.coords_um for s in train])
    oof = regressors.out_of_fold("kernel", x, np.concatenate(expr), groups, choice)
    oof = np.split(oof, np.cumsum(sizes)[:-1])
    scores = np.zeros(len(WEIGHTS))
    for slide, base, y in zip(train, oof, expr, strict=True):
        copy = neighbour_copy(slide, train, expr, own, reach)
        if copy is not None:
            centred = copy - copy.mean(axis=0)
            scores += [mean_over_genes(pearson(base + w * centred, y))[0] for w in WEIGHTS]
    return float(WEIGHTS[np.argmax(scores)])
