"""STFlow on her2st C2..C6, leave one section out.

    python run.py --config=configs/her2st_stflow.py --workdir=runs/her2st \
        --config.data.dir=../shared/her2st

2026-11-21, 2 CPU cores, five folds, seed 0: 17 minutes (log1p) and 14 (log1p_cp10k), both at once.
Mean of five folds (pearson; of draws: gene structure, moran, coverage80):

                   log1p                      log1p_cp10k
    kernel_ridge   .606  .857 .124            .503  .898 .109
    stflow         .619                       .524
    stflow_draw    .390  .905 .707 .796       .274  .908 .478 .791

Ablations: log1p, same folds, with --config.train.select=False --config.train.epochs=40; pearson of
stflow, then of stflow_draw gene structure, moran, CRPS, coverage80:

    as it is                                  .619   .906 .668 .379 .796
    --config.sample.evaluations=1             .619   .903 .593 .379 .797
    --config.prior=zinb_scalar                .619   .899 .651 .392 .781
    --config.prior=gaussian                   .619   .904 .677 .380 .790
    --config.prior=zero                       .619   .843 .099 .537 .001
    --config.model.anchor=ridge               .617   .905 .655 .379 .798
    --config.model.anchor=none                .549   .910 .745 .413 .819
    --config.model.frames=radial              .619   .905 .663 .379 .796
    --config.model.expression=differences     .588   .829 .173 .534 .109

The image tower makes the mean and the flow the draws, so what changes the flow alone leaves the
first column. Frames hardly matter here: neighbours lie on a square lattice. Not run for want of
time: frames=pca, image_weight=0, model.targets=1000, the published form as a whole.
"""

from configs import base, demo


def get_config():
    config = base.get_config()
    config.data.reader = "her2st"
    config.data.dir = "../shared/her2st"
    config.data.sections = ("C2", "C3", "C4", "C5", "C6")
    demo.small_data(config)
    return config
