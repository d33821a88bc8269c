"""Files that others write to, replace, cut and leave half written."""

from rekindle.launch.health.tailing import MOST, Tail


def test_what_was_there_before_is_passed_over(tmp_path):
    path = tmp_path / "p"
    path.write_bytes(b"old\n")
    tail = Tail(path)
    with path.open("ab") as file:
        file.write(b"new\nha")
    assert tail.lines() == [b"new"]
    with path.open("ab") as file:
        file.write(b"lf\nend")
    assert tail.lines() == [b"half"]
    assert tail.lines() == []
    assert tail.lines(last=True) == [b"end"]


def test_a_file_that_comes_later_is_read_from_its_beginning(tmp_path):
    tail = Tail(tmp_path / "p")
    assert tail.lines() == []
    (tmp_path / "p").write_bytes(b"a\n")
    assert tail.lines() == [b"a"]


def test_a_file_that_is_begun_anew_or_replaced_is_read_from_its_beginning(tmp_path):
    path = tmp_path / "p"
    path.write_bytes(b"one line\n")
    tail = Tail(path)
    path.write_bytes(b"cut\n")
    assert tail.lines() == [b"cut"]
    (tmp_path / "q").write_bytes(b"a rotated one\n")
    (tmp_path / "q").replace(path)
    assert tail.lines() == [b"a rotated one"]


def test_of_too_much_the_newest_counts(tmp_path):
    path = tmp_path / "p"
    path.touch()
    tail = Tail(path)
    path.write_bytes(b"x" * 50 + b"\n" + b"line\n" * (MOST // 5) + b"newest\n")
    found = tail.lines()
    assert found[-1] == b"newest"
    assert set(found[1:-1]) == {b"line"}


def test_a_folder_is_no_file(tmp_path):
    assert Tail(tmp_path).lines() == []
