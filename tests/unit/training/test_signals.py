import os
import signal

import pytest

from vlatool.training.signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_stored(number: int) -> None:
    with StopRequest() as stop:
        assert not stop.received()
        os.kill(os.getpid(), number)
        assert stop.received()
        assert stop.signal == number


def test_signal_soon_after_the_first_is_the_same_request() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received() == signal.SIGTERM


def test_later_signal_has_its_usual_effect() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received() == signal.SIGINT
        stop._since -= 10.0  # no test sleeps
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
