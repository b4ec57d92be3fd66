"""Files that are looked at: never those whose names begin with a dot, nor what lies in such."""

from stfm_jax.data.listing import visible


def test_names_with_a_dot_are_not_seen(tmp_path):
    for name in ("b.csv", "a.csv", "._a.csv", "x/c.csv", ".x/d.csv", "x/.e.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert visible(tmp_path, "*.csv") == [tmp_path / "a.csv", tmp_path / "b.csv"]
    assert visible(tmp_path, "*/*.csv") == [tmp_path / "x/c.csv"]
    assert visible(tmp_path / "nowhere", "*") == []
    inside = tmp_path / ".x"  # asked for by name
    assert visible(inside, "*") == [inside / "d.csv"]
