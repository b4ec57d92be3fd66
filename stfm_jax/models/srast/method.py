"""SRast as a method: trained on samples at two resolutions, it splits the counts of another."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from stfm_jax.data.batching import bucket_size
from stfm_jax.data.coarsen import Pair
from stfm_jax.data.slide import Slide
from stfm_jax.errors import InputError
from stfm_jax.flow import simplex_path
from stfm_jax.models.method import PAIRS, SPLIT, Method, Request
from stfm_jax.models.parts import Split, columns
from stfm_jax.models.sharded import on_devices
from stfm_jax.models.srast import features
from stfm_jax.models.srast.batches import SplitBatches, joined, padded, taken
from stfm_jax.models.srast.features import SplitRows
from stfm_jax.models.srast.flow import MEAN_DRAWS, Fitted, SplitArrays, SRast, fit_arrays
from stfm_jax.models.srast.images import ImageReader
from stfm_jax.models.srast.pooling import pair_weight
from stfm_jax.nn.split_net import SplitNet
from stfm_jax.ops import metrics
from stfm_jax.regression.features import STANDARDIZATIONS
from stfm_jax.runtime.devices import SHARDED, SHARDED_DRAWS, fetch, replicate, shard
from stfm_jax.settings import Settings, setting
from stfm_jax.train.stages import Run, Stage, select_and_refit

VALIDATION_ROWS, VALIDATION_DRAWS = 8192, 8  # held-out pairs looked at, at most; draws of each


@dataclasses.dataclass(frozen=True)
class SRastSettings(Settings):
    """The section `srast`. See configs/base.py."""

    SECTION: ClassVar[str] = "srast"

    latents: bool = setting(True)
    image: bool = setting(False)
    path: str = setting("dirichlet", one_of=simplex_path.PATHS)
    noise: str = setting("fitted", one_of=simplex_path.NOISES)
    pairing: str = setting("independent", one_of=simplex_path.PAIRINGS)
    velocity: float = setting(1.0, least=0)
    kl: float = setting(1.0, least=0)
    boundary: float = setting(0.01, least=0)
    width: int = setting(16, least=1)
    blocks: int = setting(1, least=0)
    heads: int = setting(2)
    batch: int = setting(4096, least=1)
    pairs_at_once: int = setting(65536, least=1)
    components: int = setting(256, at="model.components")
    context: tuple[int, ...] = setting((9, 25, 60), at="model.context")
    standardize: str = setting("slide", at="data.standardize", one_of=STANDARDIZATIONS)
    evaluations: int = setting(5, at="sample.evaluations", least=1)

    def __post_init__(self):
        super().__post_init__()
        if self.width % self.heads:
            raise InputError(
                f"config.srast.width ({self.width}) must be a multiple of config.srast.heads "
                f"({self.heads})."
            )
        if (self.pairing, self.noise, self.path) == ("optimal", "fitted", "dirichlet"):
            raise InputError(
                "config.srast.pairing=optimal exchanges noise between pairs, but fitted noise is "
                "each pair's own; set --config.srast.noise=uniform."
            )

    @property
    def flow(self) -> SRast:
        """The flow."""
        reader = ImageReader(self.components, self.context, self.standardize)
        return SRast(
            network=SplitNet(self.width, self.blocks, self.heads),
            path=self.path,
            noise=self.noise,
            pairing=self.pairing,
            velocity=self.velocity,
            kl=self.kl,
            boundary=self.boundary,
            latents=self.latents,
            images=reader if self.image else None,
            evaluations=self.evaluations,
        )


class State(NamedTuple):
    """A trained SRast."""

    fitted: Fitted
    params: dict
    epochs: int  # it was trained for


class SRastMethod(Method):
    """Trains and applies `flow.SRast`."""

    name = "srast"
    problem = SPLIT
    needs = frozenset({PAIRS})
    draws_as = "srast_draw"
    compared_with = ("uniform", "bilinear", "bicubic", "gaussian")
    Settings = SRastSettings
    State = State

    def fit(self, cases: Sequence[Pair], genes: Mapping[str, Sequence[str]], run: Run) -> State:
        """State fitted to pairs; genes: by sample, to train on."""
        flow, slides = self.settings.flow, [pair.high for pair in cases]
        of_each = [genes[slide.name] for slide in slides]
        training = flow.training_set(cases, of_each, run.seed)
        names = tuple(slide.name for slide in slides)

        def stage(rows: Sequence[SplitRows], arrays: SplitArrays) -> Stage:
            return Stage(flow, SplitBatches(joined(rows), names, self.settings.batch), arrays)

        def select() -> tuple[Fitted, Stage]:
            held = held_out(slides, [len(r.counts) for r in training.rows], run.seed)
            both = list(zip(training.rows, held, strict=True))
            kept = [taken(rows, np.flatnonzero(~out)) for rows, out in both]
            kept = [rows for rows in kept if len(rows.counts)]
            left_out = joined([taken(rows, np.flatnonzero(out)) for rows, out in both])
            arrays = fit_arrays(kept, run.seed)
            score = _score(flow, arrays, left_out, run)
            fitted = training.fitted._replace(flow=arrays)
            return fitted, stage(kept, arrays)._replace(score=score)

        def refit() -> tuple[Fitted, Stage]:
            return training.fitted, stage(training.rows, training.fitted.flow)

        *_, last = select_and_refit(run, run.settings.epochs, select, refit).values()
        return State(last.fitted, fetch(last.trained.params), last.epochs)

    def predict(self, state: State, case: Pair, request: Request) -> Iterator[Split]:
        """Shares of all counts of a sample, pair by pair; its children's are not looked at."""
        flow, mesh = self.settings.flow, request.mesh
        learned = flow.learn(case, state.fitted, request.seed)
        params, arrays = replicate(mesh, (state.params, state.fitted.flow))
        key, at_once = jax.random.key(request.seed), self.settings.pairs_at_once * mesh.size
        genes = columns(case, request.genes.scored)
        for pairs, children, rows in features.blocks(case, learned, genes, at_once):
            n = len(rows.counts)
            size = mesh.size * bucket_size(-(-n // mesh.size))
            arguments = params, arrays, shard(mesh, padded(rows, size)), key
            mean = on_devices(flow, "mean", mesh, SHARDED, MEAN_DRAWS, *arguments)
            sampled = np.zeros((0, size, children.shape[1]), np.float32)
            if request.draws:
                sampled = on_devices(flow, "sample", mesh, SHARDED_DRAWS, request.draws, *arguments)
            yield Split(pairs, children, rows.counts, fetch(mean)[:n], fetch(sampled)[:, :n])


def held_out(slides: Sequence[Slide], sizes: Sequence[int], seed: int) -> list[np.ndarray]:
    """Which pairs [N_i] of each slide are left out of the selection's training.

    All slides of one patient; one slide, where there is one patient; a fifth of the pairs of the
    only slide.
    """
    patients = sorted({slide.patient or slide.name for slide in slides})
    rng = np.random.default_rng(seed)
    if len(slides) == 1:
        return [rng.permutation(sizes[0]) < sizes[0] // 5]
    if len(patients) > 1:
        chosen = patients[rng.integers(len(patients))]
        out = [(slide.patient or slide.name) == chosen for slide in slides]
    else:
        out = np.arange(len(slides)) == rng.integers(len(slides))
    return [np.full(size, flag) for size, flag in zip(sizes, out, strict=True)]


def _score(flow: SRast, arrays: SplitArrays, rows: SplitRows, run: Run) -> Callable[[Any], float]:
    """Parameters -> minus the CRPS of the shares of held-out pairs, the same noise every time.

    Pairs weigh as in the loss. The loss itself goes on falling while draws get worse: it sees
    points of paths that end where data are, not where the flow takes them.
    """
    mesh = run.mesh
    if len(rows.counts) > VALIDATION_ROWS:
        rng = np.random.default_rng(run.seed)
        some = rng.choice(len(rows.counts), VALIDATION_ROWS, replace=False)
        rows = taken(rows, np.sort(some))
    n = len(rows.counts)
    size = -(-n // mesh.size) * mesh.size
    placed, arrays = shard(mesh, padded(rows, size)), replicate(mesh, arrays)
    weight = pair_weight(rows.counts)[:, None]
    draw = functools.partial(on_devices, flow, "sample", mesh, SHARDED_DRAWS, VALIDATION_DRAWS)

    def score(params) -> float:
        draws = fetch(draw(params, arrays, placed, jax.random.key(run.seed)))[:, :n]
        found = metrics.crps(draws * weight, rows.ratios * weight)
        return -float(found.sum() / weight.mean())

    return score
