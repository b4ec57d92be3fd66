"""All methods on tasks of HEST-bench, each in both normalisations: one report.

    python run.py --config=configs/compare_hest.py --workdir=runs/compare_hest \
        --config.data.dir=HEST_BENCH --config.encoder.dir=EMBEDDINGS \
        [--config.compare.tasks=IDC,PRAD]

Folders as for configs/hest.py. Not yet run: the data are gated.
"""

from configs import base, hest

TASKS = ("IDC", "PRAD", "PAAD", "SKCM", "COAD", "READ", "CCRCC", "HCC", "LUNG", "LYMPH_IDC")


def get_config():
    config = hest.get_config()
    base.side_by_side(config)
    config.compare.tasks = TASKS
    return config
