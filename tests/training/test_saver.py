"""When a save that fails is tried again, while training goes on."""

import threading
from types import SimpleNamespace

from ffc_ds.config.settings import TrainConfig
from ffc_ds.errors import UserError
from ffc_ds.training import checkpoint
from ffc_ds.training.saver import Saver


def test_a_save_that_fails_is_tried_again_soon_and_one_that_takes_long_is_left_alone(tmp_path, monkeypatch, capsys):
    goes_on, troubles = threading.Event(), ["disk full.", None]

    def write(target, copy, aside):
        goes_on.wait()
        if trouble := troubles.pop(0):
            raise UserError(trouble)

    monkeypatch.setattr(checkpoint, "copy", lambda step, *_: SimpleNamespace(step=step))
    monkeypatch.setattr(checkpoint, "write", write)
    saver = Saver(tmp_path, TrainConfig(checkpoint_every=20), at=print)
    due = []
    for done in range(1, 42):
        if done == 24:  # looked after every two steps, until here in vain
            goes_on.set()
            saver._writing[1].result()
        if saver.is_due(done):
            due.append(done)
            saver.save(done, False, None, None, {})
            if done != 20:
                saver._writing[1].result()
            troubles.append(None)
        if done in (25, 26):
            assert saver.saved == (None if done == 25 else 24)
    assert due == [20, 24, 40]
    assert capsys.readouterr().out.count("warning: disk full. The run goes on without it.") == 1
    saver.wait()
    assert saver.saved == 40 and saver.how_to_go_on(40) == "--resume latest goes on from there"
