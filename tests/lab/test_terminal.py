"""What a person sees in a narrow terminal."""

from divjax.lab.sheet import Table
from divjax.lab.terminal import side_by_side


def test_a_wide_table_becomes_several_that_fit_and_keep_the_first_column():
    table = Table(["arm", "accuracy", "error", "score"], [["forward", "0.85 ± 0.06", "0.3", "1"]])
    assert side_by_side(table, 200) == [table]
    parts = side_by_side(table, 30)
    assert [list(p.columns) for p in parts] == [["arm", "accuracy"], ["arm", "error", "score"]]
    assert parts[1].lines == [["forward", "0.3", "1"]]
    assert all(p.columns[0] == "arm" for p in side_by_side(table, 1))
