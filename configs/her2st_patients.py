"""Another patient: her2st's C2..C6 and A1, at one low resolution, folds by patient.

    python run.py --config=configs/her2st_patients.py --workdir=runs/patients \
        --config.data.dir=../shared/her2st_lowres

2026-11-27, 2 CPU cores, seed 0, the regressions alone (--config.methods=ridge,ridge_smooth,
ridge_context,kernel_ridge): pearson of log1p / log1p_cp10k. Fold 0 is trained on C and tested on
A1, fold 1 the other way round; pearson_slide is at most .004 higher. stflow: not yet run.

                     C to A1        A1 to C
    ridge            .125 / .158    .206 / .094
    ridge_smooth     .126 / .154    .228 / .090
    ridge_context    .144 / .168    .117 / .084
    kernel_ridge     .077 / .126    .092 / .080
"""

from configs import base, demo


def get_config():
    config = base.get_config()
    regressions = ("ridge", "ridge_smooth", "ridge_context", "ridge_reduced", "kernel_ridge")
    config.methods = (*regressions, "gated", "anchor", "stflow")
    config.data.reader = "her2st"
    config.data.dir = "../shared/her2st_lowres"
    config.data.folds = "patient"
    demo.small_data(config)
    return config
