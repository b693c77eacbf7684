"""How hard a pair is: people are the unit, whom a training would not learn from is not looked at,
and advice says on how many data sets it rests.
"""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from test_main_job import ROOT, run_name  # noqa: F401  (a fixture)
from xmodal.cli import main
from xmodal.core import InputError
from xmodal.data.layouts import find_records
from xmodal.data.split import split_records
from xmodal.evaluation.difficulty import advice, difficulty, EVIDENCE, Gained, RULED
from xmodal.evaluation.difficulty import rule_from, sets_needed
from xmodal.train import train_command

GROUP = r'^(s\d+)_'
RESULTS = ROOT / 'nbs' / 'experiments' / 'results'


class Pairs(list):
    "Items, and whose they are."

    def __init__(self, items, subjects):
        super().__init__(items)
        self.subjects = subjects


def pairs(target, people=6, images=3, side=32, seed=0):
    "White sources; target(y, person, rng)."
    rng = np.random.default_rng(seed)
    items, subjects = [], []
    for k in range(people):
        for _ in range(images):
            y = 0.25 * rng.standard_normal((1, side, side))
            items.append(dict(y=y, x0=target(y, k, rng)))
            subjects.append(f'p{k}')
    return Pairs(items, subjects)


def noisy(y, k, rng):
    return 0.8 * y + 0.15 * rng.standard_normal(y.shape)


def test_the_quick_mean_has_not_seen_whom_it_is_judged_on():
    "Of a target that has nothing to do with its source, a fit to the same people would explain some."
    pure = lambda y, k, rng: 0.2 * rng.standard_normal(y.shape)
    found = difficulty(pairs(pure, people=3, images=1, side=20)).values
    assert -0.5 < found['quick'] < 0 and -0.5 < found['pointwise'] < 0
    assert difficulty(pairs(noisy)).values['quick'] > 0.6


def test_an_interval_of_a_mean_is_that_of_student():
    "Where a measure is a mean over people, its interval is the one of the textbooks."
    d = difficulty(pairs(noisy))
    e = np.array([0.2, 0.3, 0.25, 0.4, 0.1, 0.35])
    errors = np.ones((6, 4))
    errors[:, 3] = e
    low, high = replace(d, sums=d.sums | dict(errors=errors)).intervals['quick']
    wide = 2.570582 * e.std(ddof=1) / math.sqrt(6)  # t of 5 degrees of freedom
    assert (low, high) == pytest.approx((1 - e.mean() - wide, 1 - e.mean() + wide), abs=1e-5)


def test_people_are_the_unit():
    "Every image twice: the same values, the same intervals; as other people: narrower ones."
    some = pairs(lambda y, k, rng: (0.3 + 0.1 * k) * y + 0.15 * rng.standard_normal(y.shape))
    twice = Pairs([v for v in some for _ in range(2)], [s for s in some.subjects for _ in range(2)])
    others = Pairs([*some, *some], [*some.subjects, *(f'{s} again' for s in some.subjects)])
    width = lambda d: np.ptp(d.intervals['pointwise'])
    once, same, more = (difficulty(v) for v in (some, twice, others))
    assert same.values['pointwise'] == pytest.approx(once.values['pointwise'], abs=2e-3)
    assert width(same) == pytest.approx(width(once), rel=0.02)
    assert width(more) < 0.8 * width(once)


def test_what_shows_nothing_and_what_was_not_measured_does_not_count():
    "Air that is black on both sides, and holes with any content, change no measure."
    plain = pairs(noisy)
    framed, holed = [], []
    for v in plain:
        black = {k: np.pad(a, ((0, 0), (8, 8), (8, 8)), constant_values=-1.0) for k, a in v.items()}
        framed.append(black)
        valid = np.pad(np.ones((1, 32, 32), bool), ((0, 0), (8, 8), (8, 8)))
        holed.append({k: np.where(valid, a, 0.7) for k, a in black.items()} | dict(valid=valid))
    want = difficulty(plain).values
    framed, holed = (difficulty(Pairs(v, plain.subjects)).values for v in (framed, holed))
    for k in ('information', 'identity', 'pointwise'):
        assert framed[k] == pytest.approx(want[k], abs=1e-9)
        assert holed[k] == pytest.approx(want[k], abs=1e-9)
    assert framed['quick'] == pytest.approx(want['quick'], abs=0.02)


