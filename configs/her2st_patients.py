"""Another patient: her2st's C2..C6 and A1, at one low resolution, folds by patient.

    python run.py --config=configs/her2st_patients.py --workdir=runs/patients \
        --config.data.dir=../shared/her2st_lowres

Fold 0 is trained on C and tested on A1, fold 1 the other way round. Figures: docs/results.md.
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
