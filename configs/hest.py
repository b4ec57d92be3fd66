"""STFlow on a task of HEST-bench, as released: published folds, var_50genes.json, UNI embeddings.

    python run.py --config=configs/hest.py:IDC --workdir=runs/hest_idc \
        --config.data.dir=HEST_BENCH --config.encoder.dir=EMBEDDINGS

HEST_BENCH holds <TASK>/{splits,adata,patches,var_50genes.json}; EMBEDDINGS holds
<TASK>/<encoder>/[fp32/]<id>.h5. Not yet run: the data are gated.
"""

from configs import base


def get_config(task="IDC"):
    config = base.get_config()
    config.data.reader = "hest"
    config.data.task = task
    config.encoder.name = "uni_v1"
    config.encoder.dir = "EMBEDDINGS"
    config.model.dropout = 0.2
    config.model.feature_noise = 0.3
    config.train.slides_per_step = 1
    return config
