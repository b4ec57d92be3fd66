"""HoloTea on a small simulated volume, from serial sections to a predicted one.

    python run.py --config=configs/holotea_demo.py --workdir=runs/holotea_demo
    python run.py --config=configs/holotea_demo.py --workdir=runs/holotea_demo --mode=predict \
        --config.predict.input=runs/holotea_demo/sections/P1 \
        --config.predict.output=runs/holotea_demo/volume.h5ad

Not yet run.
"""

from configs import demo


def get_config():
    config = demo.get_config()
    config.method = "holotea"
    config.data.tissue.num_sections = 5
    config.train.epochs = 15
    config.stack.epochs = 5
    return config
