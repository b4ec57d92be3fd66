"""STFlow on HEST-bench READ, published folds and genes, precomputed UNI embeddings.

    python run.py --config=configs/hest_read.py --workdir=runs/hest_read \
        --config.data.dir=HEST_BENCH --config.encoder.dir=EMBEDDINGS

Not yet run: HEST-bench is gated. Read and trained on a folder of the same layout (tests).
"""

from configs import hest


def get_config():
    return hest.get_config("READ")
