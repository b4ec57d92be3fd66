"""A stack with every second section measured: how do time and memory grow with its sections?

    python benchmarks/volume.py [--sections=6,10,20] [--spots=5000] [--epochs=2]

Serial sections of one simulated volume, turned, turned over and shifted, are registered; HoloTea is
trained on the even ones and generates the odd ones. `--n` is the number of spots and follows from
the other two. Each row is a process of its own. `seconds` is the generation of all odd sections by
HoloTea (two draws) and by its base (one); `registration_s`, `fit_s` and `epoch_s` come before.
`stflow` and `holotea` are the gene-wise Pearson of the base's and HoloTea's mean, averaged over the
generated sections; `consistency` and `stflow_consistency` of one draw (ops.metrics).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import harness
from harness import Job, Row

SECTIONS = (6, 10, 20)  # even: half of them are generated
FEATURES, GENES, DRAWS = 64, 50, 2
COLUMNS = (
    "what", "impl", "sections", "n", "registration_s", "error_um", "fit_s", "epoch_s", "seconds",
    "slope", "peak_gib", "stflow", "holotea", "stflow_consistency", "consistency", "device",
)  # fmt: skip


def job(order: Row) -> Job:
    """A worker's part: makes, registers and learns the volume; a run generates its odd sections."""
    from stfm_jax.data import stack

    slides, truth = _volume(order["sections"], order["spots"])
    facts: Row = {}
    started = time.perf_counter()
    (sections,) = stack.stacks(slides).values()
    placed, _ = stack.registered(sections, "rigid")
    facts["registration_s"] = time.perf_counter() - started
    facts["error_um"] = _error_um(placed, truth)
    measured = placed[0::2]
    genes = list(placed[0].genes)
    flow = _flow(order)
    (base, state), times = _trained(flow, measured, genes, order["epochs"])
    return _generation(flow, base, state, placed, genes, facts | times)


def _volume(sections: int, spots: int):
    """Slides with the true mixtures, noisy and in other axes, as features; true places."""
    import dataclasses

    import numpy as np

    from stfm_jax.data.simulate import TissueParams, volume

    params = TissueParams(num_sections=sections, spots=spots, num_genes=GENES, lattice="hex")
    made, rng = volume(params, seed=0, keep_mean=False), np.random.default_rng(0)
    axes = rng.normal(size=(made.truth[0].mixtures.shape[1], FEATURES))
    slides = []
    for slide, truth in zip(made.slides, made.truth, strict=True):
        noise = 0.3 * rng.normal(size=(slide.num_spots, FEATURES))
        features = (truth.mixtures @ axes + noise).astype(np.float32)
        slides.append(dataclasses.replace(slide, features=features, patches=None))
    return slides, [truth.points_um[:, :2] for truth in made.truth]


def _error_um(placed, truth) -> float:
    """Root mean square error of the places, after the one motion that fits the stack best."""
    import numpy as np
    from scipy.spatial.transform import Rotation

    ours = np.concatenate([s.registered_um for s in placed])
    true = np.concatenate(truth)
    flat = [np.pad(a - a.mean(axis=0), ((0, 0), (0, 1))) for a in (true, ours)]
    rotation, _ = Rotation.align_vectors(*flat)
    return float(np.sqrt(((rotation.apply(flat[1]) - flat[0]) ** 2).sum(axis=1).mean()))


def _flow(order: Row):
    """The form of configs/holotea_demo.py, on ridge regression."""
    from stfm_jax.data.retrieval import Reach
    from stfm_jax.models.holotea.flow import HoloTea
    from stfm_jax.models.stflow.flow import STFlow
    from stfm_jax.nn.control import ControlNet
    from stfm_jax.nn.stflow_net import ImageTower, STFlowNet

    network = STFlowNet(GENES, order["width"], order["blocks"], feature_noise=1.0)
    return HoloTea(
        STFlow(network, ImageTower(GENES), anchor="ridge"),
        ControlNet(network),
        reach=Reach(sections=2, kept=24, temperature=0.3, z_um=400.0),
    )


