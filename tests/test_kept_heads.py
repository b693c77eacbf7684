"Simulated heads that are kept between processes: the same ones, and never those of another program."

import numpy as np
import pytest

import xmodal.simulate.brain as brain
from xmodal.simulate.brain import Subject, fractions

GRID = (6, 6, 6), np.diag([2.0, 2, 2, 1])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv('XMODAL_HEADS', str(tmp_path / 'heads'))
    return tmp_path / 'heads'


def test_a_head_is_read_back_as_it_was(folder, monkeypatch):
    first = fractions(Subject(3), *GRID)
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(brain, 'computed_fractions', None)  # asked again it would fail
    again = fractions(Subject(3), *GRID)
    assert again.dtype == np.float32
    np.testing.assert_array_equal(again, first)


@pytest.mark.parametrize(
    'other',
    [
        dict(s=Subject(4)),
        dict(s=Subject(3, age=41.0)),
        dict(shape=(6, 6, 7)),
        dict(affine=GRID[1] @ np.diag([1, 1, 3, 1])),
        dict(point=True),
    ],
)
def test_whatever_differs_is_another_head(folder, other):
    asked = dict(s=Subject(3), shape=GRID[0], affine=GRID[1])
    fractions(**asked)
    got = fractions(**asked | other)
    assert len(list(folder.iterdir())) == 2
    np.testing.assert_array_equal(got, brain.computed_fractions(**asked | other))


def test_a_broken_file_is_computed_again(folder):
    first = fractions(Subject(3), *GRID)
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    np.testing.assert_array_equal(fractions(Subject(3), *GRID), first)
    np.testing.assert_array_equal(np.load(file), first)


def test_another_program_finds_nothing(folder, monkeypatch, tmp_path):
    fractions(Subject(3), *GRID)
    changed = tmp_path / 'brain.py'
    changed.write_text('another simulator')
    monkeypatch.setattr(brain, '__file__', str(changed))
    fractions(Subject(3), *GRID)
    assert len(list(folder.iterdir())) == 2


def test_unasked_nothing_is_kept(monkeypatch):
    monkeypatch.delenv('XMODAL_HEADS', raising=False)
    assert brain.kept_head(Subject(3), *GRID, False) is None