def test_channels_that_are_copies_change_nothing():
    one = pairs(noisy)
    three = Pairs([{k: a.repeat(3, 0) for k, a in v.items()} for v in one], one.subjects)
    want, got = difficulty(one).values, difficulty(three).values
    assert got == pytest.approx(want, abs=1e-6)


def test_two_people_have_no_intervals_and_one_is_refused():
    two = difficulty(pairs(noisy, people=2))
    assert all(map(math.isnan, np.ravel(list(two.intervals.values()))))
    assert 'no intervals' in two.lines()[-1]
    with pytest.raises(InputError, match='1 training people'):
        difficulty(pairs(noisy, people=1))
    nothing = pairs(lambda y, k, rng: 0 * y - 1)
    with pytest.raises(InputError, match='show nothing'):
        difficulty(Pairs([dict(v, y=v['x0']) for v in nothing], nothing.subjects))


def test_constant_targets_are_no_crash():
    "Nothing to explain: not a number, and the table stands."
    flat = difficulty(pairs(lambda y, k, rng: 0 * y + 0.5))
    assert math.isnan(flat.values['quick']) or flat.values['quick'] < 1e-6
    assert len(flat.lines()) == 13 and advice(flat)


# ---- from the command line


@pytest.fixture
def folder(tmp_path):
    "Eight people with two pictures each."
    rng = np.random.default_rng(0)
    for side in 'ab':
        (tmp_path / side).mkdir()
    for k in range(8):
        for i in range(2):
            y = rng.integers(40, 216, (32, 32))
            x0 = np.clip(255 - y + rng.normal(0, 10, y.shape), 0, 255)
            for side, v in zip('ab', (y, x0)):
                Image.fromarray(v.astype(np.uint8)).save(tmp_path / side / f's{k}_{i}.png')
    return tmp_path


def typed(folder, *more) -> list:
    words = ['data', 'difficulty', 'folder', '--root', folder, '--source', 'a', '--target', 'b']
    return [str(v) for v in (*words, '--group', GROUP, '--size', 32, *more)]


def test_only_training_people_are_looked_at(folder, capsys):
    "The table is the same whatever the pictures of all others show."
    assert main(typed(folder)) == 0
    table = lambda text: [v for v in text.splitlines() if v.startswith('  ') and '(' in v][:12]
    before = table(capsys.readouterr().out)
    split = split_records(find_records('folder', folder, 'a', 'b', GROUP))
    for s in (*split['val'], *split['test']):
        for path in folder.glob(f'b/{s}_*.png'):
            Image.fromarray(np.full((32, 32), 128, np.uint8)).save(path)
    assert main(typed(folder)) == 0
    assert table(capsys.readouterr().out) == before and len(before) == 12
    for path in folder.glob(f'b/{split["train"][0]}_*.png'):
        Image.fromarray(np.full((32, 32), 128, np.uint8)).save(path)
    assert main(typed(folder)) == 0
    assert table(capsys.readouterr().out) != before


def test_the_command_says_what_it_has_seen(folder, capsys):
    "People, pairs, measures, and the number of sets that the advice rests on."
    assert main(typed(folder, '--images', 4)) == 0
    out = capsys.readouterr().out
    train = len(split_records(find_records('folder', folder, 'a', 'b', GROUP))['train'])
    assert '4 pairs of 32 x 32' in out and f'measured on {len(EVIDENCE)} sets' in out
    assert main(typed(folder)) == 0
    assert f'{train} training people, {2 * train} pairs' in capsys.readouterr().out


@pytest.mark.parametrize('wrong', [('--images', -1), ('--size', 8), ('--target', 'c')])
def test_what_cannot_be_measured_is_one_line(folder, wrong, capsys):
    assert main(typed(folder, *wrong)) == 1
    err = capsys.readouterr().err
    assert err.startswith('xmodal: ') and err.count('\n') == 1


