"""What is kept beside objects of others."""

import gc
from copy import copy

from lib_loratorio.beside import Beside


class Theirs:
    def __init__(self, number):
        self.number = number

    def __eq__(self, other):
        return self.number == other.number

    __hash__ = None


def test_a_value_belongs_to_one_object_and_not_to_its_equal_or_its_copy():
    beside, theirs = Beside(), Theirs(1)
    beside.set(theirs, "a value")
    assert beside.get(theirs) == "a value"
    assert beside.get(Theirs(1)) is None and beside.get(copy(theirs)) is None
    assert vars(theirs) == {"number": 1}


def test_a_value_goes_with_its_object():
    beside, theirs = Beside(), Theirs(1)
    assert beside.get_or_make(theirs, list) is beside.get_or_make(theirs, list)
    beside.set(theirs, "another")
    del theirs
    gc.collect()
    assert beside._values == {}


def test_a_value_set_anew_after_it_was_dropped_goes_with_its_object_too():
    beside, theirs = Beside(), Theirs(1)
    beside.set(theirs, "one")
    beside.drop(theirs)
    assert beside.get(theirs) is None
    beside.set(theirs, "two")
    del theirs
    gc.collect()
    assert beside._values == {}
