import pytest

from reidkit.errors import ConfigError
from reidkit.metrics.protocol import PROTOCOLS, named_protocol


@pytest.mark.parametrize(
    ("data_format", "name"),
    [
        ("market1501", "market1501"),
        ("msmt17", "market1501"),
        ("cuhk03", "market1501"),
        ("folder", "market1501"),
        ("veri776", "veri776"),
        ("vehicleid", "vehicleid"),
    ],
)
def test_the_usual_protocol_of_a_format(data_format, name):
    assert named_protocol(None, data_format=data_format) is PROTOCOLS[name]


def test_a_name_goes_before_the_format():
    assert named_protocol("camera-less", data_format="veri776").junk is False


def test_no_such_protocol():
    with pytest.raises(ConfigError, match=r"Unknown protocol 'vehicle-id'[\s\S]*did you mean 'vehicleid'"):
        named_protocol("vehicle-id", data_format="vehicleid")
