"""SRast on her2st: parents of 2 x 2 spots, one patient left out (C, D, E).

python run.py --config=configs/srast_her2st.py --config.data.dir=HER2ST --workdir=runs/srast
"""

from configs import base


def get_config():
    config = base.get_config()
    config.methods = base.SPLIT
    config.data.reader = "her2st"
    config.data.sections = (
        *(f"C{i}" for i in range(2, 7)),
        *(f"D{i}" for i in range(1, 7)),
        *(f"E{i}" for i in range(1, 4)),
    )
    training(config)
    return config


def training(config):
    """Of the flow; the mean split is fitted in closed form."""
    config.train.epochs = 25
    config.srast.patience = 8
    config.train.learning_rate = 3e-3
    config.train.weight_decay = 0.1
    config.train.warmup_steps = 50
    config.train.ema_decay = 0.98
    config.sample.evaluations = 4
