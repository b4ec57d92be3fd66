"""STFlow on a small simulated tissue, from H&E-like patches to a predicted slide; `make demo`.

    python run.py --config=configs/demo.py --workdir=runs/demo

2026-11-28, 2 CPU cores: train and predict 92 s (85 and 8). Three folds of ~150 spots: pearson
ridge .471, kernel_ridge .499, stflow .506 (seed 0; scores of 2026-11-27).
"""

from configs import base


def get_config():
    config = base.get_config()
    config.data.reader = "simulated"
    config.data.tissue.num_sections = 4
    config.data.tissue.spots = 150
    config.data.tissue.num_genes = 200
    config.data.unseen = 1
    config.encoder.patch_um = 200.0
    small_data(config)
    config.train.epochs = 25
    return config


def small_data(config):
    """A few hundred spots: small networks, strong noise, whole slides."""
    config.model.width = 64
    config.model.blocks = 2
    config.model.feature_noise = 1.0
    config.model.feature_dropout = 0.7
    config.train.learning_rate = 1e-3
    config.train.weight_decay = 0.01
    config.train.ema_decay = 0.98
    config.train.regions_per_slide = 2
    config.train.whole_share = 1.0
    config.train.epochs = 80
    config.train.checkpoint_every = 40
