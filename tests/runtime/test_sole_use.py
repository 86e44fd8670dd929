"""Two threads at one answer or session: the second is refused, and the first goes on as if nothing were."""

from __future__ import annotations

import threading

import pytest

from qtool_runtime.errors import GenerationError
from qtool_runtime.model import Model
from qtool_runtime.session import OnnxSession


class Gate:
    """Stops the first forward pass until it is opened."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        kind = type(model.new_session())
        name = "_run" if kind is OnnxSession else "_read"
        run = getattr(kind, name)

        def held(*arguments):
            self.reached.set()
            assert self.opened.wait(10)
            return run(*arguments)

        monkeypatch.setattr(kind, name, held)


def test_a_second_reader_of_an_answer_is_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model.generate("the cat", max_tokens=10, ignore_eos=True).read()
    gate = Gate(model, monkeypatch)
    stream = model.generate("the cat", max_tokens=10, ignore_eos=True, remember=False)
    texts: list[str] = []
    first = threading.Thread(target=lambda: texts.append(stream.read()))
    first.start()
    assert gate.reached.wait(10)
    for attempt in (stream.step, stream.read, stream.close):
        with pytest.raises(GenerationError, match="another thread is using this answer"):
            attempt()
    gate.opened.set()
    first.join()
    assert texts == [expected]
    assert stream.stop_reason == "length"


def test_a_second_writer_of_a_session_is_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(model, monkeypatch)
    session = model.new_session()
    first = threading.Thread(target=session.forward, args=([1, 2, 3],))
    first.start()
    assert gate.reached.wait(10)
    with pytest.raises(GenerationError, match="another thread is using this session"):
        session.forward([4])
    gate.opened.set()
    first.join()
    assert session.length == 3
    session.forward([4])
    assert session.length == 4
