"""The page of versions that `make matrix` writes."""

from __future__ import annotations

from tests import matrix, sizes


@sizes.each(
    "output, counts",
    [
        (
            "= 2 failed, 10 passed, 1 skipped, 7 deselected, 1 error in 0.93s =",
            "2 failed, 10 passed, 1 skipped, 1 error",
        ),
        ("....\n12 passed, 1 skipped, 3 warnings in 930.67s (0:15:30)\n--randomly-seed=1\n", "12 passed, 1 skipped"),
        ("INTERNALERROR> gone in 3s", ""),
        ("", ""),
    ],
)
def test_counts_are_read_from_the_last_line_of_pytest(output, counts):
    assert matrix.count(output) == counts


def test_a_row_takes_the_place_of_the_same_minor_versions_and_the_text_around_stays():
    page = matrix.PAGE.read_text()
    before, _, after = page.partition(matrix._HEAD)
    old = matrix.Result(("3.11.1", "9.9.1", "1.43.0"), "1 failed", "not run", False)
    new = matrix.Result(("3.11.7", "9.9.2", "1.43.0"), "12 passed", "7 passed", True)
    other = matrix.Result(("3.9.2", "9.9.1", "1.43.0"), "3 passed", "not run", True)
    found = matrix.merge(matrix.merge(page, [old]), [other, new])
    assert old.row not in found
    # The rows in the order of the versions.
    assert found.index(other.row) < found.index(new.row)
    assert found.startswith(before)
    without = found.replace(f"{other.row}\n", "").replace(f"{new.row}\n", "")
    assert without == page, "nothing else changes"
