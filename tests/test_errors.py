import copy
import multiprocessing
import pickle
import re
from concurrent.futures import ProcessPoolExecutor

import pytest

from reidkit import errors
from reidkit.errors import BundleError, ImageError, ReidkitError
from reidkit.imaging import open_image


def classes() -> list[type[ReidkitError]]:
    found = [ReidkitError]
    for kind in found:
        found += kind.__subclasses__()
    return [kind for kind in found if kind.__module__ == errors.__name__]


def test_the_text_says_what_is_wrong_got_expected_and_to_do():
    error = BundleError("m.reid is missing", got="nothing", expected="a folder", fix="check the path")
    assert str(error) == "m.reid is missing\n  got: nothing\n  expected: a folder\n  to do: check the path"


def test_the_text_leaves_out_what_is_not_known_but_not_what_is_zero():
    assert str(ReidkitError("Too few")) == "Too few"
    assert str(ReidkitError("Too few", got=0, expected="")) == "Too few\n  got: 0\n  expected: "


@pytest.mark.parametrize("kind", classes())
def test_every_error_is_a_reidkit_error_and_survives_pickle_and_copy(kind):
    error = kind("It broke", got=(3, 4), expected=OSError(5, "as it was"), fix="mend it")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is kind
        assert isinstance(again, ReidkitError)
        assert str(again) == str(error)
        assert (again.problem, again.got, again.fix) == ("It broke", (3, 4), "mend it")


def test_it_comes_whole_out_of_a_process_pool():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        error = pool.submit(open_image, "/nowhere/a.jpg").exception()
    assert isinstance(error, ImageError)
    assert str(error) == "No such picture: /nowhere/a.jpg\n  to do: check the path"


def test_the_tree_in_the_docstring_is_the_tree():
    drawn = dict(re.findall(r"^[├└]── (\w+) +(\S.*)$", str(errors.__doc__), re.MULTILINE))
    children = [kind for kind in classes() if kind is not ReidkitError]
    assert all(kind.__bases__ == (ReidkitError,) for kind in children)
    assert list(drawn) == [kind.__name__ for kind in children]
    assert [line for line in str(errors.__doc__).splitlines() if line == "ReidkitError"]
