import pytest

from quick_networks import narrow_resnets


@pytest.fixture
def narrow():
    with narrow_resnets():
        yield
