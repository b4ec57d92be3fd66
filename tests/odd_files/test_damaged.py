"""Files of every platform with bytes changed, cut, repeated or lost: read, or refused in words.

No other exception comes out of a reader, whatever the library below raises. Thousands of them, of
every kind, are for `make fuzz` (`tests/odd_files/test_fuzz.py`).
"""

import kinds
import pytest
import reads

TRIES = 60
KINDS = ("visium", "tables", "hd", "xenium", "stimage", "hest1k", "trident", "zarr 2", "zarr 3")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused(tmp_path, kind):
    folder = kinds.write(tmp_path, kind)
    reads.READS[kind](folder)
    said = [reads.attempt(folder, kind, seed) for seed in range(TRIES)]
    assert set(said) <= {"read", "refused"}
    assert said.count("refused") > TRIES / 10
