"""A name becomes an object in one place, and a wrong one says which are near."""

from __future__ import annotations

import pytest

from fullyconv.errors import UnknownName
from fullyconv.lookup import lookup

TABLE = {"vgg16": 16, "vgg19": 19, "resnet50": 50}


def test_a_name_in_the_table_is_its_object() -> None:
    assert lookup("backbone", "vgg19", TABLE) == 19


def test_a_wrong_name_says_which_are_near() -> None:
    with pytest.raises(UnknownName, match=r"no backbone 'vgg61'; did you mean 'vgg19' or 'vgg16'\?") as caught:
        lookup("backbone", "vgg61", TABLE)
    assert caught.value.kind == "backbone"
    assert caught.value.near == ("vgg19", "vgg16")


def test_a_name_like_none_lists_what_is_known() -> None:
    with pytest.raises(UnknownName, match="known: resnet50, vgg16, vgg19"):
        lookup("backbone", "zzz", TABLE)
