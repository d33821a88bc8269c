import pytest

from rekindle_local.kubelet.containers.path_map import PathMap

PATHS = PathMap([("/data", "/h/d"), ("/data/deep", "/h/deep"), ("/dev/termination-log", "/h/t")])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/data", "/h/d"),
        ("/data/x.bin", "/h/d/x.bin"),
        ("/data/deep/x", "/h/deep/x"),
        ("/data/deeper", "/h/d/deeper"),
        ("--root=/data", "--root=/h/d"),
        ("file:///data/ckpt", "file:///h/d/ckpt"),
        ("/data:/data/deep", "/h/d:/h/deep"),
        ('{"a": "/data/x"}', '{"a": "/h/d/x"}'),
        ("cat /data/a > /dev/termination-log", "cat /h/d/a > /h/t"),
        ("/database", "/database"),
        ("s3://bucket/data", "s3://bucket/data"),
        ("http://data/x", "http://data/x"),
        ("/other/data", "/other/data"),
        ("data", "data"),
    ],
)
def test_only_whole_path_prefixes_are_rewritten(text, expected):
    assert PATHS.rewrite(text) == expected


def test_without_mounts_nothing_is_rewritten():
    assert PathMap([]).rewrite("/data") == "/data"


def test_a_replaced_path_is_not_rewritten_again():
    assert PathMap([("/tmp", "/x/tmp"), ("/x", "/y")]).rewrite("/tmp/a /x/a") == "/x/tmp/a /y/a"
