import msgspec
import pytest

from schemas.engines import EngineMetrics
from schemas.units import Bytes, Count, Number, Seconds, Token
from tests.support.samples import engine


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        pytest.param("bad\n", Token, id="token with a trailing newline"),
        pytest.param(1.7e308, Number, id="number"),
        pytest.param(1e300, Seconds, id="seconds"),
        pytest.param(2**63, Count, id="count"),
        pytest.param(2**63, Bytes, id="bytes"),
    ],
)
def test_what_no_sum_can_hold_is_refused(value: object, kind: type) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(value), type=kind)


def test_a_trailing_newline_is_no_subject() -> None:
    message = msgspec.structs.replace(engine("e1"), node="n\n")

    assert isinstance(message, EngineMetrics)
    with pytest.raises(ValueError, match="subject token"):
        message.subject()
