"""HoloTea on a small simulated volume, from serial sections to a predicted one.

    python run.py --config=configs/holotea_demo.py --workdir=runs/holotea_demo
    python run.py --config=configs/holotea_demo.py --workdir=runs/holotea_demo --mode=predict \
        --config.predict.input=runs/holotea_demo/sections/P1 \
        --config.predict.output=runs/holotea_demo/volume.h5ad

2026-11-22, 2 CPU cores: 7.5 minutes and 25 s. Four folds of ~155 spots: pearson kernel_ridge
.513, stflow .517, neighbour_copy .509, centred_sum .527, holotea .531 (above centred_sum by .0043
[.0022, .0070]).
Draws, stflow and holotea: moran .632 .684, consistency .686 .769, coverage80 .787 .753.
"""

from configs import base, demo


def get_config():
    config = demo.get_config()
    config.methods = base.STACK
    config.data.tissue.num_sections = 5
    config.train.epochs = 15
    config.stack.epochs = 5
    return config
