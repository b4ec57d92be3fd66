"""What the forests share: trees as arrays, grown on what regressions see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from sklearn.ensemble import ExtraTreesRegressor

from stfm_jax.models import regression
from stfm_jax.models.method import Genes, Method, Prediction, Request, Run, Section
from stfm_jax.models.regression import RegressionSettings
from stfm_jax.regression import targets
from stfm_jax.regression import trees as tree_ops
from stfm_jax.regression.features import FeatureTransform
from stfm_jax.regression.trees import Boosted, Trees

EXTRA_TREES = 150
LEAF = 3  # spots at least; smaller leaves cost memory [ours]
TRIED = 1 / 3  # share of the features tried at a split [ours]


class State(NamedTuple):
    """A forest fitted to training slides."""

    transform: FeatureTransform
    trees: Trees


class Forest(Method):
    """Base of the forests: subclasses say `around` and how trees are grown."""

    around: ClassVar[bool]  # whether neighbourhoods' features are seen beside the spot's own
    Settings = RegressionSettings
    State = State

    def grown(self, seen: regression.Seen, seed: int) -> Trees | Boosted:
        """Trees that predict expression, fitted to what is seen of the training spots."""
        raise NotImplementedError

    def fit(self, cases: Sequence[Section], genes: Genes, run: Run) -> State:
        slides = [case.slide for case in cases]
        seen = regression.seen_of(
            self.settings, slides, genes.scored, self.around, run.seed, run.once
        )
        return self.State(seen.transform, self.grown(seen, run.seed))

    def predict(self, state: State, case: Section, request: Request) -> Prediction:
        blocks = regression.feature_blocks(self.settings, state.transform, case.slide, self.around)
        return Prediction((spots, tree_ops.predict(state.trees, x)) for spots, x in blocks)

    def individual_data(self, state: State) -> dict[str, str]:
        return tree_ops.individual_data(state.trees, LEAF)


def extra_trees(seen: regression.Seen, seed: int) -> Trees:
    """Extra-trees of expression, grown on targets in units of their slide."""
    seen, scale = regression.scaled(seen)
    forest = ExtraTreesRegressor(
        EXTRA_TREES, min_samples_leaf=LEAF, max_features=TRIED, n_jobs=-1, random_state=seed
    )
    trees = tree_ops.of_forest(forest.fit(*seen.pooled))
    return trees._replace(value=targets.back(trees.value, scale).astype(trees.value.dtype))