def _trained(flow, measured, genes, epochs: int):
    """(State of the base, state of the flow), both trained; seconds of the fits and of an epoch."""
    import jax

    from stfm_jax.data.regions import Regions
    from stfm_jax.models.holotea import method as holotea
    from stfm_jax.models.stflow import method as stflow
    from stfm_jax.runtime.devices import make_mesh, replicate, shard
    from stfm_jax.train.state import Optimizer, create, train_step

    mesh, key = make_mesh(1), jax.random.key(0)
    times = {"fit_s": 0.0, "epoch_s": 0.0}
    optimizer = Optimizer(learning_rate=1e-3, weight_decay=0.01, ema_decay=0.5)

    def fitted(part, *base):
        started = time.perf_counter()
        training = part.training_set(measured, genes, *base)
        times["fit_s"] += time.perf_counter() - started
        return training

    def train(part, own):
        arrays = replicate(mesh, own.fitted.flow)
        regions = Regions(own.slides, part.neighbors, part.tile, per_slide=1, whole_share=1.0)
        state = replicate(mesh, create(part, optimizer, key, arrays, regions.width))
        for epoch in range(epochs):
            started = time.perf_counter()
            for batches in regions.batches(0, epoch):
                placed = (shard(mesh, batch) for batch in batches)
                state = train_step(part, optimizer, mesh, state, arrays, placed, key)
            jax.block_until_ready(state)
            times["epoch_s"] = time.perf_counter() - started
        return jax.device_get(state.ema_params)

    base = fitted(flow.base)
    base_params = train(flow.base, base)
    own = fitted(flow, base, base_params)
    params = train(flow, own)
    states = (
        stflow.State(base.fitted, base_params, base.residuals, epochs),
        holotea.State(own.fitted, params, own.residuals, epochs),
    )
    return states, times


def _generation(flow, base, state, placed, genes, facts: Row) -> Job:
    import dataclasses

    import numpy as np
    import problem

    from stfm_jax.data.expression import expression
    from stfm_jax.models.holotea.fitted import Neighbours
    from stfm_jax.models.method import Genes, Request, gathered
    from stfm_jax.models.neighbour_copy import neighbour_copy, own_features
    from stfm_jax.models.stflow.method import in_one_call
    from stfm_jax.ops import metrics
    from stfm_jax.runtime.devices import make_mesh

    measured, normalization = placed[0::2], flow.base.normalization
    own = own_features(state.fitted.transform, placed)
    expr = [expression(s, genes, normalization) for s in measured]
    around = {s.name: neighbour_copy(s, measured, expr, own, flow.reach) for s in placed[1::2]}
    asked = Request(Genes(tuple(genes), tuple(genes)), 0, DRAWS, 1, make_mesh(1))

    def predicted(part, of_part, prepared, draws: int):
        """Mean [n, g] and the first of the draws."""
        found = in_one_call(part, of_part, prepared, dataclasses.replace(asked, draws=draws))
        mean, *drawn = (gathered(b, len(prepared.coords)) for b in (found.mean, *found.draws))
        return mean, drawn[0]

    def run() -> Row:
        scores: dict[str, list[float]] = {}
        for slide in placed[1::2]:
            bare = dataclasses.replace(slide, counts=None, genes=None)
            prepared = flow.prepare(bare, state.fitted, None, Neighbours(measured, genes))
            mean, draw = predicted(flow, state, prepared, DRAWS)
            base_mean, base_draw = predicted(flow.base, base, prepared, 1)
            true = expression(slide, genes, normalization)
            for name, value in {
                "holotea": metrics.mean_over_genes(metrics.pearson(mean, true))[0],
                "stflow": metrics.mean_over_genes(metrics.pearson(base_mean, true))[0],
                "consistency": metrics.consistency(draw, true, around[slide.name]),
                "stflow_consistency": metrics.consistency(base_draw, true, around[slide.name]),
            }.items():
                scores.setdefault(name, []).append(value)
        means = {name: float(np.mean(values)) for name, values in scores.items()}
        return {**facts, **means, "evaluations": flow.base.evaluations, **problem.jax_facts()}

    return run


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    common = {"what": "volume", "impl": "holotea", "devices": 1, "spots": options.spots}
    common |= {"width": options.width, "blocks": options.blocks, "epochs": options.epochs}
    rows: list[Row] = []
    for sections in options.sections:
        order = {**common, "sections": sections, "n": sections * options.spots}
        (row,) = harness.measure(__file__, [order], options.repeats)
        pair = [*rows[-1:], row]
        row["slope"] = harness.slope([r["n"] for r in pair], [r["seconds"] for r in pair])
        harness.report(options, [row], COLUMNS)
        rows.append(row)
    print(harness.table(rows, COLUMNS))
    panels = {
        name: harness.curves(rows, name, lambda row: row["impl"])
        for name in ("seconds", "peak_gib")
    }
    harness.plot(options.figure, panels, "", f"A stack on {rows[0]['device']}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = harness.parser("volume", __doc__.splitlines()[0], ())
    parser.add_argument("--sections", type=harness.integers, default=list(SECTIONS))
    parser.add_argument("--spots", type=int, default=5_000, help="of a section")
    parser.add_argument("--epochs", type=int, default=2)
    parser.set_defaults(repeats=1, width=64, blocks=2)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    harness.entry(main, job)