def test_a_plan_brings_advice_and_keeps_the_method(folder, run_name, capsys):
    "It is printed, stored with the model, and the method is what was asked for."
    where = ['--dataset', 'folder', '--root', str(folder), '--source', 'a', '--target', 'b']
    where += ['--group', GROUP, '--no-check', '--device', 'cpu', '--ch', '8', '--steps', '6']
    more = ['--method', 'regression', '--name', run_name]
    assert train_command([*where, *more, '--plan', 'auto']) == 0
    assert 'advice (no method is changed by it)' in capsys.readouterr().out
    config = json.loads((ROOT / 'runs' / run_name / 'model' / 'config.json').read_text())
    said = config['training']['plan']
    assert said[0].startswith('plan auto') and any('measured on' in v for v in said)
    assert config['model']['method'] == 'regression'
    shutil.rmtree(ROOT / 'runs' / run_name)
    assert train_command([*where, *more]) == 0
    assert 'advice (' not in capsys.readouterr().out
    shutil.rmtree(ROOT / 'runs' / run_name)


# ---- the evidence


def test_the_evidence_is_what_was_measured():
    "The table in the notebook says what the experiment has written."
    gains = pd.read_csv(RESULTS / 'difficulty_gains.csv')
    values = pd.read_csv(RESULTS / 'difficulty.csv')
    bridge = gains[gains.row == 'residual-scalar-plain'].set_index(['set', 'measure'])
    calm = gains[gains.row == 'ensemble'].set_index(['set', 'measure'])
    assert {e.name for e in EVIDENCE} == set(gains['set'])
    for e in EVIDENCE:
        at = bridge.loc[e.name, 'psnr_mean']
        assert e.mean == pytest.approx((at.gain, at.low, at.high), abs=5e-3)
        assert e.people == at.people
        assert e.draw == pytest.approx(bridge.loc[e.name, 'psnr_draw'].gain, abs=5e-3)
        at = bridge.loc[e.name, 'spectrum']
        assert e.spectrum == pytest.approx((at.gain, at.low, at.high), abs=5e-4)
        at = calm.loc[e.name, 'crps']
        assert e.crps[0] - e.crps[1] == pytest.approx(at.gain, abs=5e-4)
        assert e.honest == pytest.approx(at.skill_over_spread, abs=5e-3)
        assert e.ensemble == pytest.approx(calm.loc[e.name, 'psnr_mean'].gain, abs=5e-3)
        own = values[values['set'] == e.name].set_index('measure').value
        assert e.values == pytest.approx({k: own[k] for k in RULED}, abs=5e-4)


def made(k, quick, gain) -> Gained:
    values = dict.fromkeys(RULED, 0.5) | dict(quick=quick)
    return Gained(f'set {k}', 9, (gain, gain, gain), 0.0, (0, 0, 0), 1.0, (0.1, 0.2), 0.0, values)


def test_no_rule_is_told_from_few_sets():
    "However well five are ordered; six can carry one, and the advice then says so."
    sets = [made(k, 0.1 * k, 0.35 - 0.1 * k) for k in range(1, 7)]
    assert sets_needed() == 6 and rule_from(sets[:5]) is None
    rule = rule_from(sets)
    assert (rule.measure, rule.above, rule.sets) == ('quick', False, 6)
    assert 0.3 < rule.border < 0.4 and rule.p <= 0.05
    d = difficulty(pairs(noisy))
    assert 'measured on 5 sets; 6 are the least: no rule can be told' in ' '.join(
        advice(d, sets[:5])
    )
    assert f'here {d.values["quick"]:.2f}: regression' in ' '.join(advice(d, sets))


def test_a_rule_needs_sets_on_either_side_and_an_order():
    won = [made(k, 0.1 * k, 1 - 0.1 * k) for k in range(1, 8)]
    assert rule_from(won) is None
    order = [3, 7, 1, 5, 2, 6, 4]
    assert rule_from([made(k, 0.1 * q, 0.35 - 0.1 * k) for k, q in enumerate(order, 1)]) is None
    same = [replace(e, values=dict.fromkeys(RULED, 0.5)) for e in won]
    assert rule_from(same) is None
