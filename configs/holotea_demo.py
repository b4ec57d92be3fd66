"""HoloTea on a small simulated volume, from serial sections to a predicted one.

    python run.py --config=configs/holotea_demo.py --workdir=runs/holotea_demo
    python run.py --config=configs/holotea_demo.py --workdir=runs/holotea_demo --mode=predict \
        --config.predict.input=runs/holotea_demo/sections/P1 \
        --config.predict.output=runs/holotea_demo/volume.h5ad

2026-11-21, 2 CPU cores at other work too: 12 minutes and 36 s. Four folds of ~155 spots: pearson
kernel_ridge .513, stflow .517, holotea .515, centred_sum .527: with two or three training sections
the share that HoloTea copies is no gain. Draws: moran .632 (stflow) .686 (holotea), consistency
.686 .754.
"""

from configs import demo


def get_config():
    config = demo.get_config()
    config.method = "holotea"
    config.data.tissue.num_sections = 5
    config.train.epochs = 15
    config.stack.epochs = 5
    return config
