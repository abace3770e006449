"""People to learn, drawn once; and one thread, since crops this small are not worth sharing out."""

import pytest
import tiny_runs
import torch


@pytest.fixture(scope="package", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def narrow_networks():
    """Networks that learn in no time; see there."""
    with tiny_runs.narrow_networks():
        yield


@pytest.fixture(scope="package")
def people(tmp_path_factory):
    """Six people with six pictures each, by six cameras."""
    return tiny_runs.draw_people(tmp_path_factory.mktemp("people"))


@pytest.fixture
def split(people, tmp_path):
    """All of them to learn from."""
    return tiny_runs.split_of(people, tmp_path / "people")
