"""All methods on tissues of STImage-1K4M, folds by study, in both normalisations: one report.

    python run.py --config=configs/compare_stimage.py --workdir=runs/compare_stimage \
        --config.data.dir=STIMAGE [--config.compare.tasks=breast,liver]

Not yet run: the data set was not at hand.
"""

from configs import base, stimage


def get_config():
    config = stimage.get_config()
    base.side_by_side(config)
    config.compare.tasks = stimage.TISSUES
    return config
