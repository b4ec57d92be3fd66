"""STFlow on HEST-bench CCRCC, published folds and genes, precomputed UNI embeddings.

    python run.py --config=configs/hest_ccrcc.py --workdir=runs/hest_ccrcc \
        --config.data.dir=HEST_BENCH --config.encoder.dir=EMBEDDINGS

Not yet run: HEST-bench is gated. Read and trained on a folder of the same layout (tests).
"""

from configs import hest


def get_config():
    return hest.get_config("CCRCC")
