"""STFlow on HEST-bench PRAD, published folds and genes, precomputed UNI embeddings.

    python run.py --config=configs/hest_prad.py --workdir=runs/hest_prad \
        --config.data.dir=HEST_BENCH --config.encoder.dir=EMBEDDINGS

Not yet run: HEST-bench is gated. Read and trained on a folder of the same layout (tests).
"""

from configs import hest


def get_config():
    return hest.get_config("PRAD")
