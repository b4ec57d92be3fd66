"""SRast as a method: trained on samples at two resolutions, it splits the counts of another."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from stfm_jax.data.batching import bucket_size
from stfm_jax.data.coarsen import Pair
from stfm_jax.errors import InputError
from stfm_jax.flow import simplex_path
from stfm_jax.models.method import PAIRS, SPLIT, Method, Request, within
from stfm_jax.models.parts import Pairs, Split, columns
from stfm_jax.models.sharded import on_devices
from stfm_jax.models.srast import features
from stfm_jax.models.srast.batches import SplitBatches, joined, padded, taken
from stfm_jax.models.srast.features import SplitRows
from stfm_jax.models.srast.flow import MEAN_DRAWS, Fitted, SplitArrays, SplitTraining, SRast
from stfm_jax.models.srast.images import ImageReader
from stfm_jax.models.srast.pooling import pair_weight
from stfm_jax.nn.split_net import SplitNet
from stfm_jax.ops import metrics
from stfm_jax.regression import regressors
from stfm_jax.regression.features import STANDARDIZATIONS
from stfm_jax.runtime import ahead
from stfm_jax.runtime.devices import SHARDED, SHARDED_DRAWS, fetch, replicate, shard
from stfm_jax.settings import Settings, setting
from stfm_jax.train.stages import Run, Stage, select_and_refit

VALIDATION_ROWS, VALIDATION_DRAWS = 8192, 8  # held-out pairs looked at, at most; draws of each
PIECE = 2048  # pairs that a core of a CPU takes at a time; accelerators take as many as are set
AHEAD = features.PAIRS // PIECE  # pieces of one draw: as many as are prepared together


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
    patience: int = setting(0, least=0)  # epochs without a better one that end the selection
    batch: int = setting(4096, least=1)
    pairs_at_once: int = setting(65536, least=1)
    trained_on: int = setting(200, least=1)  # genes; the problem chooses them
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
    papers = ("SRast, arXiv 2602.10644",)
    Settings = SRastSettings
    State = State

    def fit(self, cases: Sequence[Pair], genes: Mapping[str, Sequence[str]], run: Run) -> State:
        """State fitted to pairs; genes: by sample, to train on."""
        flow = self.settings.flow

        def training_on(pairs: Sequence[Pair]) -> tuple[SplitTraining, Stage]:
            of_each = [genes[pair.high.name] for pair in pairs]
            training = flow.training_set(pairs, of_each, run.seed, run.once)
            names = tuple(pair.high.name for pair in pairs)
            batch = self.settings.batch
            batches = SplitBatches(joined(training.rows), names, batch, _at_once(batch))
            return training, Stage(flow, batches, training.fitted.flow)

        def select() -> tuple[SplitTraining, Stage]:
            kept, out = hold_out(cases, run.seed)
            training, stage = training_on(kept)
            fitted = training.fitted
            unseen = [
                flow.rows_of(
                    pair, flow.learn(pair, fitted, run.seed, run.once), genes[pair.high.name],
                    run.seed, run.once,
                )
                for pair in out
            ]  # fmt: skip
            score = _score(flow, fitted.flow, joined(unseen), run)
            return training, stage._replace(score=score, patience=self.settings.patience)

        outcomes = select_and_refit(run, run.settings.epochs, select, lambda: training_on(cases))
        *_, last = outcomes.values()
        return State(last.fitted.fitted, fetch(last.trained.params), last.epochs)

    def predict(self, state: State, case: Pair, request: Request) -> Iterator[Split]:
        """Shares of all counts of a sample, pair by pair; its children's are not looked at."""
        flow, mesh, draws = self.settings.flow, request.mesh, request.draws
        learned = flow.learn(case, state.fitted, request.seed)
        params, arrays = replicate(mesh, (state.params, state.fitted.flow))
        key = jax.random.key(request.seed)
        at_once = mesh.size * _at_once(self.settings.pairs_at_once)

        def split(part: tuple[Pairs, np.ndarray, SplitRows]) -> Split:
            pairs, children, rows = part
            n = len(rows.counts)
            placed = shard(mesh, padded(rows, _padded_size(mesh, n, at_once)))
            arguments = params, arrays, placed, key
            mean = fetch(on_devices(flow, "mean", mesh, SHARDED, MEAN_DRAWS, *arguments))[:n]
            sampled = np.zeros((0, *mean.shape), np.float32)
            if draws:
                sampled = on_devices(flow, "sample", mesh, SHARDED_DRAWS, draws, *arguments)
            return Split(pairs, children, rows.counts, mean, fetch(sampled)[:, :n])

        genes = columns(case, request.genes.scored)
        parts = features.blocks(case, learned, genes, at_once)
        workers = ahead.threads(mesh.size)
        yield from ahead.computed(split, parts, workers, 2 * workers + AHEAD // max(draws, 1))

    def individual_data(self, state: State) -> dict[str, str]:
        images = state.fitted.images
        if images is None:
            return {}
        return within("fitted/images/depth", regressors.individual_data(images.depth))


def _at_once(most: int) -> int:
    """Pairs that a device takes at a time: so many, but no more than PIECE where it is a CPU."""
    return min(most, PIECE) if jax.default_backend() == "cpu" else most


def _padded_size(mesh: Mesh, n: int, at_once: int) -> int:
    """Pairs [n] with padding: on a CPU always as many, which are skipped, so as to compile once."""
    if jax.default_backend() == "cpu":
        return at_once
    return mesh.size * bucket_size(-(-n // mesh.size))


def hold_out(pairs: Sequence[Pair], seed: int) -> tuple[list[Pair], list[Pair]]:
    """Samples to train on, and those for validation, of which nothing is learned before.

    All of one patient; one sample, where there is one patient; a fifth of the parents of an only
    sample, a spatial block.
    """
    if len(pairs) == 1:
        (pair,) = pairs
        low = pair.low
        block = regressors.leave_out_groups([low.num_spots], [low.coords_um], seed) == 0
        return [pair.of_parents(np.flatnonzero(~block))], [pair.of_parents(np.flatnonzero(block))]
    names = [pair.high.patient or pair.high.name for pair in pairs]
    patients, rng = sorted(set(names)), np.random.default_rng(seed)
    if len(patients) > 1:
        chosen = patients[rng.integers(len(patients))]
        out = [name == chosen for name in names]
    else:
        out = list(np.arange(len(pairs)) == rng.integers(len(pairs)))
    kept = [pair for pair, left in zip(pairs, out, strict=True) if not left]
    return kept, [pair for pair, left in zip(pairs, out, strict=True) if left]


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
    n, size = len(rows.counts), mesh.size * _at_once(VALIDATION_ROWS)
    size = min(size, _padded_size(mesh, n, size))
    whole = padded(rows, -(-n // size) * size)
    starts = range(0, n, size)
    placed = [shard(mesh, SplitRows(*(a[i : i + size] for a in whole))) for i in starts]
    arrays, weight = replicate(mesh, arrays), pair_weight(rows.counts)[:, None]
    draw = functools.partial(on_devices, flow, "sample", mesh, SHARDED_DRAWS, VALIDATION_DRAWS)

    def score(params) -> float:
        def drawn(piece: SplitRows) -> np.ndarray:
            return fetch(draw(params, arrays, piece, jax.random.key(run.seed)))

        pieces = list(ahead.computed(drawn, placed, ahead.threads(mesh.size), len(placed)))
        draws = np.concatenate(pieces, axis=1)[:, :n]
        found = metrics.crps(draws * weight, rows.ratios * weight)
        return -float(found.sum() / weight.mean())

    return score
