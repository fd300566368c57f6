"""Code that is pickled by value, and the name of its file."""

import pickle
import traceback

import cloudpickle

from rhapsody.backends.data.pickler import dump_by_value
from rhapsody.testing import samples


def test_function_pickled_by_value_keeps_the_file_of_its_code() -> None:
    def divide(number: int) -> float:
        return 1 / number

    loaded = pickle.loads(dump_by_value(divide))
    assert loaded is not divide
    assert loaded.__code__.co_filename == __file__
    try:
        loaded(0)
    except ZeroDivisionError as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
    assert (last.filename, last.line) == (__file__, "return 1 / number")


def test_code_inside_a_function_keeps_its_file() -> None:
    loaded = pickle.loads(dump_by_value(lambda: lambda: None))
    assert loaded().__code__.co_filename == __file__


def test_other_values_are_pickled_as_by_cloudpickle() -> None:
    value = {"names": ["a", "b"], "function": samples.add}
    assert dump_by_value(value) == cloudpickle.dumps(value, protocol=5)
