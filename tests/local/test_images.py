import sys
from pathlib import Path

from rekindle_local.images import Image, find_image, python_image, unknown_image

HERE = Image(workdir=Path("/"))
THERE = Image(workdir=Path("/tmp"))


def test_exact_names_win_over_patterns():
    images = {"a/*": HERE, "a/b:1": THERE}
    assert find_image(images, "a/b:1") is THERE
    assert find_image(images, "a/b:2") is HERE
    assert find_image(images, "b") is None


def test_an_unknown_image_says_what_is_known_and_what_to_do():
    message = unknown_image({"a/*": HERE}, "b:1")
    assert 'image "b:1"' in message
    assert "a/*" in message
    assert "images={'b:1'" in message


def test_python_in_the_python_image_is_the_one_that_runs_the_cluster():
    image = python_image(Path("/"), env={"OMP_NUM_THREADS": "4"})
    assert image.env["PATH"].split(":")[0] == str(Path(sys.executable).parent)
    assert image.env["OMP_NUM_THREADS"] == "4"
