"What is seen of a training while it runs: pictures, the time that is left, trackers."

import pytest
import torch

from test_best import Few
from test_plans import made, QUIET, TINY, weights
from xmodal.core import InputError
from xmodal.engine import RowPlan, train_row
from xmodal.methods import get_method
from xmodal.training.loop import Recipe, train
from xmodal.training.watch import check_trackers, Watch

RECIPE = Recipe(steps=6, batch=2, lr=1e-3, ema=0.9)


class Larger(Few):
    "Pictures that can be seen, which can be told apart by folds."

    def __getitem__(self, i):
        item = super().__getitem__(i)
        grow = lambda v: v.repeat_interleave(4, -1).repeat_interleave(4, -2)
        return dict(item, y=grow(item['y']), x0=grow(item['x0']))


def row_of(out, **more):
    return RowPlan(
        'i2sb', TINY | dict(method='i2sb'), RECIPE, out, val_every=2, device='cpu', **more
    )


def test_pictures_change_nothing_of_a_training(tmp_path, capsys):
    "The weights are those of a run that nobody watched; each validation has its picture."
    alone = train_row(row_of(tmp_path / 'alone'), Larger(), Larger(10))
    seen = train_row(row_of(tmp_path / 'seen', pictures=3), Larger(), Larger(10))
    assert torch.equal(weights(alone.den), weights(seen.den))
    drawn = sorted(v.name for v in (tmp_path / 'seen/figures/validation').iterdir())
    assert drawn == [f'step-{n:06d}.png' for n in (2, 4, 6)]
    assert not (tmp_path / 'alone/figures').exists()
    said = capsys.readouterr()
    assert 'step 4 of 6: validation psnr' in said.out + said.err and 'left' in said.out + said.err


def test_pictures_of_an_older_run_go(tmp_path):
    old = tmp_path / 'figures/validation/step-009999.png'
    old.parent.mkdir(parents=True)
    old.write_bytes(b'old')
    train_row(row_of(tmp_path, pictures=1), Larger(), Larger(10))
    assert not old.exists() and len(list(old.parent.iterdir())) == 3


def test_a_run_that_goes_on_keeps_its_pictures(tmp_path):
    train_row(row_of(tmp_path, pictures=1, save_every=2), Larger(), Larger(10))
    before = {v: v.stat().st_mtime_ns for v in (tmp_path / 'figures/validation').iterdir()}
    train_row(row_of(tmp_path, pictures=1, save_every=2, resume=True), Larger(), Larger(10))
    assert before == {v: v.stat().st_mtime_ns for v in (tmp_path / 'figures/validation').iterdir()}


class Kept:
    "A tracker that keeps what it is told."

    requires_logging_directory = False
    told = []

    def __init__(self, run_name):
        self.told.append(('run', run_name))

    def start(self):
        self.told.append('start')

    def store_init_configuration(self, values):
        self.told.append(values)

    def log(self, values, step):
        self.told.append((step, values))

    def log_figure(self, figure, name):
        self.told.append(name)

    def finish(self):
        self.told.append('finish')


def test_a_tracker_is_told_of_rows_and_pictures(tmp_path, monkeypatch):
    "Rows with numbers, pictures, beginning and end, also where the training breaks off."
    from accelerate import tracking

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, 'kept', Kept)
    monkeypatch.setattr(tracking, 'get_available_trackers', lambda: ['kept'])
    monkeypatch.setattr(Kept, 'told', [])
    train_row(row_of(tmp_path, pictures=1, track=('kept',)), Larger(), Larger(10))
    told = Kept.told
    assert told[0] == ('run', tmp_path.name) and told[1] == 'start' and told[-1] == 'finish'
    assert told[2]['method'] == 'i2sb' and told[2]['steps'] == 6
    rows = dict(v for v in told[3:] if isinstance(v, tuple))
    assert set(rows) == {2, 4, 6} and {'loss', 'lr', 'val_psnr'} <= set(rows[6])
    assert [v for v in told if isinstance(v, str) and 'step' in v][-1].endswith('step-000006.png')

    class Broken(Larger):
        def __getitem__(self, i):
            raise KeyboardInterrupt

    watch = Watch(tmp_path / 'b', 6, get_method('regression'), trackers=('kept',))
    with pytest.raises(KeyboardInterrupt):
        train(made(), Broken(), tmp_path / 'b', 'regression', RECIPE, TINY, watch=watch, **QUIET)
    assert told[-1] == 'finish'


def test_tensorboard_has_the_rows_and_the_pictures(tmp_path):
    "The real tracker, and its files read again."
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_row(row_of(tmp_path, pictures=1, track=('tensorboard',)), Larger(), Larger(10))
    (folder,) = {
        v.parent for v in tmp_path.rglob('events.out.tfevents*') if v.parent.name == tmp_path.name
    }
    events = EventAccumulator(str(folder)).Reload()
    assert [v.step for v in events.Scalars('val_psnr')] == [2, 4, 6]
    assert len(events.Images('validation')) == 3


def test_an_unknown_tracker_is_refused_at_once():
    with pytest.raises(InputError, match='tensorboard'):
        check_trackers(('tensorbord',))
    with pytest.raises(InputError, match='pip install'):
        check_trackers(('aim',))
