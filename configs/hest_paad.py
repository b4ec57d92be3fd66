"""STFlow on HEST-bench PAAD, published folds and genes, precomputed UNI embeddings.

    python run.py --config=configs/hest_paad.py --workdir=runs/hest_paad \
        --config.data.dir=HEST_BENCH --config.encoder.dir=EMBEDDINGS

Not yet run: HEST-bench is gated. Read and trained on a folder of the same layout (tests).
"""

from configs import hest


def get_config():
    return hest.get_config("PAAD")
