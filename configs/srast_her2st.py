"""SRast on her2st: parents of 2 x 2 spots, one patient left out (C, D, E).

    python run.py --config=configs/srast_her2st.py --config.data.dir=HER2ST --workdir=runs/srast

With the children's images, which section C alone has:

    ... --config.data.sections=C2,C3,C4,C5,C6 --config.srast.image=True
"""

from configs import base


def get_config():
    config = base.get_config()
    config.method = "srast"
    config.data.reader = "her2st"
    config.data.sections = (
        *(f"C{i}" for i in range(2, 7)),
        *(f"D{i}" for i in range(1, 7)),
        *(f"E{i}" for i in range(1, 4)),
    )
    training(config)
    return config


def training(config):
    """Few parents and many genes: small steps, so that selection can stop early."""
    config.train.epochs = 20
    config.train.learning_rate = 3e-3
    config.train.weight_decay = 0.1
    config.train.warmup_steps = 100
    config.train.ema_decay = 0.98
    config.sample.evaluations = 8
